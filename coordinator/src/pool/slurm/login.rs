//! Where the commands of a cluster run: here, or on a login host.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use coordinator_core::limits;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::shells;

/// Most bytes of one answer. A busy cluster's whole queue in JSON may be larger; the text is not.
const ANSWER_MAX: usize = 32 << 20;
/// Most bytes of what a command complains.
const COMPLAINT_MAX: usize = 64 << 10;
/// Most bytes that a login shell may say by itself.
const GREETING_MAX: usize = 256 << 10;
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
/// The line at which an answer from the other side begins: login shells may greet.
const MARK: &str = "=== muster begins ===";
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
    #[error("no answer from {place} in {} s while {step}", .limit.as_secs())]
    TimedOut {
        place: String,
        step: String,
        limit: Duration,
    },
    #[error("more than {} MiB came from {place} while {step}", ANSWER_MAX >> 20)]
    TooMuch { place: String, step: String },
    #[error("no connection to {host}: {said}")]
    Cut { host: String, said: String },
    #[error("the login shell on {host} ran nothing while {step}: {said}")]
    Silent {
        host: String,
        step: String,
        said: String,
    },
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
    /// A submission, which ends itself then, wherever it runs and whoever still waits for it.
    pub submission: Duration,
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
            submission: SUBMISSION,
            staging: Duration::from_secs(600),
            retry: Duration::from_millis(1_500),
        }
    }
}

