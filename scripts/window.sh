#!/bin/sh
# Libraries that a window opens at run time on Linux; on Debian and Ubuntu they are installed where one is missing.
set -eu

[ "$(uname -s)" = Linux ] || exit 0
PATH=$PATH:/usr/sbin:/sbin
for library in libX11.so.6 libX11-xcb.so.1 libXcursor.so.1 libXi.so.6 libxkbcommon-x11.so.0 libEGL.so.1 libGL.so.1; do
    if ! ldconfig -p | grep -q "$library"; then
        exec "$(dirname "$0")/install.sh" "$library" \
            libx11-6 libx11-xcb1 libxcursor1 libxi6 libxkbcommon-x11-0 libegl1 libgl1 libgl1-mesa-dri
    fi
done
