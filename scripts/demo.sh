#!/bin/sh
# Answers one prompt with SmolLM2-135M-Instruct, its prefill chained over two adapters or more.
set -eu

# Options after the script's name go to `runahead generate`.
runahead() {
    cargo run --locked --release --quiet --bin runahead -- "$@"
}

cargo build --locked --release --bin runahead
model=$(runahead pull smollm2 | tail -n 1)

# Index of every real GPU; `devices --json` has a line per key, "index" before "type".
gpus=$(runahead devices --json | awk -F'[:,]' '
    /"index":/ { gsub(/[" ]/, "", $2); index_ = $2 }
    /"type":/ && !/"(software|cpu)"/ { print index_ }')

devices=$(echo "$gpus" | paste -s -d, -)
case $(echo "$gpus" | grep -c .) in
0) echo "No GPU here: the chain is shown on two logical adapters of the CPU." >&2 && devices=cpu,cpu ;;
1) echo "One GPU here: the chain is shown on two logical adapters of it." >&2 && devices=$gpus,$gpus ;;
esac

prompt="The water cycle has four steps. The sun warms the sea, and water evaporates into the air. High up the vapour cools and condenses \
into clouds. When the drops grow heavy, they fall as rain or snow. Rivers and groundwater carry the water back to the sea, where it all begins \
again. Plants take part as well: their leaves give off vapour, so that a forest makes some of its own rain. Explain the water cycle to a child in \
three short sentences."
# The demonstration is the chain, even where one adapter alone would be chosen.
[ $# -gt 0 ] || set -- --prefill runahead
runahead generate -m "$model" -p "$prompt" -n 128 --devices "$devices" "$@"
