//! The programs of the workspace, for tests that start them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Returns the folder of the programs, which has that of the examples.
///
/// All are built as the tests are, so that `make test` compiles nothing twice: alone, they have
/// other features. After `scripts/test` there is nothing left to build.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // <target>/<profile>/deps/<this test>
        let test = env::current_exe().expect("a test knows its path");
        let profile = test.ancestors().nth(2).expect("a test is in the folder of its profile");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--workspace", "--all-features", "--tests", "--bins", "--examples", "--quiet"]);
        let target = profile.parent().expect("a profile is in the target folder");
        build.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the programs do not build");
        profile.to_owned()
    })
}
