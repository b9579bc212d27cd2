//! The one secret that every hash and derived credential hangs on.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use muster_connect::private_file;

const NAME: &str = "secret.key";
const BYTES: usize = 32;

/// The home's secret key; its `Debug` form hides it.
#[derive(Clone)]
pub struct SecretKey([u8; BYTES]);

impl SecretKey {
    /// Reads the key of `home`, making it on first use.
    ///
    /// Two processes that start at once get the same key. An existing file is never overwritten:
    /// with another key no token and no credential would be valid any more.
    pub fn open(home: &Path) -> Result<Self, Error> {
        let path = home.join(NAME);
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        make_private_folder(home).map_err(failed)?;
        if !path.try_exists().map_err(failed)? {
            match private_file::create(&path, &random_bytes::<BYTES>()?) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
        keep_private(&path).map_err(failed)?;
        let bytes = fs::read(&path).map_err(failed)?;
        let key = bytes
            .try_into()
            .map_err(|_| Error::Damaged { path: path.clone() })?;
        Ok(Self(key))
    }

    /// Returns what tells this home from others; it is no secret.
    pub(super) fn home_id(&self) -> String {
        let [a, b, c, d, ..] = self.derive("muster 2026-11 home id");
        format!("{a:02x}{b:02x}{c:02x}{d:02x}")
    }

    /// Derives an independent key for one purpose, which `context` names.
    pub(super) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey([hidden])")
    }
}

/// Fills an array from the operating system's random source.
pub(super) fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// Makes `folder` and its parents where missing; new ones have mode 0700.
pub(crate) fn make_private_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// Takes other users' access to `path` away, should a copy or a restored backup have given it.
pub(super) fn keep_private(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format_args!("{:03o}", mode & 0o777),
            "secret file could be read by other users; its mode is 0600 again"
        );
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Why the secret key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or made.
    #[error("cannot use the secret key {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not have the length of a key.
    #[error(
        "the secret key {} is damaged: it must have {BYTES} bytes; copy it from one that `coordinator backup` made, or \
         remove it together with tokens.db and admin.token, after which every token must be made \
         anew", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("cannot get random bytes from the system")]
    Random,
}
