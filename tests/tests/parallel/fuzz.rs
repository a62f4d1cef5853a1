//! `fault_d11`: the code that the fuzzers run, with the committed corpus and seeded mutations of
//! it. The target `watch` runs in the etcd crate.

#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is public in the package of the fuzzers")]
mod targets;

#[test]
fn fault_d11_addresses() {
    corpus::run("address", 20_000, targets::address);
}

#[test]
fn fault_d11_keys() {
    corpus::run("key", 20_000, targets::key);
}

#[test]
fn fault_d11_names() {
    corpus::run("name", 20_000, targets::name);
}

#[test]
fn fault_d11_states() {
    corpus::run("state", 1_500, targets::state);
}

#[test]
fn fault_d11_urls() {
    corpus::run("url", 10_000, targets::url);
}

#[test]
fn fault_d11_values() {
    corpus::run("value", 20_000, targets::value);
}
