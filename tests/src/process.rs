//! Programs that a test starts: to their end, or until the test ends them.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A program and how to start it, with nothing of the tester's own environment.
#[derive(Clone, Debug)]
pub struct Program {
    /// Words before the program that change where it runs, such as those of `nsenter`.
    pub wrapper: Vec<OsString>,
    /// The program.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its variables, besides `PATH`.
    pub variables: Vec<(OsString, OsString)>,
    /// Its folder.
    pub folder: PathBuf,
}

impl Program {
    /// Names a program that runs in `folder`.
    #[must_use]
    pub fn new(path: &Path, folder: &Path) -> Self {
        Self {
            wrapper: Vec::new(),
            path: path.to_owned(),
            arguments: Vec::new(),
            variables: Vec::new(),
            folder: folder.to_owned(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn var(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Describes it in a line, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        let name = self
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let arguments = self
            .arguments
            .iter()
            .map(|word| word.to_string_lossy().into_owned());
        std::iter::once(name)
            .chain(arguments)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn command(&self) -> Command {
        let mut words = self
            .wrapper
            .iter()
            .cloned()
            .chain([self.path.clone().into()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.variables.iter().cloned())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            // A group of its own, so that all of it can be ended, and the tester's Ctrl-C is not its.
            .process_group(0);
        command
    }

    /// Starts it; what it prints goes to `NAME.out` and `NAME.err` in `logs`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, logs: &Path, name: &str) -> Result<Process> {
        let append = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("open {}", path.display()))
        };
        let (out, err) = (
            logs.join(format!("{name}.out")),
            logs.join(format!("{name}.err")),
        );
        let child = self
            .command()
            .stdout(append(&out)?)
            .stderr(append(&err)?)
            .spawn()
            .with_context(|| format!("start {}", self.shown()))?;
        Ok(Process {
            child,
            shown: self.shown(),
            out,
            err,
        })
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// # Errors
    /// It cannot be started, or does not end by the deadline (it is killed then).
    pub fn run(&self, logs: &Path, deadline: Duration) -> Result<Output> {
        let file = tempfile::Builder::new().prefix("call-").tempdir_in(logs)?;
        let mut process = self.start(file.path(), "it")?;
        let status = process.ended(deadline)?;
        Ok(Output {
            shown: self.shown(),
            status,
            out: std::fs::read_to_string(&process.out)?,
            err: std::fs::read_to_string(&process.err)?,
        })
    }
}

/// What a program that has ended said.
#[derive(Clone, Debug)]
pub struct Output {
    /// What was called.
    pub shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Output {
    /// Gives the exit code; 128 and the signal's number if it was killed, as shells do.
    #[must_use]
    pub fn code(&self) -> i32 {
        let killed = self.status.signal().map(|signal| 128 + signal);
        self.status.code().or(killed).unwrap_or(-1)
    }

    /// Insists on an exit code.
    ///
    /// # Errors
    /// It was another; the message holds everything the program said.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code() == code,
            "`{}` ended with {}, not {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.shown,
            self.code(),
            self.out,
            self.err
        );
        Ok(self)
    }

    /// Insists on success.
    ///
    /// # Errors
    /// As [`Output::expect`].
    pub fn success(self) -> Result<Self> {
        self.expect(0)
    }

    /// Reads the last line of standard output as JSON.
    ///
    /// # Errors
    /// There is none, or it is not JSON.
    pub fn last_json(&self) -> Result<serde_json::Value> {
        let line = self.out.lines().last().with_context(|| {
            format!("`{}` printed nothing\n--- stderr\n{}", self.shown, self.err)
        })?;
        serde_json::from_str(line).with_context(|| format!("`{}` ended with {line:?}", self.shown))
    }

    /// Reads all of standard output as one JSON document.
    ///
    /// # Errors
    /// It is not one.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.out)
            .with_context(|| format!("`{}` printed {:?}", self.shown, self.out))
    }
}

/// A program that runs; ended with its whole group when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    shown: String,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    /// Gives its process id.
    ///
    /// # Errors
    /// Never in practice: a process that was started has one.
    pub fn id(&self) -> Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process has no id")
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.id()?, signal).with_context(|| format!("signal {}", self.shown))
    }

    /// Kills this process alone, without warning, and waits until it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "{} had ended by itself: {status}\n{}",
                self.shown,
                self.errors()
            );
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Tells whether it still runs.
    ///
    /// # Errors
    /// The system does not know it.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It has not by the deadline; its whole group is killed then.
    pub fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        let what = format!("the end of {}", self.shown);
        let ended = crate::wait::until(&what, deadline, || Ok(self.child.try_wait()?));
        ended.with_context(|| {
            let printed = std::fs::read_to_string(&self.out).unwrap_or_default();
            let shown = format!("{} runs since {:?}", self.shown, begun.elapsed());
            self.end();
            format!(
                "{shown}\n--- stdout\n{printed}\n--- stderr\n{}",
                self.errors()
            )
        })
    }

    /// Gives what it has printed to standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// Gives what it has printed to standard output so far.
    #[must_use]
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }

    fn end(&mut self) {
        if let Ok(id) = self.id() {
            // It may have ended by itself; its group too.
            let _ = kill_process_group(id, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
