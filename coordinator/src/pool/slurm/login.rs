//! Where the commands of a cluster run: here, or on a login host.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// Most bytes of one answer. A busy cluster's whole queue in JSON may be larger; the text is not.
const ANSWER_MAX: usize = 32 << 20;
/// Most bytes of what a command complains.
const COMPLAINT_MAX: usize = 64 << 10;
/// Most characters of a complaint that are passed on.
const LINE_MAX: usize = 300;
/// How long what an ended command has said may still be on its way. A first `ssh` leaves a process
/// behind, which keeps the connection and may keep the pipes.
const TAIL: Duration = Duration::from_secs(5);
/// Exit code of `ssh` for its own troubles.
const SSH_TROUBLE: i32 = 255;
/// What a command's own 255 is turned into on the other side.
const NOT_SSH: i32 = 254;
/// Longest path of a socket, less what `ssh` adds while it makes one.
const SOCKET_PATH_MAX: usize = 107 - 17;
/// Variables that commands here get. Others are not passed on: `sbatch` hands what it has to the job,
/// and some change what it does.
const KEPT: [&str; 7] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "SLURM_CONF",
    "LD_LIBRARY_PATH",
];
/// What answers are read in; full lists of the indices in an array.
const SETTINGS: [(&str, &str); 3] = [
    ("LC_ALL", "C"),
    ("SLURM_BITSTR_LEN", "0"),
    ("SLURM_TIME_FORMAT", "standard"),
];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no program {0}")]
    Missing(String),
    #[error("{what} gave no answer in {} s", .limit.as_secs())]
    TimedOut { what: String, limit: Duration },
    #[error("{what} answered more than {} MiB", ANSWER_MAX >> 20)]
    TooMuch { what: String },
    #[error("no connection to {host}: {said}")]
    Cut { host: String, said: String },
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("{what} failed: {said}")]
    Failed { what: String, said: String },
}

/// What a command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) output: Vec<u8>,
    pub(crate) complaint: String,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Gives the last line of the complaint, or how the command ended.
    pub(crate) fn said(&self) -> String {
        let mut lines = self.complaint.lines().rev().map(str::trim);
        match (lines.find(|line| !line.is_empty()), self.code) {
            (Some(line), _) => plain(line),
            (None, Some(code)) => format!("exit code {code}"),
            (None, None) => "ended by a signal".to_owned(),
        }
    }
}

/// Makes a line of others fit for messages.
pub(crate) fn plain(line: &str) -> String {
    let printable = line.chars().filter(|letter| !letter.is_control());
    printable.take(LINE_MAX).collect()
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One command of Slurm.
    pub command: Duration,
    /// Sending the program to the cluster.
    pub staging: Duration,
    /// Wait before the first retry over a connection that broke; the next ones wait longer.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Slurm's own clients give up after some tens of seconds.
            command: Duration::from_secs(60),
            staging: Duration::from_secs(600),
            retry: Duration::from_millis(1_500),
        }
    }
}

/// Tries over a connection that broke, of what is safe to repeat.
const TRIES: u32 = 4;

/// Whether a command may be given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Safe,
    Never,
}

