//! Small files that only their owner may read, written so that a reader sees all of them or nothing.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

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
        .prefix(".muster-")
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok((file, folder))
}
