#!/bin/sh
# Opens the window of examples/desktop with SmolLM2-135M-Instruct filled in.
set -eu

if [ "$(uname -s)" = Linux ] && [ -z "${DISPLAY:-}" ]; then
    echo "error: DISPLAY names no X11 display to open a window on (make desktop-test brings a virtual one)" >&2
    exit 1
fi
"$(dirname "$0")/window.sh"
model=$(cargo run --locked --release --quiet --bin runahead -- pull smollm2 | tail -n 1)
cargo run --locked --release --package runahead-desktop -- "$model"
