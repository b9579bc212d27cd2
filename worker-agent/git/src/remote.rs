//! Repositories elsewhere: listing, fetching, and how to reach and be known to them.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::address::without_users;
use crate::command::{Git, GitCommand, Mode};
use crate::error::GitError;
use crate::names::{ObjectId, RefName, quoted};
use crate::repository::{Repository, parse_ref_lines};

/// The name that every coordinator's certificate carries, whatever address is dialled.
const COORDINATOR_NAME: &str = "coordinator.muster";
/// What the remote is called inside one command; a person's own remotes are unlikely to be.
pub(crate) const REMOTE_NAME: &str = "muster-once";
/// How long one transfer may take unless the caller says otherwise; a dead connection is noticed
/// within a minute by its lack of speed.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Most addresses of a name that are handed to the transport.
const ADDRESSES_MAX: usize = 8;

/// How a remote knows us, and we it.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// Sent as a bearer token; it never appears in arguments, errors or `Debug`.
    pub token: String,
    /// The certificates to trust instead of the system's, in PEM.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Auth");
        debug
            .field("token", &"***")
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

/// A repository that is reached by an address.
#[derive(Clone, PartialEq, Eq)]
pub struct Remote {
    url: String,
    auth: Option<Auth>,
    login: Option<Login>,
    dial: Option<Dial>,
    timeout: Duration,
}

/// A name and a password for an `http` or `https` address; not printable.
#[derive(Clone, PartialEq, Eq)]
struct Login {
    user: String,
    password: String,
}

/// Where to connect instead of where the name in the address points.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dial {
    host: String,
    port: u16,
}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Remote");
        debug
            .field("url", &self.display_url())
            .field("auth", &self.auth);
        debug.field("dial", &self.dial).finish_non_exhaustive()
    }
}

/// What to fetch, and what to call it here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refspec(String);

impl Refspec {
    /// Fetches a ref into a ref of this repository, which may move in any direction.
    #[must_use]
    pub fn to_ref(source: &RefName, destination: &RefName) -> Self {
        Self(format!("+{source}:{destination}"))
    }

    /// Fetches a ref's objects without giving them a name here.
    #[must_use]
    pub fn objects_of(source: &RefName) -> Self {
        Self(source.to_string())
    }

    /// Fetches one commit by its id, if the remote allows that.
    #[must_use]
    pub fn commit_to_ref(source: ObjectId, destination: &RefName) -> Self {
        Self(format!("+{source}:{destination}"))
    }
}

/// What a remote says that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertised {
    /// Its refs, in the order given; names that Muster would not accept are left out.
    pub refs: Vec<(RefName, ObjectId)>,
    /// The branch its `HEAD` names, if that branch exists.
    pub head: Option<RefName>,
}

impl Remote {
    /// Takes any address that git understands: `https`, `http`, `ssh`, `user@host:path`, a folder.
    pub fn new(url: &str) -> Result<Self, GitError> {
        let remote = Self {
            url: url.to_owned(),
            auth: None,
            login: None,
            dial: None,
            timeout: TRANSFER_TIMEOUT,
        };
        let reason = if url.is_empty() {
            "it is empty"
        } else if url.starts_with('-') {
            "it begins with a dash"
        } else if url.contains(char::is_control) {
            "it contains a control character"
        } else if url.contains("::") && !url.contains("://") && !url.contains('[') {
            "it names a helper program"
        } else {
            return Ok(remote);
        };
        Err(remote.invalid(reason))
    }