/// Most time of a submission. `sbatch` itself would go on trying for minutes.
const SUBMISSION: Duration = Duration::from_secs(20);
/// How long the controller may take to note what a submission that has ended sent to it.
const NOTED: Duration = Duration::from_secs(8);
// Whatever becomes of the process or the connection that a submission was given by, it must not arrive
// any more when the same order can be placed again.
const _: () =
    assert!(SUBMISSION.as_millis() + NOTED.as_millis() < limits::ORDER_SETTLES.ms() as u128);

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

    /// Gives where commands run, for people.
    pub(crate) fn place(&self) -> &str {
        self.remote.as_ref().map_or("this host", |r| &r.host)
    }

    /// Runs a command to its end, which is the `step` that people are told of: what is being done.
    /// What it reads is `input`; nothing of it is ever an argument.
    ///
    /// # Errors
    /// There is no answer, and it is not known what the command has done.
    pub(crate) async fn run(
        &self,
        step: &str,
        words: &[&str],
        input: &[u8],
        repeat: Repeat,
    ) -> Result<Answer, Error> {
        let (input, limit) = (Input::Bytes(input), self.limits.command);
        self.run_within(step, words, input, repeat, limit).await
    }

    /// Runs a command that reads `script` and is never given twice: not before it has the script as a
    /// whole, and not longer than [`Limits::submission`], also if nobody waits for it any more.
    ///
    /// # Errors
    /// There is no answer, and it is not known what the command has done.
    pub(crate) async fn submit(
        &self,
        step: &str,
        words: &[&str],
        script: &[u8],
    ) -> Result<Answer, Error> {
        let limit = self.limits.submission.min(self.limits.command);
        let limit = limit.as_secs().max(1).to_string();
        // A shell sees no difference, and neither does `sbatch`.
        let mut script = script.to_vec();
        if script.last() != Some(&b'\n') {
            script.push(b'\n');
        }
        let bytes = script.len().to_string();
        let before = ["sh", "-c", shells::BOUNDED, "sh", &limit];
        let whole = ["sh", "-c", shells::WHOLE, "sh", &bytes];
        let words = [&before, &whole, words].concat();
        self.run(step, &words, &script, Repeat::Never).await
    }

    async fn run_within(
        &self,
        step: &str,
        words: &[&str],
        input: Input<'_>,
        repeat: Repeat,
        limit: Duration,
    ) -> Result<Answer, Error> {
        let tries = match (repeat, &self.remote) {
            (Repeat::Safe, Some(_)) => TRIES,
            _ => 1,
        };
        let mut tried = 1;
        loop {
            let asked = self.once(step, words, input);
            let asked = tokio::time::timeout(limit, asked).await;
            let answer = asked.unwrap_or_else(|_| {
                Err(Error::TimedOut {
                    place: self.place().to_owned(),
                    step: step.to_owned(),
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

    async fn once(&self, step: &str, words: &[&str], input: Input<'_>) -> Result<Answer, Error> {
        let program = words.first().copied().unwrap_or_default();
        let program = self.remote.as_ref().map_or(program, |_| "ssh");
        let io = |source: std::io::Error| Error::Io {
            what: format!("cannot run {program} for {step}"),
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
            std::io::ErrorKind::NotFound => Error::Missing(program.to_owned()),
            _ => io(error),
        })?;
        let mut running = Running(child);
        let child = &mut running.0;
        let stdin = child.stdin.take();
        let (mut output, mut complaint) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (began, begun) = oneshot::channel();
        let mark = self.remote.as_ref().map(|_| began);
        let is_marked = mark.is_some();
        let feed = async {
            // The other side counts its time from there; nothing is sent that might begin later.
            if is_marked && begun.await.is_err() {
                return Ok(());
            }
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
                    read(stdout, &mut output, ANSWER_MAX, mark),
                    read(stderr, &mut complaint, COMPLAINT_MAX, None),
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
                    place: self.place().to_owned(),
                    step: step.to_owned(),
                });
            }
            Err(Unheard::Io(source)) => return Err(io(source)),
        }
        let has_begun = self.remote.is_none() || {
            without_greeting(&mut complaint);
            without_greeting(&mut output)
        };
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
            Some(remote) if !has_begun => Err(Error::Silent {
                host: remote.host.clone(),
                step: step.to_owned(),
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
        let words = ["sh", "-c", shells::PUT, "sh", path, mode, &size];
        let (input, limit) = (Input::File(file), self.limits.staging);
        let step = format!("writing {path}");
        let answer = self.run_within(&step, &words, input, Repeat::Safe, limit);
        Self::done(&step, &answer.await?)
    }

    /// Gives the bytes of a file that nobody else could have written; `None` when there is none.
    ///
    /// # Errors
    /// It is not known whether there is one.
    pub(crate) async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let words = ["sh", "-c", &shells::read(), "sh", path];
        let step = format!("reading {path}");
        let answer = self.run(&step, &words, b"", Repeat::Safe).await?;
        if answer.code == Some(shells::ABSENT) {
            return Ok(None);
        }
        Self::done(&step, &answer)?;
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
        script.push_str(&format!(
            "printf '\\n{MARK}\\n'; printf '\\n{MARK}\\n' >&2; "
        ));
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

/// Reads to the end; tells when the answer begins.
async fn read(
    pipe: Option<impl AsyncRead + Unpin>,
    into: &mut Vec<u8>,
    most: usize,
    mut mark: Option<oneshot::Sender<()>>,
) -> Result<(), Unheard> {
    let Some(mut pipe) = pipe else {
        return Ok(());
    };
    while pipe.read_buf(into).await.map_err(Unheard::Io)? > 0 {
        if into.len() > most {
            return Err(Unheard::TooMuch);
        }
        let Some(began) = mark.take() else {
            continue;
        };
        if answer(into).is_some() {
            // Who does not wait for it any more needs not be told.
            let _ = began.send(());
        } else if into.len() > GREETING_MAX {
            return Err(Unheard::TooMuch);
        } else {
            mark = Some(began);
        }
    }
    Ok(())
}

/// Gives where the answer begins in what came, behind all that a login shell says by itself.
fn answer(came: &[u8]) -> Option<usize> {
    let line = format!("\n{MARK}\n");
    let mut places = came.windows(line.len());
    places
        .position(|place| place == line.as_bytes())
        .map(|place| place + line.len())
}

/// Takes away what a login shell said by itself; tells whether there was an end to it.
fn without_greeting(came: &mut Vec<u8>) -> bool {
    let begins = answer(came);
    came.drain(..begins.unwrap_or(0));
    begins.is_some()
}
