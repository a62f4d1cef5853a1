//! Time: the clock that the libraries use, and what is documented about etcd's.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Collects all Rust files below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// `fault_d1`. The wall clock is set an hour forward or back: nothing depends on it, because no
/// library reads it. Without a clock to inject, which nothing else needs, the sources show this:
/// all times are tokio's, which are monotonic.
///
/// etcd's own wall clock cannot be set from user space: Go asks the kernel without the C library,
/// so that no preloaded library can intercept it. Leases do not depend on it either, because etcd
/// counts them by the monotonic clock. The documentation of `discovery-etcd` lists what does depend
/// on etcd's wall clock: tokens and certificates.
#[test]
fn fault_d1_no_library_reads_the_wall_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for library in ["", "discovery-core", "discovery-memory", "discovery-etcd", "discovery-tonic"] {
        sources(&root.join(library).join("src"), &mut found);
    }
    assert!(found.len() > 50, "the sources are found: {found:?}");
    let wall_clocks = ["SystemTime", "UNIX_EPOCH", "chrono", "OffsetDateTime", "Utc::now", "Local::now"];
    let mut monotonic = 0;
    for path in &found {
        let text = fs::read_to_string(path).unwrap();
        monotonic += usize::from(text.contains("Instant::now"));
        for clock in wall_clocks {
            assert!(!text.contains(clock), "{} reads the wall clock: {clock}", path.display());
        }
    }
    println!("fault_d1: {} files, of which {monotonic} read the monotonic clock and none the wall clock", found.len());
}
