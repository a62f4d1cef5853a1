//! The committed code of the examples matches their `.proto` files.

use std::{fs, path::Path};

/// Needs `protoc`, which the etcd backend needs to build anyway. `BLESS=1` writes the files instead
/// of comparing them.
#[test]
fn examples_are_generated_from_their_protos() {
    for name in ["greeter", "shop"] {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
        let folder = tempfile::tempdir().unwrap();
        tonic_prost_build::configure()
            // A generated `connect` would need tonic's own channel, which nothing here uses.
            .build_transport(false)
            .emit_rerun_if_changed(false)
            .out_dir(folder.path())
            .compile_protos(&[example.join(format!("proto/{name}.proto"))], &[example.join("proto")])
            .unwrap();
        let generated = fs::read_to_string(folder.path().join(format!("{name}.v1.rs"))).unwrap();

        let committed = example.join(format!("src/{name}.v1.rs"));
        if std::env::var_os("BLESS").is_some() {
            fs::write(&committed, &generated).unwrap();
        }
        let equal = fs::read_to_string(&committed).unwrap() == generated;
        assert!(equal, "{} differs from what {name}.proto generates: run `make generate`", committed.display());
    }
}
