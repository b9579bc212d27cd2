//! The git executable and one invocation of it.
//!
//! The child is started without a closure between fork and exec, by an absolute path, so that the
//! standard library can use `posix_spawn`. It leads its own process group: a deadline, or dropping
//! the future, kills git together with its transport helpers.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::address::without_users;
use crate::environment::{
    CONFIG, CONFIG_HERMETIC, ENVIRONMENT, ENVIRONMENT_HERMETIC, PASSED, PASSED_FOR_USER,
};
use crate::error::GitError;
use crate::names::quoted;
use crate::version::{MINIMUM_VERSION, Version};

/// How long a command without network may take; a checkout of a huge tree on a slow disk fits.
pub(crate) const LOCAL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How much standard output is held unless the caller says otherwise: 100 000 refs fit.
const STDOUT_BYTES_MAX: usize = 16 << 20;
/// How much of the end of standard error is kept unless the caller says otherwise.
const STDERR_BYTES_MAX: usize = 16 << 10;
/// How many characters of an argument list an error repeats.
const COMMAND_CHARACTERS_MAX: usize = 400;
/// How often git is asked for its version if something kills it.
const VERSION_TRIES: u32 = 5;
/// How long pipes are read after git has ended: only what a hook left running can still hold them.
const PIPE_GRACE: Duration = Duration::from_secs(2);

/// Whose settings a command obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Muster's own repositories: no configuration but the repository's and Muster's, no hooks, no
    /// filters.
    Hermetic,
    /// A person's own checkout: their configuration, hooks, credential helpers and signing stay.
    UserRepository,
}

/// A git executable that is new enough; cheap to clone.
#[derive(Clone, Debug)]
pub struct Git {
    executable: Arc<Path>,
    version: Version,
}

impl Git {
    /// Finds git in `PATH` and checks its version against [`MINIMUM_VERSION`].
    pub async fn find() -> Result<Self, GitError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let executable = env::split_paths(&path)
            .map(|folder| folder.join("git"))
            .find(|candidate| candidate.is_absolute() && is_executable(candidate))
            .ok_or(GitError::NotFound)?;
        Self::at(&executable).await
    }

    /// Takes the git at `executable` and checks its version against [`MINIMUM_VERSION`].
    pub async fn at(executable: &Path) -> Result<Self, GitError> {
        let executable = std::path::absolute(executable)
            .map_err(GitError::file("find the absolute path of", executable))?;
        let unknown = Version {
            major: 0,
            minor: 0,
            patch: 0,
        };
        let git = Self {
            executable: executable.as_path().into(),
            version: unknown,
        };
        let mut tries = 0;
        let output = loop {
            tries += 1;
            match git.command(Mode::Hermetic).arg("--version").run_ok().await {
                // Somebody has killed it, which says nothing about it.
                Err(GitError::Failed {
                    exit_code: None, ..
                }) if tries < VERSION_TRIES => {}
                ended => break ended?,
            }
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = Version::parse(&text) else {
            return Err(GitError::UnknownVersion {
                executable,
                output: quoted(&text),
            });
        };
        if version < MINIMUM_VERSION {
            return Err(GitError::TooOld {
                executable,
                found: version,
            });
        }
        Ok(Self { version, ..git })
    }

    /// Tells the version of the executable.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Gives the absolute path of the executable.
    #[must_use]
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// Begins an invocation.
    pub fn command(&self, mode: Mode) -> GitCommand {
        GitCommand {
            executable: Arc::clone(&self.executable),
            mode,
            arguments: Vec::new(),
            environment: Vec::new(),
            config: Vec::new(),
            secrets: Vec::new(),
            directory: None,
            stdin: Vec::new(),
            stdout_bytes_max: STDOUT_BYTES_MAX,
            stderr_bytes_max: STDERR_BYTES_MAX,
            timeout: LOCAL_TIMEOUT,
            in_foreground: false,
        }
    }
}

fn is_executable(candidate: &Path) -> bool {
    candidate.is_file() && rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What a finished command left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit code; `None` when a signal ended the command.
    pub exit_code: Option<i32>,
    /// Standard output, at most as long as was allowed.
    pub stdout: Vec<u8>,
    /// The trimmed end of standard error, without secrets.
    pub stderr: String,
    /// Whether the command was ended because it had more to say than was allowed.
    pub truncated: bool,
}

impl Output {
    /// Gives standard output as text, without the line break at its end.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Gives standard output as a path, whose bytes need not be text, without the line break after it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        let path = self.stdout.strip_suffix(b"\n").unwrap_or(&self.stdout);
        PathBuf::from(OsStr::from_bytes(path))
    }
}

