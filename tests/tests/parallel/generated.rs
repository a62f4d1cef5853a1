//! The committed code of the greeter matches its `.proto` file.

use std::{fs, path::Path};

/// Needs `protoc`, which the etcd backend needs to build anyway. `BLESS=1` writes the file instead
/// of comparing it.
#[test]
fn greeter_is_generated_from_its_proto() {
    let greeter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/greeter");
    let folder = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        // A generated `connect` would need tonic's own channel, which nothing here uses.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .out_dir(folder.path())
        .compile_protos(&[greeter.join("proto/greeter.proto")], &[greeter.join("proto")])
        .unwrap();
    let generated = fs::read_to_string(folder.path().join("greeter.v1.rs")).unwrap();

    let committed = greeter.join("src/greeter.v1.rs");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    let equal = fs::read_to_string(&committed).unwrap() == generated;
    assert!(equal, "{} differs from what greeter.proto generates: run `make generate`", committed.display());
}
