# Everything a change has to pass, each with one command. `.ci/run` calls `test` and `lint`.

# Another etcd to test against: make test ETCD=/opt/etcd-3.6/etcd
ETCD ?=
ifneq ($(ETCD),)
# Tests run in the folders of their packages, so a path must be absolute; a bare name is looked up in PATH.
override ETCD := $(if $(findstring /,$(ETCD)),$(abspath $(ETCD)),$(ETCD))
export ETCD
endif

.PHONY: help test lint bench generate

help:
	@echo "make test      run all tests (installs protoc and etcd on Debian; ETCD=path takes another etcd)"
	@echo "make lint      formatting, clippy, rustdoc, single crates and features, dependency rules"
	@echo "make bench     run the benchmarks and print their table"
	@echo "make generate  rewrite the greeter's generated code from its .proto file"

# --all-features, since a test whose features are off would be left out without a word.
test:
	scripts/install cc cargo protoc etcd etcdctl
	cargo test --workspace --all-features --no-fail-fast

lint:
	scripts/install cc cargo protoc
	scripts/lint

# Drivers and servers are binaries of their own, which `cargo run` alone does not build.
bench:
	scripts/install cc cargo valgrind
	cargo build --release -p benches
	cargo run --release -p benches

generate:
	scripts/install cc cargo protoc
	BLESS=1 cargo test -p tests --test generated
