# Two commands, each with all its set-up: `make demo` answers a prompt, `make test` checks everything.

.PHONY: demo test

# Mesa's layer that sorts GPUs would look for a display server, and complain where there is none; the order is ours anyway.
export NODEVICE_SELECT = 1

demo:
	@scripts/tools.sh
	@scripts/demo.sh

test:
	@scripts/tools.sh rustfmt clippy
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --lib -- -D warnings
	cargo build --locked --bin runahead --examples
	@scripts/adapter.sh
	model=$$(cargo run --locked --quiet -- pull smollm2) && export RUNAHEAD_MODEL="$$model" && \
		cargo test --locked --lib --bins --tests --examples && \
		cargo test --locked --doc
