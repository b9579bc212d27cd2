//! The coordinator's own certificate authority and the server certificates that it issues.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use muster_connect::{CaCertificate, TLS_NAME, private_file};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::secret_key::{keep_private, make_private_folder};

const FOLDER: &str = "tls";
const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
/// Keys and certificates are below 2 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Join tokens pin the authority, so it must outlive any installation.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Certificates begin this early, for machines whose clock is behind.
const CLOCK_SKEW: Duration = DAY;

/// The authority that every client of this coordinator pins.
#[derive(Debug)]
pub struct CertificateAuthority {
    certificate: CaCertificate,
    path: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate with its chain, the authority's own included, and its key.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The server's certificate first, the authority's last: clients that know only a fingerprint
    /// find the authority here.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key that belongs to the first certificate; it is held in memory only.
    pub key: PrivateKeyDer<'static>,
}

impl CertificateAuthority {
    /// Reads the authority of `home`, making it on first use.
    ///
    /// Both files appear at once, so a crash leaves none or both, and two processes that start at
    /// once use the same authority. An existing authority is never overwritten, not even a damaged
    /// one: every token pins it.
    pub fn open(home: &Path) -> Result<Self, Error> {
        let folder = home.join(FOLDER);
        if !has_entries(&folder)? {
            create(home, &folder)?;
        }
        Self::load(&folder)
    }

    /// Returns the certificate that clients pin.
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Returns the file that holds the certificate in PEM form.
    pub fn certificate_path(&self) -> &Path {
        &self.path
    }

    /// Issues a fresh server certificate, valid from a day before `now` until `life` after it.
    ///
    /// It is for [`TLS_NAME`], which all our clients ask for, and for the names of this machine
    /// itself, for browsers whose user has imported the authority.
    pub fn issue_server(
        &self,
        now: SystemTime,
        life: Duration,
    ) -> Result<ServerCertificate, Error> {
        let names = [TLS_NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).map_err(Error::Certificate)?;
        params.distinguished_name = named(TLS_NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, life);
        let key = KeyPair::generate().map_err(Error::Certificate)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(Error::Certificate)?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone(), self.certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    fn load(folder: &Path) -> Result<Self, Error> {
        let (certificate_path, key_path) = (folder.join(CERTIFICATE), folder.join(KEY));
        let pem = read(&certificate_path)?;
        let key_pem = read(&key_path)?;
        keep_private(&key_path).map_err(|source| Error::File {
            path: key_path.clone(),
            source,
        })?;

        let damaged = |path: &Path| Error::Damaged {
            path: path.to_owned(),
        };
        let certificate =
            CaCertificate::from_pem(pem.as_bytes()).map_err(|_| damaged(&certificate_path))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|_| damaged(&key_path))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der())
            .map_err(|_| damaged(&certificate_path))?;
        let ends = parsed.validity().not_after.to_datetime();
        if SystemTime::now() >= SystemTime::from(ends) {
            return Err(Error::Expired {
                path: certificate_path,
                ended: parsed.validity().not_after.to_string(),
            });
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(Error::Unmatched {
                certificate: certificate_path,
                key: key_path,
            });
        }
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key)
            .map_err(|_| damaged(&certificate_path))?;
        Ok(Self {
            certificate,
            path: certificate_path,
            issuer,
        })
    }
}

/// Makes the authority in a folder of its own and then gives that folder its name.
fn create(home: &Path, folder: &Path) -> Result<(), Error> {
    let failed = |source| Error::File {
        path: folder.to_owned(),
        source,
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Muster coordinator");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, SystemTime::now(), CA_LIFE);
    let key = KeyPair::generate().map_err(Error::Certificate)?;
    let certificate = params.self_signed(&key).map_err(Error::Certificate)?;

    make_private_folder(home).map_err(failed)?;
    // The temporary folder is removed again if a step below fails.
    let made = tempfile::Builder::new()
        .prefix(".tls-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(home)
        .map_err(failed)?;
    private_file::create(&made.path().join(KEY), key.serialize_pem().as_bytes()).map_err(failed)?;
    private_file::create(&made.path().join(CERTIFICATE), certificate.pem().as_bytes())
        .map_err(failed)?;
    match fs::rename(made.path(), folder) {
        Ok(()) => fs::File::open(home)
            .and_then(|home| home.sync_all())
            .map_err(failed),
        // Another process was first; its authority is the one that counts.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn has_entries(folder: &Path) -> Result<bool, Error> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::File {
            path: folder.to_owned(),
            source,
        }),
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes =
        private_file::read_bounded(path, FILE_BYTES_MAX).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                path: path.to_owned(),
            },
            io::ErrorKind::InvalidData => Error::Damaged {
                path: path.to_owned(),
            },
            _ => Error::File {
                path: path.to_owned(),
                source,
            },
        })?;
    String::from_utf8(bytes).map_err(|_| Error::Damaged {
        path: path.to_owned(),
    })
}