/// What a command reads.
#[derive(Clone, Copy)]
enum Input<'a> {
    Bytes(&'a [u8]),
    File(&'a Path),
}

/// Where commands run.
#[derive(Debug)]
pub(crate) struct Login {
    limits: Limits,
    variables: BTreeMap<OsString, OsString>,
    remote: Option<Remote>,
}

#[derive(Debug)]
struct Remote {
    host: String,
    options: Vec<String>,
    control: PathBuf,
    /// Removed at the end; there only when the home's path is too long for a socket.
    _folder: Option<tempfile::TempDir>,
}

impl Login {
    /// Runs commands on this machine, which find programs by the `PATH` in `variables`.
    pub(crate) fn here(variables: &BTreeMap<OsString, OsString>, limits: Limits) -> Self {
        let kept = |(name, value): (&OsString, &OsString)| {
            KEPT.iter()
                .any(|kept| name == kept)
                .then(|| (name.clone(), value.clone()))
        };
        let mut kept: BTreeMap<_, _> = variables.iter().filter_map(kept).collect();
        kept.extend(SETTINGS.map(|(name, value)| (name.into(), value.into())));
        Self {
            limits,
            variables: kept,
            remote: None,
        }
    }

    /// Runs commands on a login host over one connection, whose socket lies below `home`.
    pub(crate) fn at(
        host: &str,
        options: &[String],
        home: &Path,
        variables: &BTreeMap<OsString, OsString>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let folder_of = |source| Error::Io {
            what: "cannot make a folder for the connection to the login host".to_owned(),
            source,
        };
        let mut hash = blake3::Hasher::new();
        for part in std::iter::once(host).chain(options.iter().map(String::as_str)) {
            hash.update(part.as_bytes()).update(b"\0");
        }
        // Its own name, not %C: that is three times as long.
        let name = hash.finalize().to_hex()[..12].to_owned();
        let usual = home.join("ssh");
        let (control, folder) = if usual.join(&name).as_os_str().len() <= SOCKET_PATH_MAX {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&usual)
                .map_err(folder_of)?;
            (usual.join(&name), None)
        } else {
            let folder = tempfile::Builder::new()
                .prefix("muster-ssh-")
                .tempdir()
                .map_err(folder_of)?;
            (folder.path().join(&name), Some(folder))
        };
        // The connection is the user's own: agents, jump hosts and keys are found by variables.
        Ok(Self {
            limits,
            variables: variables.clone(),
            remote: Some(Remote {
                host: host.to_owned(),
                options: options.to_vec(),
                control,
                _folder: folder,
            }),
        })
    }

    /// Runs a command to its end. What it reads is `input`; nothing of it is ever an argument.
    ///
    /// # Errors
    /// There is no answer, and it is not known what the command has done.
    pub(crate) async fn run(
        &self,
        words: &[&str],
        input: &[u8],
        repeat: Repeat,
    ) -> Result<Answer, Error> {
        let (input, limit) = (Input::Bytes(input), self.limits.command);
        self.run_within(words, input, repeat, limit).await
    }

    async fn run_within(
        &self,
        words: &[&str],
        input: Input<'_>,
        repeat: Repeat,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let what = words.first().copied().unwrap_or_default();
        let tries = match (repeat, &self.remote) {
            (Repeat::Safe, Some(_)) => TRIES,
            _ => 1,
        };
        let mut tried = 1;
        loop {
            let asked = self.once(what, words, input);
            let asked = tokio::time::timeout(limit, asked).await;
            let answer = asked.unwrap_or_else(|_| {
                Err(Error::TimedOut {
                    what: what.to_owned(),
                    limit,
                })
            });
            match answer {
                Err(Error::Cut { .. }) if tried < tries => {
                    tokio::time::sleep(self.limits.retry * tried).await;
                    tried += 1;
                }
                answer => return answer,
            }
        }
    }

    async fn once(&self, what: &str, words: &[&str], input: Input<'_>) -> Result<Answer, Error> {
        let io = |source: std::io::Error| Error::Io {
            what: format!("cannot run {what}"),
            source,
        };
        let mut command = self.command(words);
        let bytes = match input {
            Input::Bytes(bytes) => bytes,
            Input::File(path) => {
                command.stdin(std::fs::File::open(path).map_err(io)?);
                b""
            }
        };
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let program = self.remote.as_ref().map_or(what, |_| "ssh");
                Error::Missing(program.to_owned())
            }
            _ => io(error),
        })?;
        let mut running = Running(child);
        let child = &mut running.0;
        let stdin = child.stdin.take();
        let (mut output, mut complaint) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // One that does not read says why by its end.
                let _ = stdin.write_all(bytes).await;
                let _ = stdin.shutdown().await;
            }
            Ok(())
        };
        let (heard, status) = {
            let listen = async {
                tokio::try_join!(
                    read(stdout, &mut output, ANSWER_MAX),
                    read(stderr, &mut complaint, COMPLAINT_MAX),
                    feed
                )
            };
            tokio::pin!(listen);
            tokio::select! {
                heard = &mut listen => (Some(heard), child.wait().await),
                status = child.wait() => {
                    (tokio::time::timeout(TAIL, &mut listen).await.ok(), status)
                }
            }
        };
        match heard.unwrap_or(Ok(((), (), ()))) {
            Ok(_) => {}
            Err(Unheard::TooMuch) => {
                return Err(Error::TooMuch {
                    what: what.to_owned(),
                });
            }
            Err(Unheard::Io(source)) => return Err(io(source)),
        }
        let answer = Answer {
            code: status.map_err(io)?.code(),
            output,
            complaint: String::from_utf8_lossy(&complaint).into_owned(),
        };
        match &self.remote {
            Some(remote) if answer.code == Some(SSH_TROUBLE) => Err(Error::Cut {
                host: remote.host.clone(),
                said: answer.said(),
            }),
            _ => Ok(answer),
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = match &self.remote {
            None => {
                let (program, arguments) = words.split_first().unwrap_or((&"", &[]));
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
            Some(remote) => remote.command(words),
        };
        command
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // So that what it starts ends with it.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Puts a copy of a file in place, whole or not at all. Its folder is made, for its owner alone.
    ///
    /// # Errors
    /// It is not there, or an older one still is.
    pub(crate) async fn put_file(
        &self,
        path: &str,
        mode: &str,
        file: &Path,
        bytes: u64,
    ) -> Result<(), Error> {
        let size = bytes.to_string();
        let words = ["sh", "-c", PUT, "sh", path, mode, &size];
        let (input, limit) = (Input::File(file), self.limits.staging);
        let answer = self.run_within(&words, input, Repeat::Safe, limit).await?;
        Self::done(&format!("writing {path}"), &answer)
    }

    /// Gives the bytes of a file; `None` when there is none.
    ///
    /// # Errors
    /// It is not known whether there is one.
    pub(crate) async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let words = ["sh", "-c", READ, "sh", path];
        let answer = self.run(&words, b"", Repeat::Safe).await?;
        if answer.code == Some(ABSENT) {
            return Ok(None);
        }
        Self::done(&format!("reading {path}"), &answer)?;
        Ok(Some(answer.output))
    }

    /// Turns the end of a command that has to succeed into an error if it has not.
    pub(crate) fn done(what: &str, answer: &Answer) -> Result<(), Error> {
        if answer.is_success() {
            return Ok(());
        }
        Err(Error::Failed {
            what: what.to_owned(),
            said: answer.said(),
        })
    }
}

