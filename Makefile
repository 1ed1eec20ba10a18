# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
export QVL_CACHE ?= $(HOME)/.cache/qvl
# Go that the set-up fetched, for machines that have none, or one that is too old.
export PATH := $(QVL_CACHE)/go/bin:$(PATH)
BUILD := $(or $(CARGO_TARGET_DIR),$(QVL_CACHE)/target)

.PHONY: demo test compile test-e2e test-others lint bench bench-doctor bench-operator soak setup build check-cuda mutants digits-base
.PHONY: licences advisories sbom setup-packages setup-data setup-python setup-schemas setup-nvidia-smi setup-cluster without-trainer
.PHONY: cluster-build cluster-up cluster-down cluster-shell

demo: setup-data build
	examples/digits/demo

# What the jobs of make have to do with one another is nothing to cargo, which would ask make for each process.
CARGO := env -u MAKEFLAGS cargo

# Two lanes twice. Where one compiler works alone on the library, the other core builds Kubernetes, whose processes are
# the nicer ones; and jobs on the shared cluster, which mostly wait, run beside all other tests. The set-up is never made in
# parallel. Output of the jobs comes when they have ended.
test: setup setup-cluster target
	$(MAKE) --jobs 2 compile cluster-build
	$(MAKE) --jobs 2 test-others test-e2e
	@echo "all tests passed"

# One after the other: they would wait for the same lock.
compile: target
	$(MAKE) lint
	$(MAKE) without-trainer
	$(MAKE) check-cuda
	$(CARGO) test --release --workspace --no-run
	$(CARGO) test --release --test e2e --no-run

test-e2e: target
	@log=$$(mktemp) && trap 'rm -f "$$log"' EXIT; \
	$(CARGO) test --release --test e2e >"$$log" 2>&1; code=$$?; cat "$$log"; exit $$code

test-others: target
	$(CARGO) test --release --workspace --no-fail-fast

lint: target
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets -p qvl -p qvl-cluster -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --no-deps --lib

bench: build
	cargo bench --bench train_step --bench passive

# The doctor beside Python's collectors, and on a fleet of a thousand nodes; writes docs/benchmarks.md.
bench-doctor: setup-python build
	tests/python/setup-deepspeed
	cargo bench --bench doctor

# The operator at scale, on simulated nodes; writes docs/benchmarks.md. About half an hour.
bench-operator: cluster-build
	cargo bench --bench operator

# Longer than a review waits for: every call of the operator going wrong, 260 kills of what keeps logs, faults of many
# seeds on a real cluster, mutants of the trainer, licences of dependencies. In turns: each keeps two cores busy.
soak: licences setup cluster-build build
	QVL_SOAK=1 cargo test --release --test operator
	QVL_SOAK=1 cargo test --release --test logs -- --nocapture
	QVL_SOAK=1 cargo test --release --test e2e -- seeds
	$(MAKE) mutants
	@echo "all long tests passed"

# Licences, sources and forbidden crates of all dependencies.
licences: target
	tests/setup/tool cargo-deny 0.20.2
	cargo fetch --locked --target x86_64-unknown-linux-gnu --target aarch64-unknown-linux-gnu # no build has fetched those of the other
	$(QVL_CACHE)/tools/bin/cargo-deny --offline check licenses bans sources

# Known holes in dependencies; fetches the database of RustSec.
advisories: target
	tests/setup/tool cargo-deny 0.20.2
	$(QVL_CACHE)/tools/bin/cargo-deny check advisories

setup: setup-packages setup-data setup-python setup-schemas setup-nvidia-smi

setup-packages:
	tests/setup/packages

setup-data: setup-packages
	examples/digits/fetch

setup-python: setup-packages
	tests/python/setup
	tests/python/setup-nvml

# What the reports of the doctor must fit.
setup-schemas: setup-packages
	tests/setup/schemas

# NVIDIA's own client, which the simulated driver must satisfy.
setup-nvidia-smi: setup-packages
	tests/setup/nvidia-smi

build: target
	@echo "building qvl and qvl-train (optimised; about 15 minutes on two cores the first time)"
	cargo build --release --bins --examples

# `qvl` compiles without candle. A check, because a build would compile all dependencies anew.
without-trainer: target
	$(CARGO) check --release --no-default-features --bin qvl

# Bills of materials in CycloneDX, of what Cargo.lock and the features of each program say.
sbom: target
	tests/setup/tool cargo-cyclonedx 0.5.9
	mkdir -p target/sbom
	$(QVL_CACHE)/tools/bin/cargo-cyclonedx cyclonedx --format json --override-filename bom --no-default-features
	mv bom.json target/sbom/qvl.cdx.json
	$(QVL_CACHE)/tools/bin/cargo-cyclonedx cyclonedx --format json --override-filename bom
	mv bom.json target/sbom/qvl-train.cdx.json
	find tests -name bom.json -delete

check-cuda: target
	tests/cuda-check/run

mutants: target
	tests/mutants/run

# A real Kubernetes on this machine: tests/cluster/README.md. As root.
CLUSTER := $(CARGO) run --quiet --release -p qvl-cluster --

setup-cluster: setup-packages
	tests/setup/packages cluster
	tests/setup/go

cluster-build: setup-cluster target
	@echo "building Kubernetes and its neighbours (about 15 minutes on two cores the first time)"
	$(CLUSTER) build

cluster-up: cluster-build setup-data build
	target/release/examples/digits --packages $(QVL_CACHE)/packages --out demo/data
	$(CLUSTER) up $(if $(NODES),--nodes $(NODES))
	$(CLUSTER) images
	$(CLUSTER) claim digits demo/data examples/digits/base

cluster-down: target
	$(CLUSTER) down

cluster-shell: target
	$(CLUSTER) shell

digits-base: setup-data build
	examples/digits/make-base

# Build caches live outside of the tree; target is a link to them, so that paths stay usual.
target:
	mkdir -p $(BUILD) && ln -sfn $(BUILD) target