    /// Reaches a repository that a coordinator hosts.
    ///
    /// `address` is what is dialled, as `host:port`; the TLS name is `coordinator.muster` whatever
    /// that is. `path` is the path of the repository, as in `git/demo.git`.
    pub fn coordinator(address: &str, path: &str, auth: Auth) -> Result<Self, GitError> {
        let invalid = |reason: &str| GitError::InvalidRemote {
            url: quoted(address),
            reason: reason.to_owned(),
        };
        let (host, port) = address
            .rsplit_once(':')
            .ok_or_else(|| invalid("it is not host:port"))?;
        let port: u16 = port
            .parse()
            .map_err(|_| invalid("its port is not a number"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_plain = |character: char| {
            character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_' | ':' | '%')
        };
        if host.is_empty() || !host.chars().all(is_plain) {
            return Err(invalid("its host is neither a name nor an address"));
        }
        let path = path.trim_start_matches('/');
        let remote = Self::new(&format!("https://{COORDINATOR_NAME}:{port}/{path}"))?;
        let dial = Some(Dial {
            host: host.to_owned(),
            port,
        });
        Ok(Self {
            auth: Some(auth),
            dial,
            ..remote
        })
    }

    /// Adds a token and certificates to an `http` or `https` address.
    #[must_use]
    pub fn with_auth(self, auth: Auth) -> Self {
        Self {
            auth: Some(auth),
            ..self
        }
    }

    /// Adds a name and a password to an `http` or `https` address. They are sent with the first
    /// request and never appear in arguments, errors or `Debug`.
    #[must_use]
    pub fn with_password(self, user: String, password: String) -> Self {
        Self {
            login: Some(Login { user, password }),
            ..self
        }
    }

    /// Bounds how long one transfer may take; the default is one hour.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Gives the address for people: without its user part, which may be a token.
    #[must_use]
    pub fn display_url(&self) -> String {
        without_users(&self.url)
    }

    /// Gives what tells this remote from others in a cache: a coordinator's port is another at each
    /// start, and its repositories are the same.
    pub(crate) fn place(&self) -> String {
        let url = self.display_url();
        match &self.dial {
            Some(dial) => url.replacen(
                &format!("{COORDINATOR_NAME}:{}", dial.port),
                COORDINATOR_NAME,
                1,
            ),
            None => url,
        }
    }

    /// Lists refs that match `patterns`, or all refs if there are none.
    pub async fn ls_remote(&self, git: &Git, patterns: &[&str]) -> Result<Advertised, GitError> {
        let command = git.command(Mode::Hermetic);
        let output = self
            .reach(command)
            .await?
            .args([
                "ls-remote",
                "--quiet",
                "--symref",
                "--end-of-options",
                REMOTE_NAME,
            ])
            .args(patterns)
            .run_ok()
            .await?;
        let head = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter_map(|line| std::str::from_utf8(line).ok())
            .filter_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"))
            .find_map(|name| RefName::parse(name).ok());
        Ok(Advertised {
            refs: parse_ref_lines(&output.stdout, b'\t'),
            head,
        })
    }

    /// Fetches into `repository`: all refs move, or none.
    ///
    /// When this returns, everything that the fetched commits refer to is in the repository. After
    /// an error some of it may be, but no ref has moved.
    pub async fn fetch(
        &self,
        repository: &Repository,
        refspecs: &[Refspec],
    ) -> Result<(), GitError> {
        self.fetch_by(repository.command(), refspecs).await
    }

    /// Fetches from somebody who may have forged or damaged objects: each one is checked.
    pub(crate) async fn fetch_checked(
        &self,
        repository: &Repository,
        refspecs: &[Refspec],
    ) -> Result<(), GitError> {
        let command = repository.command().config("fetch.fsckObjects", "true");
        self.fetch_by(command, refspecs).await
    }

    async fn fetch_by(&self, command: GitCommand, refspecs: &[Refspec]) -> Result<(), GitError> {
        if refspecs.is_empty() {
            return Ok(());
        }
        let lines: String = refspecs
            .iter()
            .map(|Refspec(text)| format!("{text}\n"))
            .collect();
        self.reach(command)
            .await?
            .args([
                "fetch",
                "--quiet",
                "--atomic",
                "--no-tags",
                "--no-write-fetch-head",
            ])
            .args([
                "--no-auto-maintenance",
                "--no-recurse-submodules",
                "--no-prune",
                "--stdin",
            ])
            .args(["--end-of-options", REMOTE_NAME])
            .stdin(lines)
            .run_ok()
            .await?;
        Ok(())
    }

    /// Tells a command where the remote is and who we are, all of it through the environment.
    pub(crate) async fn reach(&self, command: GitCommand) -> Result<GitCommand, GitError> {
        let mut command = command
            .config(format!("remote.{REMOTE_NAME}.url"), &self.url)
            // A person's rules that rewrite addresses mean other remotes; the longest match holds.
            .config(format!("url.{}.insteadOf", self.url), &self.url)
            .config(format!("url.{}.pushInsteadOf", self.url), &self.url)
            .timeout(self.timeout)
            .secret(self.password().unwrap_or_default());
        if let Some(auth) = &self.auth {
            let key = |name: &str| format!("http.{}.{name}", self.url);
            command = command
                .secret(&auth.token)
                // An empty one takes back those of a person's own, which are for others.
                .config(key("extraHeader"), "")
                .config(
                    key("extraHeader"),
                    format!("Authorization: Bearer {}", auth.token),
                )
                // A redirect would carry the token to wherever it points.
                .config(key("followRedirects"), "false");
            if let Some(file) = &auth.ca_file {
                command = command.config(key("sslCAInfo"), file);
            }
        }
        if let Some(Login { user, password }) = &self.login {
            let encoded = STANDARD.encode(format!("{user}:{password}"));
            let key = |name: &str| format!("http.{}.{name}", self.url);
            command = command
                .secret(password)
                .secret(&encoded)
                .config(
                    key("extraHeader"),
                    format!("Authorization: Basic {encoded}"),
                )
                .config(key("followRedirects"), "false");
        }
        if let Some(dial) = &self.dial {
            let addresses = self.resolve(dial).await?;
            let resolve = format!("{COORDINATOR_NAME}:{}:{addresses}", dial.port);
            command = command
                .config("http.curloptResolve", resolve)
                // A person may have forbidden all that they did not think of.
                .config("protocol.https.allow", "always")
                .config("http.proxy", "");
        }
        Ok(command)
    }

    /// Finds the addresses to dial, separated by commas; IPv6 ones stand in brackets.
    async fn resolve(&self, dial: &Dial) -> Result<String, GitError> {
        let written = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        if let Ok(address) = dial.host.parse() {
            return Ok(written(address));
        }
        let found = tokio::net::lookup_host((dial.host.as_str(), dial.port));
        let cannot =
            |error: io::Error| self.invalid(&format!("cannot resolve {}: {error}", dial.host));
        let found = found.await.map_err(cannot)?;
        let mut addresses: Vec<String> = found
            .map(|found| written(found.ip()))
            .take(ADDRESSES_MAX)
            .collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(self.invalid(&format!("{} has no address", dial.host)));
        }
        Ok(addresses.join(","))
    }

    fn invalid(&self, reason: &str) -> GitError {
        GitError::InvalidRemote {
            url: quoted(&self.display_url()),
            reason: reason.to_owned(),
        }
    }

    /// Finds the password in `scheme://user:password@host`.
    fn password(&self) -> Option<&str> {
        let (_, rest) = self.url.split_once("://")?;
        let authority = rest.split('/').next()?;
        let (user, _) = authority.rsplit_once('@')?;
        let (_, password) = user.split_once(':')?;
        (!password.is_empty()).then_some(password)
    }
}

#[cfg(test)]
mod tests {
    use super::{Auth, Remote};

