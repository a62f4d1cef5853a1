# Everything that a change must pass, each with one command. `.ci/run` calls `test`, `lint`
# and `interop`.

# Tests against another etcd: make test ETCD=/opt/etcd-3.6/etcd
ETCD ?=
ifneq ($(ETCD),)
# Tests run in the folders of their packages, so a path must be absolute. A bare name is looked up
# in PATH.
override ETCD := $(if $(findstring /,$(ETCD)),$(abspath $(ETCD)),$(ETCD))
export ETCD
endif

.PHONY: help setup test soak interop lint docs bench generate

# The chaos runs of a soak: their number, and the length of each in seconds. SEED=7 repeats one.
SEEDS ?= 20
SECONDS ?= 60
SEED ?=

help:
	@echo "make setup     install what the other commands need and is missing (on Debian; elsewhere it lists what to install)"
	@echo "make test      run all tests (installs protoc and etcd on Debian; ETCD=path uses another etcd)"
	@echo "make soak      run the slow tests, and chaos with fresh seeds (SEEDS=20 SECONDS=60; SEED=7 repeats one)"
	@echo "make interop   let Go programs and ours meet in one etcd (on Debian; builds the Go programs without root)"
	@echo "make lint      formatting, clippy, rustdoc, each crate and feature alone, dependencies, prose, packages"
	@echo "make docs      build the documentation of the whole API, with feature badges if there is a nightly toolchain"
	@echo "make bench     run the benchmarks and print their table"
	@echo "make generate  rewrite the generated code of the examples from their .proto files"

# Everything at once; the other commands install what they need themselves.
setup:
	scripts/install cc cargo cargo-clippy cargo-fmt protoc etcd etcdctl valgrind

test:
	scripts/install cc cargo protoc etcd etcdctl
	scripts/test

# One test at a time, so that each has the machine to itself; with output, because it shows the
# seeds.
soak:
	scripts/install cc cargo protoc etcd etcdctl
	CHAOS_SEEDS=$(SEEDS) CHAOS_SECONDS=$(SECONDS) $(if $(SEED),CHAOS_SEED=$(SEED)) \
		cargo test -p tests --all-features $(if $(SEED),--test chaos) --no-fail-fast -- --ignored --nocapture --test-threads=1
	$(if $(SEED),,cargo test -p discovery-tonic --all-features --no-fail-fast -- --ignored --nocapture --test-threads=1)

interop:
	scripts/install cc cargo protoc etcd etcdctl
	scripts/interop

lint:
	scripts/install cc cargo cargo-clippy cargo-fmt protoc
	scripts/lint

docs:
	scripts/install cc cargo protoc
	scripts/docs

# The drivers and servers are separate binaries, which `cargo run` alone does not build.
bench:
	scripts/install cc cargo protoc etcd valgrind
	cargo build --release -p benches
	cargo run --release -p benches

generate:
	scripts/install cc cargo protoc
	BLESS=1 cargo test -p tests --test parallel generated::
