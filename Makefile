# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
CACHE := $(or $(QVL_CACHE),$(HOME)/.cache/qvl)
export QVL_CACHE := $(CACHE)

.PHONY: demo test lint bench setup build check-cuda mutants soak digits-base

# Build caches live outside of the tree; target/ is a link to them, so that paths stay usual.
target:
	mkdir -p $(CACHE)/target && { [ -e target ] || ln -s $(CACHE)/target target; }

build: target
	@echo "building qvl and qvl-train (optimised; about 6 minutes on two cores the first time)"
	cargo build --release --bins --examples

demo: setup-data build
	examples/digits/demo

test: setup lint
	cargo test --release --workspace
	cargo build --release --no-default-features --bin qvl --target-dir target/without-trainer
	@echo "all tests passed"

lint: target
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --lib

setup: setup-packages setup-data setup-python

setup-packages:
	tests/setup/packages

setup-data: setup-packages
	examples/digits/fetch

setup-python: setup-packages
	tests/python/setup

bench: target
	cargo bench

check-cuda: target
	tests/cuda-check/run

mutants: target
	tests/mutants/run

soak: mutants

digits-base: setup-data build
	examples/digits/make-base
