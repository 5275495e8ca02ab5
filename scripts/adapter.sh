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
"$(dirname "$0")/install.sh" "a Vulkan, Metal or DX12 adapter (a driver, or Mesa's software Vulkan)" $packages

if [ "$(gpus)" -eq 0 ]; then
    echo "error: $packages are installed, but still no Vulkan adapter is found" >&2
    exit 1
fi
