#!/bin/sh
# Measures SmolLM2-135M-Instruct on this machine's CPU beside llama.cpp, in turns. Needs Node.js 20 or later: its package node-llama-cpp brings
# llama.cpp built for each kind of processor. A busy machine wants `chrt --rr 1` in front.
# Argument: the number of turns of each, 5 unless said here.
set -eu

for program in node npm; do
    if ! command -v "$program" >/dev/null; then
        echo "error: $program is missing: on Debian and Ubuntu the packages nodejs and npm, or https://nodejs.org" >&2
        exit 1
    fi
done
cargo build --locked --release --bin runahead
model=$(cargo run --locked --release --quiet --bin runahead -- pull smollm2 | tail -n 1)

place=target/llama-cpp
if [ ! -d $place/node_modules/node-llama-cpp ]; then
    mkdir -p $place
    echo '{ "private": true }' >$place/package.json
    # Without scripts: what comes built is all that is wanted.
    npm install --prefix $place --ignore-scripts --no-audit --no-fund --silent node-llama-cpp@3.22.1
fi
cp scripts/llama-cpp.mjs $place/
exec node $place/llama-cpp.mjs target/release/runahead "$model" "${1:-5}"
