//! What a backup says about itself: a first line that every version can read, then JSON.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Figures, MANIFEST, io};

/// Format of backups; grows with every change that an older program could not live with.
pub const FORMAT: u32 = 1;
/// Begins the first line.
const MAGIC: &str = "muster-backup";
/// A million files have about 200 MB of manifest.
const BYTES_MAX: u64 = 1 << 30;

/// Everything that a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the program that made it.
    pub made_by: String,
    /// When, as text for people.
    pub made_at: String,
    pub figures: Figures,
    pub files: Vec<Entry>,
}

/// One file under `home`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Below `home`, with `/`.
    pub path: String,
    pub bytes: u64,
    /// BLAKE3, in hexadecimal.
    pub sum: String,
}

impl Manifest {
    /// Writes it into a backup's folder (0600).
    pub(super) fn write(&self, backup: &Path) -> Result<(), Error> {
        let path = backup.join(MANIFEST);
        let failed = |source: std::io::Error| io("write", &path)(source);
        let body = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let sum = blake3::hash(&body).to_hex();
        let mut whole = format!("{MAGIC} {FORMAT} {} {sum}\n", self.made_by).into_bytes();
        whole.extend_from_slice(&body);
        muster_connect::private_file::create(&path, &whole).map_err(failed)
    }

    /// Reads the manifest of a backup.
    ///
    /// # Errors
    /// [`Error::Foreign`], [`Error::NewerFormat`], or [`Error::Damaged`].
    pub fn read(backup: &Path) -> Result<Self, Error> {
        let path = backup.join(MANIFEST);
        let bytes = match muster_connect::private_file::read_bounded(&path, BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Foreign(backup.to_owned()));
            }
            Err(error) => return Err(io("read", &path)(error)),
        };
        Self::parse(&bytes, backup)
    }

    fn parse(bytes: &[u8], backup: &Path) -> Result<Self, Error> {
        let foreign = || Error::Foreign(backup.to_owned());
        let damaged = |what: &str| Error::Damaged {
            path: backup.join(MANIFEST),
            what: what.to_owned(),
        };
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (line, body) = end
            .and_then(|end| Some((bytes.get(..end)?, bytes.get(end + 1..)?)))
            .ok_or_else(foreign)?;
        let line = std::str::from_utf8(line).map_err(|_| foreign())?;
        let mut words = line.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(foreign());
        }
        let format: u32 = words
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| damaged("has a first line that makes no sense"))?;
        let made_by = words.next().unwrap_or("of an unknown version");
        if format > FORMAT {
            return Err(Error::NewerFormat {
                made_by: made_by.chars().take(40).collect(),
                found: format,
            });
        }
        if words.next() != Some(&*blake3::hash(body).to_hex()) {
            return Err(damaged("is not what was written: its checksum differs"));
        }
        let manifest: Self =
            serde_json::from_slice(body).map_err(|error| damaged(&format!("says: {error}")))?;
        let wrong = manifest.files.iter().find(|file| file.relative().is_none());
        match wrong {
            Some(file) => Err(damaged(&format!(
                "names {:?}, which no home has",
                file.path
            ))),
            None => Ok(manifest),
        }
    }
}

impl Entry {
    /// Gives the path below `home`; `None` for one that would lead out of it.
    pub(super) fn relative(&self) -> Option<PathBuf> {
        let path = Path::new(&self.path);
        let plain = |part| matches!(part, Component::Normal(_));
        (!self.path.is_empty() && path.components().all(plain)).then(|| path.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(path: &str) -> Manifest {
        Manifest {
            made_by: "0.1.0".to_owned(),
            made_at: "now".to_owned(),
            figures: Figures::default(),
            files: vec![Entry {
                path: path.to_owned(),
                bytes: 3,
                sum: "00".to_owned(),
            }],
        }
    }

    fn written(manifest: &Manifest) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        manifest.write(folder.path()).unwrap();
        std::fs::read(folder.path().join(MANIFEST)).unwrap()
    }

    #[test]
    fn a_manifest_is_read_back_as_it_was_written() {
        let bytes = written(&manifest("tls/ca.pem"));
        let read = Manifest::parse(&bytes, Path::new("/b")).unwrap();
        assert_eq!(read, manifest("tls/ca.pem"));
    }

    #[test]
    fn a_manifest_cut_or_flipped_anywhere_is_refused() {
        let bytes = written(&manifest("journal.db"));
        for cut in 0..bytes.len() {
            Manifest::parse(&bytes[..cut], Path::new("/b")).unwrap_err();
        }
        for place in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            if let Ok(read) = Manifest::parse(&flipped, Path::new("/b")) {
                // Only the version in the first line is for people alone.
                assert_eq!(read, manifest("journal.db"), "at {place}");
            }
        }
    }

    #[test]
    fn a_newer_format_is_refused_with_both_versions_whatever_follows() {
        let error = Manifest::parse(b"muster-backup 9 8.1.0 x y z\n{}", Path::new("/b"));
        assert_eq!(
            error.unwrap_err().to_string(),
            "the backup was made by Muster 8.1.0 in format 9; this one reads up to format 1: use \
             that or a newer Muster"
        );
    }

    #[test]
    fn a_path_that_leads_out_of_the_home_is_refused() {
        for path in ["../x", "/etc/passwd", "a/../../b", ""] {
            let refused = Manifest::parse(&written(&manifest(path)), Path::new("/b"));
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{path:?}");
        }
    }
}
