use std::{fs, io, path::Path};

use tempfile::TempDir;

/// A copy of a stopped member's data, which can be restored.
#[derive(Debug)]
pub struct Saved(TempDir);

impl Saved {
    pub(super) fn of(data: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy(data, folder.path()).expect("the member has data");
        Self(folder)
    }

    pub(super) fn restore(&self, data: &Path) {
        fs::remove_dir_all(data).expect("the member has data");
        copy(self.0.path(), data).expect("the data can be copied back");
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::Etcd;

    #[tokio::test]
    async fn restored_data_lacks_later_writes() {
        let etcd = Etcd::start().await;
        let mut raw = etcd.raw().await;
        raw.put("kept", "1").await;
        let revision = raw.revision().await;
        etcd.stop(0);
        let saved = etcd.save(0);
        etcd.restart(0).await;
        etcd.raw().await.put("lost", "1").await;
        etcd.stop(0);
        etcd.restore(0, &saved);
        etcd.restart(0).await;
        let mut raw = etcd.raw().await;
        assert_eq!(raw.keys().await, ["kept"]);
        assert_eq!(raw.revision().await, revision);
    }
}
