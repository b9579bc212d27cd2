//! Checks of a machine that coordinators and workers both make: what was found, and what to do about
//! it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use muster_git::{Git, MINIMUM_VERSION};
use serde_json::{Value, json};

/// Files below which a disk soon has no room for another checkout.
pub const INODES_WARN: u64 = 100_000;
/// A clock that stands before this program was made makes certificates invalid. 2026-01-01.
const CLOCK_MIN: u64 = 1_767_225_600;
/// Each attempt needs pipes, spools and connections.
const FILES_WARN: u64 = 1024;

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is to be done.
    Ok,
    /// It works, and might not for long or not as well as it could.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// Returns its name for people and programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing is to be done.
    pub advice: String,
    /// Sizes of its parts, for programs.
    pub bytes: BTreeMap<&'static str, u64>,
}

impl Check {
    /// Makes one after which nothing is to be done.
    pub fn ok(name: &'static str, found: impl fmt::Display) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.to_string(),
            advice: String::new(),
            bytes: BTreeMap::new(),
        }
    }

    /// Makes one of something that works so far.
    pub fn warn(name: &'static str, found: impl fmt::Display, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            advice: advice.into(),
            ..Self::ok(name, found)
        }
    }

    /// Makes one of something that does not work.
    pub fn fail(name: &'static str, found: impl fmt::Display, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(name, found, advice)
        }
    }

    /// Gives it for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut listed = json!({
            "check": self.name,
            "verdict": self.verdict.as_str(),
            "found": self.found,
            "advice": self.advice,
        });
        if let (false, Some(listed)) = (self.bytes.is_empty(), listed.as_object_mut()) {
            listed.insert("bytes".to_owned(), json!(self.bytes));
        }
        listed
    }
}

/// Looks for a git that is new enough.
pub async fn git() -> Check {
    match Git::find().await {
        Ok(git) => Check::ok(
            "git",
            format!("{} at {}", git.version(), git.executable().display()),
        ),
        Err(error) => Check::fail(
            "git",
            crate::failure::chain(&error),
            format!("install git {MINIMUM_VERSION} or newer"),
        ),
    }
}

/// Gives a folder, or what exists of the way to it.
#[must_use]
pub fn existing(folder: &Path) -> PathBuf {
    folder
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// Writes a file without a name into `there`, which is `folder` or what exists of the way to it.
pub fn writable(name: &'static str, folder: &Path, there: &Path, advice: &str) -> Check {
    let probed = tempfile::tempfile_in(there).and_then(|mut file| {
        file.write_all(b"muster")?;
        file.sync_all()
    });
    match probed {
        Ok(()) if there == folder => {
            Check::ok(name, format!("{} can be written", folder.display()))
        }
        Ok(()) => Check::ok(name, format!("{} is made on first use", folder.display())),
        Err(error) => Check::fail(name, format!("{}: {error}", there.display()), advice),
    }
}

/// Insists on a clock that has been set; `shown` is what it says.
pub fn clock(shown: impl fmt::Display) -> Check {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    match now.map(|now| now.as_secs()) {
        Ok(seconds) if seconds > CLOCK_MIN => Check::ok("clock", shown),
        _ => Check::fail(
            "clock",
            "it stands long before today",
            "set it: certificates are not valid yet at that time",
        ),
    }
}

/// Looks how many files may be open at once.
#[must_use]
pub fn open_files() -> Check {
    const NAME: &str = "open files";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.current {
        Some(files) if files < FILES_WARN => Check::warn(
            NAME,
            format!("{files} at once"),
            format!("raise it for many workers: `ulimit -n {FILES_WARN}`"),
        ),
        Some(files) => Check::ok(NAME, format!("{files} at once")),
        None => Check::ok(NAME, "without limit"),
    }
}

/// Looks whether attempts can have cgroups of their own.
#[must_use]
pub fn cgroup() -> Check {
    const NAME: &str = "cgroup";
    let Ok(own) = std::fs::read_to_string("/proc/self/cgroup") else {
        return Check::warn(NAME, "not there", "attempts are kept together without it");
    };
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Check::warn(
            NAME,
            "version 1 only",
            "attempts are kept together by their parentage instead; nothing needs to be done",
        );
    };
    let folder = PathBuf::from(format!("/sys/fs/cgroup{path}"));
    if rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK).is_ok() {
        Check::ok(NAME, format!("version 2, {path} is ours to divide"))
    } else {
        Check::warn(
            NAME,
            format!("version 2, {path} is not ours to divide"),
            "attempts are kept together by their parentage instead; a systemd service with \
             `Delegate=yes` gives both",
        )
    }
}

/// Says how far agents are kept from the rest: workers of this version offer no sandbox.
#[must_use]
pub fn sandbox() -> Check {
    Check::warn(
        "sandbox",
        "none around agents: they see and may do what you can",
        "rely on the agents' own sandboxes, or run workers as a user, or in a container, of their own",
    )
}
