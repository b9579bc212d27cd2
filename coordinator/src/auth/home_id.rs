//! The name of a home that is not the one it was copied from.
//!
//! Both have the same secret key, from which a name follows otherwise, and two homes of one name would
//! take each other's allocations for their own.

use std::io;
use std::path::Path;

use muster_connect::private_file;

/// Its file in the home.
pub(crate) const FILE: &str = "home.id";
const BYTES_MAX: u64 = 64;

/// Gives a home a name that no other one has.
///
/// # Errors
/// The file's own.
pub(crate) fn renew(home: &Path) -> io::Result<()> {
    let (name, _) = uuid::Uuid::new_v4().as_u64_pair();
    let name = name >> 32;
    private_file::replace(&home.join(FILE), format!("{name:08x}\n").as_bytes())
}

/// Reads it; `None` of a home that was never restored.
///
/// # Errors
/// The file's own, also that it is damaged.
pub(super) fn read(home: &Path) -> io::Result<Option<String>> {
    let path = home.join(FILE);
    let bytes = match private_file::read_bounded(&path, BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&bytes);
    let name = text.trim();
    if name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Some(name.to_owned()));
    }
    let what = format!(
        "{} is damaged: copy it from a backup, or look at the jobs' names for it",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}