/// One invocation of git, built step by step and then run.
#[must_use = "a command does nothing until it is run"]
pub struct GitCommand {
    executable: Arc<Path>,
    mode: Mode,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    config: Vec<(String, OsString)>,
    secrets: Vec<String>,
    directory: Option<PathBuf>,
    stdin: Vec<u8>,
    stdout_bytes_max: usize,
    stderr_bytes_max: usize,
    timeout: Duration,
    in_foreground: bool,
}

impl GitCommand {
    /// Adds one argument; errors repeat it, so it must hold no secret.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments; errors repeat them, so they must hold no secret.
    pub fn args<I>(mut self, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets a configuration value for this command only, above every file.
    pub fn config(mut self, key: impl Into<String>, value: impl AsRef<OsStr>) -> Self {
        self.config.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// Names a text that must never appear in an error or in captured standard error.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        let secret = secret.into();
        if !secret.is_empty() {
            self.secrets.push(secret);
        }
        self
    }

    /// Acts on the repository whose git folder this is; nothing is searched for.
    pub fn git_dir(self, folder: &Path) -> Self {
        self.env("GIT_DIR", folder)
    }

    /// Runs inside a folder instead of the root of the file system.
    pub fn directory(mut self, folder: &Path) -> Self {
        self.directory = Some(folder.to_owned());
        self
    }

    /// Gives the command something to read; without this it reads an empty input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Bounds the standard output that is held, in bytes; the default is 16 MiB.
    pub fn stdout_limit(mut self, bytes_max: usize) -> Self {
        self.stdout_bytes_max = bytes_max;
        self
    }

    /// Bounds how much of the end of standard error is kept, in bytes; the default is 16 KiB.
    pub(crate) fn stderr_limit(mut self, bytes_max: usize) -> Self {
        self.stderr_bytes_max = bytes_max;
        self
    }

    /// Leaves the command in our own process group, so that a person's hook or key may ask them on the
    /// terminal: from a group of its own it would be stopped for that. Ctrl-C reaches it too, and a
    /// deadline ends only git itself.
    pub fn in_foreground(mut self) -> Self {
        self.in_foreground = true;
        self.env("SSH_ASKPASS_REQUIRE", "never")
    }

    /// Bounds how long the command may run; the default is 15 minutes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs the command to its end, whatever its exit code.
    ///
    /// More output than allowed is an error. After any error the command may have had effects.
    pub async fn run(self) -> Result<Output, GitError> {
        let limit_bytes = self.stdout_bytes_max;
        let described = self.describe();
        let output = self.run_truncated().await?;
        if output.truncated {
            return Err(GitError::OutputTooLong {
                command: described,
                limit_bytes,
            });
        }
        Ok(output)
    }

    /// Runs the command to its end; any exit code but 0 is an error.
    pub async fn run_ok(self) -> Result<Output, GitError> {
        let described = self.describe();
        let output = self.run().await?;
        match output.exit_code {
            Some(0) => Ok(output),
            exit_code => Err(GitError::Failed {
                command: described,
                exit_code,
                stderr: output.stderr,
            }),
        }
    }

    /// Runs the command, and ends it as soon as it has printed as much as is allowed.
    pub async fn run_truncated(self) -> Result<Output, GitError> {
        let bytes_max = self.stdout_bytes_max;
        let mut stdout = Vec::new();
        let output = self
            .run_streaming(|chunk| {
                let room = bytes_max - stdout.len();
                stdout.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
                if chunk.len() > room {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .await?;
        Ok(Output { stdout, ..output })
    }

    /// Runs the command and hands each piece of standard output to `sink`, which may end it.
    ///
    /// The returned output has an empty `stdout`; it is `truncated` if the sink broke off.
    pub async fn run_streaming(
        self,
        sink: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<Output, GitError> {
        let command = self.describe();
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.drive(sink)).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(source)) => Err(GitError::Process { command, source }),
            Err(_) => Err(GitError::TimedOut {
                command,
                after: timeout,
            }),
        }
    }

    /// Gives the prepared process for a caller that streams both ways itself.
    ///
    /// Input, bounds and timeout set on this command are not part of it; standard input, output and
    /// error are as tokio sets them. The process leads its own group and is killed when dropped.
    #[must_use]
    pub fn into_process(self) -> Command {
        let mut process = Command::new(&*self.executable);
        process.env_clear();
        let passed_for_user = if self.mode == Mode::UserRepository {
            PASSED_FOR_USER
        } else {
            Default::default()
        };
        for name in PASSED.iter().chain(passed_for_user) {
            if let Some(value) = env::var_os(name) {
                process.env(name, value);
            }
        }
        process.envs(ENVIRONMENT.iter().copied());
        let mut config: Vec<(&str, &OsStr)> = Vec::new();
        config.extend(CONFIG.iter().map(|(key, value)| (*key, OsStr::new(*value))));
        if self.mode == Mode::Hermetic {
            process.envs(ENVIRONMENT_HERMETIC.iter().copied());
            config.extend(
                CONFIG_HERMETIC
                    .iter()
                    .map(|(key, value)| (*key, OsStr::new(*value))),
            );
        }
        config.extend(
            self.config
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_os_str())),
        );
        process.env("GIT_CONFIG_COUNT", config.len().to_string());
        for (index, (key, value)) in config.into_iter().enumerate() {
            process.env(format!("GIT_CONFIG_KEY_{index}"), key);
            process.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        process.envs(self.environment.iter().map(|(name, value)| (name, value)));
        process.current_dir(self.directory.as_deref().unwrap_or(Path::new("/")));
        process.args(&self.arguments).kill_on_drop(true);
        if !self.in_foreground {
            process.process_group(0);
        }
        process
    }

    /// Prints the argument list for an error message: bounded and without secrets.
    pub(crate) fn describe(&self) -> String {
        let mut text = "git".to_owned();
        for argument in &self.arguments {
            let argument = argument.to_string_lossy();
            let plain = !argument.is_empty() && !argument.contains([' ', '\n', '\0', '"']);
            text.push(' ');
            text.push_str(&if plain {
                argument.into_owned()
            } else {
                format!("{argument:?}")
            });
        }
        let text = redact(&text, &self.secrets);
        match text.char_indices().nth(COMMAND_CHARACTERS_MAX) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
            None => text,
        }
    }