    fn auth() -> Auth {
        Auth {
            token: "s3cret".to_owned(),
            ca_file: None,
        }
    }

    #[test]
    fn the_name_of_a_coordinator_is_fixed_whatever_is_dialled() {
        for (address, port) in [
            ("10.1.2.3:7433", 7433),
            ("login-1:80", 80),
            ("[::1]:9000", 9000),
        ] {
            let remote = Remote::coordinator(address, "/git/a.git", auth()).unwrap();
            assert_eq!(
                remote.display_url(),
                format!("https://coordinator.muster:{port}/git/a.git")
            );
        }
        for address in [
            "",
            "host",
            "host:x",
            "host:70000",
            ":1",
            "a b:1",
            "a,b:1",
            "a/b:1",
        ] {
            assert!(
                Remote::coordinator(address, "git/a.git", auth()).is_err(),
                "{address:?}"
            );
        }
    }

    #[test]
    fn addresses_that_run_programs_are_refused() {
        for url in [
            "",
            "--upload-pack=x",
            "ext::sh -c id",
            "foo::bar",
            "https://a/\nb",
        ] {
            assert!(Remote::new(url).is_err(), "{url:?}");
        }
        for url in [
            "https://a/b.git",
            "git@host:path",
            "/tmp/x",
            "ssh://u@[::1]/x",
            "file:///x",
        ] {
            assert!(Remote::new(url).is_ok(), "{url:?}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let remote = Remote::new("https://ada:pass@host/x.git")
            .unwrap()
            .with_auth(auth());
        let printed = format!("{remote:?} {}", remote.display_url());
        assert!(printed.contains("https://***@host"), "{printed}");
        assert!(
            !printed.contains("pass@") && !printed.contains("s3cret"),
            "{printed}"
        );
    }

    #[tokio::test]
    async fn names_are_resolved_before_they_are_dialled() {
        let remote = Remote::coordinator("localhost:1", "git/a.git", auth()).unwrap();
        let addresses = remote.resolve(remote.dial.as_ref().unwrap()).await.unwrap();
        assert!(
            addresses.contains("127.0.0.1") || addresses.contains("[::1]"),
            "{addresses}"
        );
        let remote = Remote::coordinator("[::1]:1", "git/a.git", auth()).unwrap();
        assert_eq!(
            remote.resolve(remote.dial.as_ref().unwrap()).await.unwrap(),
            "[::1]"
        );
    }
}
