//! What runs below the soak, read from the process table.
//!
//! The soak is the subreaper of everything that it starts, so whatever loses its parent becomes its
//! child, and nothing can hide.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use worker_agent::supervisor::MARK_VARIABLE;

/// A process.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) pid: Pid,
    pub(crate) parent: Option<Pid>,
    /// As in `/proc/PID/stat`: `Z` is a zombie.
    pub(crate) state: char,
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
}

/// Whom a process works for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Work {
    pub(crate) run: String,
    pub(crate) task: String,
    pub(crate) attempt: String,
    pub(crate) mark: String,
}

impl Seen {
    /// Tells whether it is git, or a program of git.
    pub(crate) fn is_git(&self) -> bool {
        self.name.starts_with("git")
    }

    /// Tells whether it is a supervisor.
    pub(crate) fn is_supervisor(&self) -> bool {
        self.arguments.iter().any(|word| word == "supervise")
            && self.arguments.iter().any(|word| word == "--dir")
    }

    /// Tells whether it is the guard of a supervisor.
    pub(crate) fn is_guard(&self) -> bool {
        self.arguments.iter().any(|word| word == "supervise-guard")
            && self.arguments.iter().any(|word| word == "--dir")
    }

    /// Gives, for a supervisor or its guard, its lease and the name of its worker: both are in the
    /// path of its folder, `NAME/state/leases/LEASE/launch-N`.
    pub(crate) fn supervised(&self) -> Option<(u64, String)> {
        let keeps = self.is_supervisor() || self.is_guard();
        let folder = self.arguments.last().filter(|_| keeps)?;
        let mut above = Path::new(folder).ancestors().map(Path::file_name);
        let lease = above.nth(1)??.to_str()?.parse().ok()?;
        let worker = above.nth(2)??.to_str()?.to_owned();
        Some((lease, worker))
    }

    /// Tells whether it is a call of a command of `coordinator`.
    pub(crate) fn is_command(&self, command: &str) -> bool {
        self.name.starts_with("coordinator")
            && self.arguments.get(1).is_some_and(|word| word == command)
    }

    /// Says for which attempt it works; `None` for all that is not an agent or of an agent.
    pub(crate) fn work(&self) -> Option<Work> {
        let environment = std::fs::read(proc_of(self.pid).join("environ")).ok()?;
        let variables: BTreeMap<&[u8], &[u8]> = environment
            .split(|byte| *byte == 0)
            .filter_map(|variable| {
                let at = variable.iter().position(|byte| *byte == b'=')?;
                Some((variable.get(..at)?, variable.get(at + 1..)?))
            })
            .collect();
        let text = |name: &str| {
            let value = variables.get(name.as_bytes())?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        Some(Work {
            mark: text(MARK_VARIABLE)?,
            run: text("MUSTER_RUN").unwrap_or_default(),
            task: text("MUSTER_TASK").unwrap_or_default(),
            attempt: text("MUSTER_ATTEMPT").unwrap_or_default(),
        })
    }

    pub(crate) fn shown(&self) -> String {
        let parent = self.parent.map_or(0, Pid::as_raw_pid);
        format!(
            "{} {} (parent {parent}, {}) {}",
            self.pid.as_raw_pid(),
            self.name,
            self.state,
            self.arguments.join(" ")
        )
    }
}

/// Lists all processes below this one.
pub(crate) fn below() -> Vec<Seen> {
    let mut all: BTreeMap<i32, Seen> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let seen = entry.file_name().to_str().and_then(|name| {
            let pid = Pid::from_raw(name.parse().ok()?)?;
            look(pid)
        });
        if let Some(seen) = seen {
            all.insert(seen.pid.as_raw_pid(), seen);
        }
    }
    let own = getpid().as_raw_pid();
    let mut wanted = BTreeSet::from([own]);
    loop {
        let before = wanted.len();
        for seen in all.values() {
            if seen
                .parent
                .is_some_and(|parent| wanted.contains(&parent.as_raw_pid()))
            {
                wanted.insert(seen.pid.as_raw_pid());
            }
        }
        if wanted.len() == before {
            break;
        }
    }
    wanted.remove(&own);
    let mut found: Vec<Seen> = wanted.iter().filter_map(|pid| all.remove(pid)).collect();
    for seen in &mut found {
        let words = std::fs::read(proc_of(seen.pid).join("cmdline")).unwrap_or_default();
        seen.arguments = words
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
    }
    found
}

fn proc_of(pid: Pid) -> std::path::PathBuf {
    Path::new("/proc").join(pid.as_raw_pid().to_string())
}

fn look(pid: Pid) -> Option<Seen> {
    let stat = std::fs::read_to_string(proc_of(pid).join("stat")).ok()?;
    // The name is in parentheses and may hold anything, parentheses too.
    let (front, back) = (stat.find('(')?, stat.rfind(')')?);
    let mut fields = stat.get(back + 1..)?.split_whitespace();
    Some(Seen {
        pid,
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok().and_then(Pid::from_raw),
        name: stat.get(front + 1..back)?.to_owned(),
        arguments: Vec::new(),
    })
}

/// Sends a signal; whoever is gone already does not matter.
pub(crate) fn signal(pid: Pid, signal: Signal) -> bool {
    kill_process(pid, signal).is_ok()
}

/// Kills everything below this process until nothing is left; gives what would not go.
pub(crate) fn end_all() -> Vec<Seen> {
    let mut left = Vec::new();
    for _ in 0..200 {
        left = below();
        if left.is_empty() {
            break;
        }
        for seen in &left {
            signal(seen.pid, Signal::KILL);
            bury(seen);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    left
}

/// Reaps a process that became this one's child when it lost its parent, if it has ended.
pub(crate) fn bury(seen: &Seen) {
    if seen.state == 'Z' && seen.parent == Some(getpid()) {
        // It may be gone by now.
        let _ = waitpid(Some(seen.pid), WaitOptions::NOHANG);
    }
}

/// Memory and file descriptors of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) resident_kib: u64,
    pub(crate) descriptors: u64,
}

/// Measures a process; `None` if it is gone.
pub(crate) fn size(pid: Pid) -> Option<Size> {
    let status = std::fs::read_to_string(proc_of(pid).join("status")).ok()?;
    let resident_kib = status.lines().find_map(|line| {
        let amount = line.strip_prefix("VmRSS:")?;
        amount.split_whitespace().next()?.parse().ok()
    })?;
    let descriptors = std::fs::read_dir(proc_of(pid).join("fd")).ok()?.count();
    Some(Size {
        resident_kib,
        descriptors: u64::try_from(descriptors).unwrap_or(u64::MAX),
    })
}