/// Exit code of [`READ`] when there is no such file.
const ABSENT: i32 = 44;
const READ: &str = r#"[ -e "$1" ] || exit 44; exec cat -- "$1""#;
/// A cut connection looks like the end of the file: hence the size.
const PUT: &str = r#"umask 077
mkdir -p -- "${1%/*}" || exit 1
part=$1.part.$$
trap 'rm -f -- "$part"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$part" || exit 1
size=$(wc -c <"$part") || exit 1
if [ "$size" -ne "$3" ]; then
    echo "got $size of $3 bytes" >&2
    exit 1
fi
chmod "$2" "$part" && mv -f -- "$part" "$1""#;

impl Remote {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command
            // What is given first counts, so the site's own options do.
            .args(&self.options)
            .args(["-T", "-x", "-a"])
            .args(["-o", "BatchMode=yes"])
            .args(["-o", "ConnectTimeout=10"])
            .args(["-o", "ServerAliveInterval=15"])
            .args(["-o", "ServerAliveCountMax=3"])
            .args(["-o", "ControlMaster=auto"])
            .args(["-o", "ControlPersist=60"])
            .arg("-o")
            .arg(self.control_option())
            .arg("--")
            .arg(&self.host)
            .arg(self.line(words));
        command
    }

    fn control_option(&self) -> OsString {
        // A percent sign would begin a token; blanks separate words unless quoted.
        let path = self.control.to_string_lossy().replace('%', "%%");
        let path = path.replace('\\', "\\\\").replace('"', "\\\"");
        format!("ControlPath=\"{path}\"").into()
    }

    /// Gives one line for the login shell of the other side, whichever that is.
    fn line(&self, words: &[&str]) -> String {
        let quoted: Vec<String> = words
            .iter()
            .map(|word| super::script::shell(word))
            .collect();
        let mut script = String::from(FOREIGN);
        for (name, value) in SETTINGS {
            script.push_str(&format!("export {name}={value}; "));
        }
        script.push_str(&quoted.join(" "));
        // `sbatch` itself may end with the code that `ssh` uses.
        script.push_str(&format!(
            "; code=$?; [ $code -ne {SSH_TROUBLE} ] || code={NOT_SSH}; exit $code"
        ));
        format!("exec sh -c {}", super::script::shell(&script))
    }
}

/// Forgets the user's own defaults for Slurm's commands, which would come before ours.
const FOREIGN: &str = "for v in $(env | sed -n \
    's/^\\(S\\(BATCH\\|QUEUE\\|CANCEL\\|INFO\\)_[A-Z_]*\\)=.*/\\1/p'); do unset \"$v\"; done; ";

/// A process that ends with all it has started when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            // It may have ended just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

enum Unheard {
    TooMuch,
    Io(std::io::Error),
}

async fn read(
    pipe: Option<impl AsyncRead + Unpin>,
    into: &mut Vec<u8>,
    most: usize,
) -> Result<(), Unheard> {
    let Some(mut pipe) = pipe else {
        return Ok(());
    };
    while pipe.read_buf(into).await.map_err(Unheard::Io)? > 0 {
        if into.len() > most {
            return Err(Unheard::TooMuch);
        }
    }
    Ok(())
}
