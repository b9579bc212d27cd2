//! Small files that only their owner may read, written so that a reader sees all of them or nothing.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

/// How the names of files begin that are being written.
const UNFINISHED: &str = ".muster-";

/// Removes the files of this module that were being written in `folder` when their process was
/// killed; gives how many there were.
///
/// Whoever writes there at this moment finds the file gone and fails, so only the folder's one owner
/// may call this.
pub fn remove_unfinished(folder: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_ours = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(UNFINISHED.as_bytes());
        if is_ours && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Replaces `path` by a file of mode 0600 holding `bytes`.
///
/// After `Ok` the file and its name are on disk. After `Err` the former file, if any, is untouched.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (file, folder) = written_beside(path, bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Creates `path` with mode 0600 holding `bytes`, unless it exists.
///
/// Fails with `AlreadyExists` and changes nothing when another process was first.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (file, folder) = written_beside(path, bytes)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Reads `path` whole; fails with `InvalidData` when it is longer than `bytes_max`.
pub fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(bytes_max + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {bytes_max} bytes"),
        ));
    }
    Ok(bytes)
}

fn written_beside<'a>(
    path: &'a Path,
    bytes: &[u8],
) -> io::Result<(tempfile::NamedTempFile, &'a Path)> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A temporary file is born with mode 0600 and keeps it when it is renamed.
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok((file, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        replace(&whole, b"all of it").unwrap();
        let (half, _) = written_beside(&whole, b"half").unwrap();
        let (_file, half) = half.keep().unwrap();
        std::fs::create_dir(folder.path().join(".muster-unfinished-x")).unwrap();
        assert_eq!(remove_unfinished(folder.path()).unwrap(), 1);
        assert!(!half.exists());
        assert_eq!(std::fs::read(&whole).unwrap(), b"all of it");
        assert_eq!(remove_unfinished(folder.path()).unwrap(), 0);
    }
}