    async fn drive(mut self, mut sink: impl FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<Output> {
        let stdin = std::mem::take(&mut self.stdin);
        let secrets = std::mem::take(&mut self.secrets);
        let stderr_bytes_max = self.stderr_bytes_max;
        let in_foreground = self.in_foreground;
        let mut process = self.into_process();
        process.stdin(if stdin.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        let mut child = process
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut group = ProcessGroup::of(&child);
        if in_foreground {
            group.released();
        }
        let mut pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut stderr = Vec::new();
        let mut truncated = false;
        let status = {
            let mut keep_end = |chunk: &[u8]| {
                stderr.extend_from_slice(chunk);
                let surplus = stderr.len().saturating_sub(stderr_bytes_max);
                stderr.drain(..surplus);
                ControlFlow::Continue(())
            };
            let pump = async {
                let feed = async {
                    // A command that ends without reading everything tells so by its exit code.
                    if let Some(mut pipe) = pipes.0.take() {
                        let _ = pipe.write_all(&stdin).await;
                    }
                };
                let (sunk, kept, ()) = tokio::join!(
                    pour(pipes.1.take(), &mut sink),
                    pour(pipes.2.take(), &mut keep_end),
                    feed
                );
                kept.and(sunk)
            };
            tokio::pin!(pump);
            tokio::select! {
                flow = &mut pump => {
                    if flow?.is_break() {
                        truncated = true;
                        group.kill();
                        // It may be in ours; one that has gone already needs no more.
                        let _ = child.start_kill();
                    }
                    child.wait().await?
                }
                status = child.wait() => {
                    group.released();
                    if let Ok(flow) = tokio::time::timeout(PIPE_GRACE, pump).await {
                        truncated = flow?.is_break();
                    }
                    status?
                }
            }
        };
        group.released();
        let stderr = redact(String::from_utf8_lossy(&stderr).trim(), &secrets);
        Ok(Output {
            exit_code: status.code(),
            stdout: Vec::new(),
            stderr,
            truncated,
        })
    }
}

/// Reads a pipe to its end, or until `sink` has had enough.
async fn pour(
    pipe: Option<impl AsyncRead + Unpin>,
    sink: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let Some(mut pipe) = pipe else {
        return Ok(ControlFlow::Continue(()));
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = pipe.read(&mut buffer).await?;
        let chunk = buffer.get(..length).unwrap_or_default();
        if chunk.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        if sink(chunk).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// The process group of a child that has not been waited for; killed when dropped.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(Pid::from_raw),
        )
    }

    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // The group may already be gone; there is nothing left to do then.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }

    /// Forgets the group, because its leader was waited for and the id may be given to others.
    fn released(&mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
    }
}

fn redact(text: &str, secrets: &[String]) -> String {
    let shown = secrets.iter().fold(text.to_owned(), |text, secret| {
        text.replace(secret.as_str(), "***")
    });
    // Git names addresses of a person's own configuration as well.
    without_users(&shown)
}
