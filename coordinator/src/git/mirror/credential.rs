//! The file that holds what a mirror's remote wants to hear.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use muster_connect::private_file;

/// Longest credential file, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Name that goes with a bare token; the services that give tokens take any.
const TOKEN_USER: &str = "x-access-token";

/// A name and a password. Not printable.
pub(super) struct Credential {
    pub(super) user: String,
    pub(super) password: String,
}

/// Why there is no credential. Never says what the file holds.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot read the credential file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("others may read the credential file {0}: `chmod 600 {0}` mends it", path.display())]
    Open { path: PathBuf },
    #[error(
        "the credential file {} must hold one line: `user:password`, or a token",
        path.display()
    )]
    Content { path: PathBuf },
}

/// Reads a credential.
pub(super) fn read(path: &Path) -> Result<Credential, Error> {
    let path_buf = || path.to_owned();
    let unreadable = |source| Error::Read {
        path: path_buf(),
        source,
    };
    let mode = std::fs::metadata(path).map_err(unreadable)?.mode();
    if mode & 0o077 != 0 {
        return Err(Error::Open { path: path_buf() });
    }
    let bytes = private_file::read_bounded(path, FILE_BYTES_MAX).map_err(unreadable)?;
    parse(&bytes).ok_or_else(|| Error::Content { path: path_buf() })
}

fn parse(bytes: &[u8]) -> Option<Credential> {
    let line = std::str::from_utf8(bytes).ok()?.trim_end();
    let (user, password) = line.split_once(':').unwrap_or((TOKEN_USER, line));
    let fits = !user.is_empty() && !password.is_empty() && !line.contains(char::is_control);
    fits.then(|| Credential {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_credential_is_one_line_in_a_file_that_nobody_else_reads() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credential");
        let put = |text: &str, mode| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            read(&file)
        };
        let found = put("ann:s3:cret\n", 0o600).unwrap();
        assert_eq!((&*found.user, &*found.password), ("ann", "s3:cret"));
        let found = put("token\n", 0o400).unwrap();
        assert_eq!((&*found.user, &*found.password), (TOKEN_USER, "token"));
        for wrong in ["", "\n", "ann:", ":x", "a\nb"] {
            let error = put(wrong, 0o600).err().unwrap();
            assert!(matches!(error, Error::Content { .. }), "{error}");
        }
        let error = put("ann:s3cret", 0o640).err().unwrap().to_string();
        assert!(
            error.contains("chmod 600") && !error.contains("s3cret"),
            "{error}"
        );
    }
}
