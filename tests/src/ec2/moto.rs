//! The interface of EC2, Auto Scaling, IAM and STS.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Client;
use crate::process::{Process, Program};
use crate::wait::{SOON, until_true};

/// Whether there is capacity to launch instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    Available,
    None,
}

/// What may be wrong with the interface, for everybody but the tester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFault {
    /// Calls come too often.
    Throttled,
    /// An error of its own.
    Broken,
    /// No policy allows it.
    Denied,
    /// Credentials are too old.
    Expired,
    /// No answer, and the connection stays open.
    Hangs,
    /// The connection ends before anything is done.
    Refuses,
    /// The call is executed, then the connection ends without an answer.
    LosesAnswers,
    /// Answers come after some seconds.
    Slow,
    /// Half of an answer.
    Garbage,
    /// The page of somebody in between.
    Portal,
    /// It lists no group. Other calls than that for groups do not meet it.
    NoGroup,
    /// It lists groups without their instances. Other calls than that for groups do not meet it.
    NoInstances,
}

impl ApiFault {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Throttled,
        Self::Broken,
        Self::Denied,
        Self::Expired,
        Self::Hangs,
        Self::Refuses,
        Self::LosesAnswers,
        Self::Slow,
        Self::Garbage,
        Self::Portal,
        Self::NoGroup,
        Self::NoInstances,
    ];

    /// Gives its name, as `faults.py` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throttled => "throttle",
            Self::Broken => "500",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Hangs => "hang",
            Self::Refuses => "refused",
            Self::LosesAnswers => "lost",
            Self::Slow => "slow",
            Self::Garbage => "garbage",
            Self::Portal => "portal",
            Self::NoGroup => "no-group",
            Self::NoInstances => "no-instances",
        }
    }
}

/// Where the folders of machines are, in that of the test.
pub const MACHINES: &str = "machines";

/// A running interface; ended with its value, and all state with it.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    port: u16,
    faults: PathBuf,
    calls: PathBuf,
}

/// Why it cannot be started here, if so.
pub(super) fn missing(source: &Path) -> Option<String> {
    (!python(source).is_file()).then(|| "needs moto: run .ci/cloud".to_owned())
}

/// The interpreter that `.ci/cloud` has set up.
pub(super) fn python(source: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| source.join("target"), PathBuf::from);
    target.join("moto/bin/python")
}

impl Moto {
    /// Starts it on a free port of loopback and waits until it answers. `source` is the repository,
    /// `folder` takes its log and its faults.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(source: &Path, folder: &Path) -> Result<Self> {
        let faults = folder.join("faults");
        std::fs::create_dir_all(&faults)?;
        // Free again at once, since nothing has connected to it.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut process = Program::new(&python(source), folder)
            .args([source.join("tests/cloud/stand_in.py")])
            .args(["127.0.0.1", &port.to_string()])
            .args([folder])
            // The repository is no place for what it compiles.
            .var("PYTHONDONTWRITEBYTECODE", "1")
            .start(folder, "moto")?;
        let client = Client::new(port);
        until_true("moto answers", SOON, || {
            ensure!(process.runs()?, "it ended by itself\n{}", process.errors());
            Ok(client.groups().is_ok())
        })
        .with_context(|| process.errors())?;
        Ok(Self {
            process,
            port,
            faults,
            calls: folder.join("calls"),
        })
    }

    /// Gives its address as the programs of AWS take it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Gives a client of it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.port)
    }

    /// Lets launches fail, as they do when there is no spot capacity, or succeed again. What was asked
    /// for meanwhile is launched then.
    ///
    /// # Errors
    /// The file that says so cannot be written.
    pub fn capacity(&self, capacity: Capacity) -> Result<()> {
        let file = self.faults.join("no-capacity");
        match capacity {
            Capacity::None => std::fs::write(file, "")?,
            Capacity::Available if file.exists() => std::fs::remove_file(file)?,
            Capacity::Available => {}
        }
        Ok(())
    }

    /// Lets calls of an action, or of all where none is named, meet a fault from now on.
    ///
    /// # Errors
    /// The file that says so cannot be written.
    pub fn falter(&self, fault: ApiFault, action: Option<&str>) -> Result<()> {
        let line = format!("{} {}", fault.name(), action.unwrap_or_default());
        // At once and whole, since it may be read at any moment.
        let file = self.faults.join("api.new");
        std::fs::write(&file, line)?;
        Ok(std::fs::rename(file, self.faults.join("api"))?)
    }

    /// Lets all calls be answered again.
    ///
    /// # Errors
    /// The file that says otherwise cannot be removed.
    pub fn recover(&self) -> Result<()> {
        match std::fs::remove_file(self.faults.join("api")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Counts the calls that met each fault, by the fault's name.
    #[must_use]
    pub fn faltered(&self) -> BTreeMap<String, u64> {
        let text = std::fs::read_to_string(self.faults.join("met")).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            *counts.entry(line.to_owned()).or_default() += 1;
        }
        counts
    }

    /// Gives what it was asked so far, one line `WHO SERVICE:ACTION allowed|denied` for each call. Who is a
    /// role, or the access key of somebody without one.
    #[must_use]
    pub fn calls(&self) -> String {
        std::fs::read_to_string(&self.calls).unwrap_or_default()
    }

    /// Gives the end of what it has printed.
    #[must_use]
    pub fn story(&self) -> String {
        let errors = self.process.errors();
        let lines: Vec<&str> = errors.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}
