# Each command has all its set-up: `make demo` answers a prompt, `make test` checks everything, `make desktop` opens a window, `make desktop-test`
# checks that window alone.

.PHONY: demo test desktop desktop-test

# Mesa's layer that sorts GPUs would look for a display server, and complain where there is none; the order is ours anyway.
export NODEVICE_SELECT = 1

demo:
	@scripts/tools.sh
	@scripts/demo.sh

test:
	@scripts/tools.sh rustfmt clippy
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --lib -- -D warnings
	cargo clippy --locked --all-targets --features cuda -- -D warnings
	cargo build --locked --bin runahead --examples
	@scripts/adapter.sh
	model=$$(cargo run --locked --quiet -- pull smollm2) && export RUNAHEAD_MODEL="$$model" && \
		cargo test --locked --lib --bins --tests --examples --bench paper && \
		cargo test --locked --doc
	cargo test --locked --features cuda --lib -- kernels::cuda gpu::cuda
	@if [ "$$(uname -s)" != Linux ]; then echo "note: the window's test needs Linux (Xvfb): left out"; \
	elif ! RUST_MINOR=95 scripts/tools.sh; then echo "note: the window is left out"; \
	else $(MAKE) desktop-test; fi

desktop:
	@RUST_MINOR=95 scripts/tools.sh
	@scripts/desktop.sh

desktop-test:
	@RUST_MINOR=95 scripts/tools.sh rustfmt clippy
	cargo fmt --all --check
	cargo clippy --locked --package runahead-desktop --all-targets -- -D warnings
	model=$$(cargo run --locked --quiet -- pull smollm2) && export RUNAHEAD_MODEL="$$model" && \
		scripts/display.sh cargo test --locked --package runahead-desktop
