#!/bin/sh
# Runs a command on an X11 display that nobody sees, drawn by Mesa's software OpenGL. On Debian and Ubuntu what is missing is installed.
# Arguments: the command.
set -eu

if ! command -v xvfb-run >/dev/null || ! command -v xauth >/dev/null; then
    "$(dirname "$0")/install.sh" "a virtual display" xvfb xauth libgl1-mesa-dri
fi
"$(dirname "$0")/window.sh"
export LIBGL_ALWAYS_SOFTWARE=1 WINIT_X11_SCALE_FACTOR=1
exec xvfb-run --auto-servernum --server-args="-screen 0 800x600x24" "$@"