fn named(name: &str) -> DistinguishedName {
    let mut whole = DistinguishedName::new();
    whole.push(DnType::CommonName, name);
    whole
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let epoch = date_time_ymd(1970, 1, 1);
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + life;
}

/// Why the certificate authority could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or made.
    #[error("cannot use the certificate authority's {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of the two files is gone.
    #[error(
        "the certificate authority is incomplete: {} is missing; copy it from one that `coordinator backup` made, or \
         remove its whole folder to have a new authority made, after which every join token must be \
         made anew", path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error(
        "{} is damaged; copy it from one that `coordinator backup` made, or remove its whole folder to have a new \
         certificate authority made, after which every join token must be made anew",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Its time is over, so no client would accept anything that it issues.
    #[error(
        "the certificate authority {} expired at {ended} by this machine's clock; if the clock is \
         right, remove its whole folder to have a new authority made, after which every join token \
         must be made anew", path.display()
    )]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// When.
        ended: String,
    },
    /// The two files come from different authorities.
    #[error(
        "{} does not belong to {}; restore both from the same backup, or remove their folder to \
         have a new certificate authority made, after which every join token must be made anew",
        key.display(), certificate.display()
    )]
    Unmatched {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate or key could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_authority_stays_the_same_across_restarts_and_is_private() {
        let home = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::open(home.path()).unwrap();
        let second = CertificateAuthority::open(home.path()).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        let folder = home.path().join(FOLDER);
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join(KEY)), 0o600);
        assert_eq!(
            fs::read_dir(home.path()).unwrap().count(),
            1,
            "nothing temporary is left"
        );
    }

    #[test]
    fn starts_at_the_same_time_agree_on_one_authority() {
        let home = tempfile::tempdir().unwrap();
        let open = || {
            CertificateAuthority::open(home.path())
                .unwrap()
                .certificate()
                .clone()
        };
        let found: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(found.iter().all(|certificate| *certificate == found[0]));
    }

    #[test]
    fn a_damaged_authority_is_named_and_never_replaced() {
        let home = tempfile::tempdir().unwrap();
        CertificateAuthority::open(home.path()).unwrap();
        let folder = home.path().join(FOLDER);
        let good = fs::read(folder.join(CERTIFICATE)).unwrap();

        for name in [CERTIFICATE, KEY] {
            let whole = fs::read(folder.join(name)).unwrap();
            fs::write(folder.join(name), &whole[..whole.len() / 2]).unwrap();
            let error = CertificateAuthority::open(home.path()).unwrap_err();
            assert!(matches!(&error, Error::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
            fs::remove_file(folder.join(name)).unwrap();
            let error = CertificateAuthority::open(home.path()).unwrap_err();
            assert!(matches!(&error, Error::Missing { .. }), "{error}");
            fs::write(folder.join(name), whole).unwrap();
        }

        let other = tempfile::tempdir().unwrap();
        CertificateAuthority::open(other.path()).unwrap();
        fs::copy(other.path().join(FOLDER).join(KEY), folder.join(KEY)).unwrap();
        let error = CertificateAuthority::open(home.path()).unwrap_err();
        assert!(matches!(error, Error::Unmatched { .. }), "{error}");
        assert_eq!(fs::read(folder.join(CERTIFICATE)).unwrap(), good);
    }

    #[test]
    fn a_key_that_others_could_read_is_made_private_again() {
        let home = tempfile::tempdir().unwrap();
        CertificateAuthority::open(home.path()).unwrap();
        let key = home.path().join(FOLDER).join(KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        CertificateAuthority::open(home.path()).unwrap();
        assert_eq!(mode(&key), 0o600);
    }
}
