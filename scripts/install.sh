#!/bin/sh
# Installs packages on Debian and Ubuntu; says what is missing where there is no apt-get.
# Arguments: what is missing, then the packages that bring it.
set -eu

what=$1
shift
if ! command -v apt-get >/dev/null; then
    echo "error: $what is missing (on Debian: $*)" >&2
    exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "error: $what is missing, and no sudo to install it; as root: apt-get install $*" >&2
        exit 1
    fi
    sudo=sudo
fi
echo "$what is missing: $sudo apt-get install $*" >&2
# A machine that has just started may be updating itself, and a mirror may hiccup.
patient="-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
$sudo apt-get $patient update -q
$sudo env DEBIAN_FRONTEND=noninteractive apt-get $patient install -q -y --no-install-recommends "$@"
