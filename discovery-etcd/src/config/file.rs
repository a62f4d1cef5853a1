//! Reads the files that a configuration names.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

/// Reads a regular file of bounded size. Anything else, such as a FIFO, may never end, and blocks
/// the thread of whoever calls.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST {
        return Err(io::Error::other("it has more than 1 MiB"));
    }
    Ok(content)
}

/// The largest file that is read, in bytes. A system's whole list of authorities has 220 KB.
const MOST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for (size, is_read) in [(0, true), (MOST, true), (MOST + 1, false)] {
            fs::write(&file, vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
            assert_eq!(read(&file).is_ok(), is_read, "{size}");
        }
        let error = read(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), "it is not a regular file");
        assert_eq!(read(&folder.path().join("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
