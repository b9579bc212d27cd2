//! How programs on the coordinator's own machine find it.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{CaCertificate, Endpoint, private_file};

const NAME: &str = "address.json";
const BYTES_MAX: u64 = 16 * 1024;

/// Where the coordinator of a home listens, and where its CA certificate lies.
///
/// The coordinator writes it once it listens; local clients read it on every reconnect, since a
/// restarted coordinator may listen elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFile {
    /// `host:port` that local clients can dial.
    pub address: String,
    /// The CA certificate in PEM form.
    pub ca_path: PathBuf,
}

impl AddressFile {
    /// Returns the file's place in `home`.
    pub fn path(home: &Path) -> PathBuf {
        home.join(NAME)
    }

    /// Writes the file into `home`, whole or not at all, with mode 0600.
    pub fn write(&self, home: &Path) -> Result<(), Error> {
        let path = Self::path(home);
        let failed = |source| Error::Write {
            path: path.display().to_string(),
            source,
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        private_file::replace(&path, &text).map_err(failed)
    }

    /// Reads the file of `home`. Fields that this version does not know are ignored.
    pub fn read(home: &Path) -> Result<Self, Error> {
        let path = Self::path(home);
        let shown = || path.display().to_string();
        let text =
            private_file::read_bounded(&path, BYTES_MAX).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Error::Missing { path: shown() },
                _ => Error::Read {
                    path: shown(),
                    source,
                },
            })?;
        serde_json::from_slice(&text).map_err(|source| Error::Damaged {
            path: shown(),
            source,
        })
    }

    /// Reads the CA certificate that the file names and returns where to connect.
    pub fn endpoint(&self) -> Result<Endpoint, Error> {
        let ca = CaCertificate::read(&self.ca_path)?;
        Ok(Endpoint::new(&self.address, ca)?)
    }
}

/// Why an address file could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "no coordinator has been started in this home ({path} does not exist); start one with \
         `coordinator serve`, or name another with `--coordinator`"
    )]
    Missing {
        /// The file.
        path: String,
    },
    /// The file could not be read.
    #[error("cannot read the address file {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what the coordinator writes.
    #[error(
        "cannot read the address file {path}: it is damaged; restart the coordinator to have it anew"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// The file could not be written.
    #[error("cannot write the address file {path}")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The CA certificate that it names could not be read.
    #[error(transparent)]
    Ca(#[from] crate::CaError),
    /// The address in it is none.
    #[error(transparent)]
    Endpoint(#[from] crate::EndpointError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_file_reads_as_it_was_written_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let file = AddressFile {
            address: "127.0.0.1:7000".into(),
            ca_path: "/x/tls/ca.pem".into(),
        };
        file.write(home.path()).unwrap();
        assert_eq!(AddressFile::read(home.path()).unwrap(), file);
        let mode = std::fs::metadata(AddressFile::path(home.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_missing_or_damaged_address_file_is_named() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(
            AddressFile::read(home.path()),
            Err(Error::Missing { .. })
        ));
        std::fs::write(AddressFile::path(home.path()), "{\"address\":").unwrap();
        let error = AddressFile::read(home.path()).unwrap_err();
        assert!(error.to_string().contains("address.json"), "{error}");
        assert!(matches!(error, Error::Damaged { .. }));
    }
}
