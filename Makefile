# Everything a change has to pass, each with one command. `.ci/run` calls `test` and `lint`.

# Another etcd to test against: make test ETCD=/opt/etcd-3.6/etcd
ETCD ?=
ifneq ($(ETCD),)
# Tests run in the folders of their packages, so a path must be absolute; a bare name is looked up in PATH.
override ETCD := $(if $(findstring /,$(ETCD)),$(abspath $(ETCD)),$(ETCD))
export ETCD
endif

.PHONY: help setup test soak lint docs bench generate

# How much chaos a soak is: so many seeds, each for so many seconds; SEED=7 repeats one.
SEEDS ?= 20
SECONDS ?= 60
SEED ?=

help:
	@echo "make setup     install what the other commands need and is missing (on Debian; elsewhere it lists what to install)"
	@echo "make test      run all tests (installs protoc and etcd on Debian; ETCD=path takes another etcd)"
	@echo "make soak      run what takes long, and the chaos with fresh seeds (SEEDS=20 SECONDS=60; SEED=7 repeats one)"
	@echo "make lint      formatting, clippy, rustdoc, single crates and features, dependency rules, packages"
	@echo "make docs      build the documentation of the whole API, with feature badges if there is a nightly toolchain"
	@echo "make bench     run the benchmarks and print their table"
	@echo "make generate  rewrite the greeter's generated code from its .proto file"

# Everything at once; the other commands install what they need themselves.
setup:
	scripts/install cc cargo cargo-clippy cargo-fmt protoc etcd etcdctl valgrind

# --all-features, since a test whose features are off would be left out without a word; then those of what is left out.
test:
	scripts/install cc cargo protoc etcd etcdctl
	cargo test --workspace --all-features --no-fail-fast
	cargo test -p discovery-kit -p discovery-etcd --lib --no-default-features

# One after the other, so that each has the machine; with its output, which has the seeds.
soak:
	scripts/install cc cargo protoc etcd etcdctl
	CHAOS_SEEDS=$(SEEDS) CHAOS_SECONDS=$(SECONDS) $(if $(SEED),CHAOS_SEED=$(SEED)) \
		cargo test -p tests --all-features $(if $(SEED),--test chaos) --no-fail-fast -- --ignored --nocapture --test-threads=1
	$(if $(SEED),,cargo test -p discovery-tonic --all-features --no-fail-fast -- --ignored --nocapture --test-threads=1)

lint:
	scripts/install cc cargo cargo-clippy cargo-fmt protoc
	scripts/lint

docs:
	scripts/install cc cargo protoc
	scripts/docs

# Drivers and servers are binaries of their own, which `cargo run` alone does not build.
bench:
	scripts/install cc cargo protoc etcd valgrind
	cargo build --release -p benches
	cargo run --release -p benches

generate:
	scripts/install cc cargo protoc
	BLESS=1 cargo test -p tests --test generated
