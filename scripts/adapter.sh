#!/bin/sh
# The tests run every WGSL kernel, so some Vulkan, Metal or DX12 adapter must be there; a software one will do.
# On Debian and Ubuntu one is installed where none is found.
set -eu

gpus() {
    cargo run --locked --quiet -- devices --json | grep -c '"backend": *"\(vulkan\|metal\|dx12\)"' || true
}

if [ "$(gpus)" -gt 0 ]; then
    exit 0
fi
packages="libvulkan1 mesa-vulkan-drivers"
if ! command -v apt-get >/dev/null; then
    echo "error: no Vulkan, Metal or DX12 adapter: install a driver, or Mesa's software Vulkan (on Debian: $packages)" >&2
    exit 1
fi

sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "error: no Vulkan adapter, and no sudo to install one; as root: apt-get install $packages" >&2
        exit 1
    fi
    sudo=sudo
fi
echo "no Vulkan adapter found; installing a software one: $sudo apt-get install $packages" >&2
$sudo apt-get update -q
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages

if [ "$(gpus)" -eq 0 ]; then
    echo "error: $packages are installed, but still no Vulkan adapter is found" >&2
    exit 1
fi
