#!/bin/sh
# Checks for what the build needs, and names the package that brings what is missing.
# Arguments: the Rust components that are needed beside cargo.
set -eu

min_minor=${RUST_MINOR:-89} # rust-version in Cargo.toml is 1.89; the window needs a later one

lacking() {
    echo "error: $1" >&2
    exit 1
}

if ! command -v cargo >/dev/null; then
    lacking "cargo is missing: Rust comes from https://rustup.rs (or, on Debian and Ubuntu, the package rustup: then rustup default stable)"
fi

version=$(cargo --version | cut -d' ' -f2)
minor=$(echo "$version" | cut -d. -f2)
if [ "${version%%.*}" -eq 1 ] && [ "$minor" -lt "$min_minor" ]; then
    lacking "cargo is $version, 1.$min_minor or later is needed: rustup update (Rust comes from https://rustup.rs)"
fi

# Rust links its programs with the C compiler, and the TLS library is partly C.
if ! command -v cc >/dev/null; then
    case $(uname -s) in
    Darwin) lacking "the C compiler cc is missing: xcode-select --install" ;;
    *) lacking "the C compiler cc is missing: on Debian and Ubuntu the package gcc (with libc6-dev), on Fedora gcc" ;;
    esac
fi

for component in "$@"; do
    case $component in
    rustfmt) program=cargo-fmt package=rustfmt ;;
    clippy) program=cargo-clippy package=rust-clippy ;;
    esac
    # rustup's stand-ins exist for components that are not installed, so only running one tells.
    if ! "$program" --version >/dev/null 2>&1; then
        if command -v rustup >/dev/null; then
            echo "installing the Rust component $component" >&2
            rustup component add "$component"
        else
            lacking "$component is missing: on Debian and Ubuntu the package $package"
        fi
    fi
done
