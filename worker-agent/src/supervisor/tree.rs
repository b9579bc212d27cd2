//! Finding and signalling processes.
//!
//! Everything is read from /proc. A process is named by its id *and* its start time, and signals
//! go through a pidfd whose start time was compared after it was opened, so that a process id
//! that was given to somebody else in between is never hit.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process, kill_process_group, pidfd_open,
    pidfd_send_signal,
};

use super::Error;
use super::launch::{MARK_VARIABLE, Mark};

/// Arguments and environment of a process never exceed 6 MiB on Linux.
const ENVIRON_BYTES_MAX: u64 = 8 << 20;

/// Rounds in a row through the own children; a hop takes about as long as ten of them.
const KILL_ROUNDS: usize = 256;

/// Names one process for as long as the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pid: Pid,
    /// Clock ticks since the host started.
    started: u64,
}

/// Is a process with its place among others, at the moment of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) process: Process,
    parent: i32,
    group: i32,
    session: i32,
}

impl Seen {
    fn read(pid: Pid) -> Option<Self> {
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        Self::parse(pid, &stat)
    }

    /// Understands a line of `/proc/<pid>/stat`. The name in it can hold anything, brackets and
    /// line ends too, so fields are counted from the last closing bracket.
    fn parse(pid: Pid, stat: &[u8]) -> Option<Self> {
        let name_end = stat.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // state, parent, group, session, then 15 others, then the start time.
        Some(Self {
            process: Process {
                pid,
                started: fields.get(19)?.parse().ok()?,
            },
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
        })
    }
}

/// Lists the processes that are there.
fn pids() -> Result<Vec<Pid>, Error> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(Error::file("list", proc))?;
    let pid = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    Ok(entries.flatten().filter_map(pid).collect())
}

/// Finds all descendants of this process, those it inherited as subreaper included.
pub(super) fn descendants() -> Result<Vec<Seen>, Error> {
    let mut children: HashMap<i32, Vec<Seen>> = HashMap::new();
    for seen in pids()?.into_iter().filter_map(Seen::read) {
        children.entry(seen.parent).or_default().push(seen);
    }
    let mut found = Vec::new();
    let mut parents = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = parents.pop() {
        // Removing each family once ends this even if the scan saw a circle.
        for child in children.remove(&parent).unwrap_or_default() {
            parents.push(child.process.pid.as_raw_nonzero().get());
            found.push(child);
        }
    }
    Ok(found)
}

/// Finds the children of this process, which must have one thread; much faster than
/// [`descendants`]. Empty where the kernel keeps no such list.
pub(super) fn children() -> Vec<Pid> {
    let pid = getpid().as_raw_nonzero();
    let list = fs::read_to_string(format!("/proc/self/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// Finds all processes whose environment carries the mark, wherever they hang in the tree.
///
/// It misses those that replaced or hid their environment, and, for a moment, one that is just
/// executing another program; two empty scans in a row are therefore the least to trust.
pub(super) fn marked(mark: &Mark) -> Result<Vec<Seen>, Error> {
    let variable = format!("{MARK_VARIABLE}={}", mark.as_str());
    let carries = |pid: &Pid| {
        let Ok(file) = File::open(format!("/proc/{}/environ", pid.as_raw_nonzero())) else {
            return false;
        };
        let mut environ = Vec::new();
        // What could be read counts even if the process ended meanwhile.
        let _ = file.take(ENVIRON_BYTES_MAX).read_to_end(&mut environ);
        environ
            .split(|&byte| byte == 0)
            .any(|entry| entry == variable.as_bytes())
    };
    Ok(pids()?
        .into_iter()
        .filter(carries)
        .filter_map(Seen::read)
        .collect())
}

/// Sends a signal to one process; does nothing if it is gone or out of reach.
pub(super) fn signal(process: Process, signal: Signal) {
    let Ok(pidfd) = pidfd_open(process.pid, PidfdFlags::empty()) else {
        return;
    };
    if Seen::read(process.pid).is_some_and(|seen| seen.process == process) {
        // An error means that it has ended or belongs to another user: the next scan tells.
        let _ = pidfd_send_signal(&pidfd, signal);
    }
}

/// Asks processes to end: TERM, and CONT so that a stopped one hears it.
pub(super) fn terminate(processes: &[Seen]) {
    for seen in processes {
        signal(seen.process, Signal::TERM);
        signal(seen.process, Signal::CONT);
    }
}

/// Kills processes of this process's own tree, with their process groups.
///
/// A group is killed in one step, which ends a storm of forks that a walk from process to process
/// would never catch up with.
pub(super) fn kill_own(descendants: &[Seen]) {
    // From /proc like the others: in a container whose session was begun outside of it the session
    // is 0, which `getsid` of rustix 1.1 takes for impossible.
    if let Some(own) = Seen::read(getpid()) {
        for group in foreign_groups(own, descendants) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    kill_each(descendants);
}

/// Lists the process groups of descendants that can be killed whole.
///
/// Descendants live in sessions of their own from the first instruction of the agent on; before
/// that they share ours, where the worker may be.
fn foreign_groups(own: Seen, descendants: &[Seen]) -> HashSet<Pid> {
    descendants
        .iter()
        .filter(|seen| seen.session != own.session && seen.group != own.group && seen.group > 1)
        .filter_map(|seen| Pid::from_raw(seen.group))
        .collect()
}

/// Kills this process's children, and those it inherits from them, until no new ones appear.
///
/// Processes that hop, each starting the next in a new session and ending, move faster than a walk
/// through all of /proc: beside 1500 other processes, five hoppers took such walks 3 to 18 seconds
/// to end, and take this 0.2. Every hop makes the next one our child, where it is caught. A child
/// of ours keeps its id until we have waited for it, so the id is safe to signal.
pub(super) fn kill_children() {
    let mut killed = HashSet::new();
    for _ in 0..KILL_ROUNDS {
        let mut new = false;
        for child in children() {
            new |= killed.insert(child);
            // It has ended already, or it belongs to another user: the next scan tells.
            let _ = kill_process(child, Signal::KILL);
        }
        if !new {
            return;
        }
    }
}

/// Kills processes one by one.
pub(super) fn kill_each(processes: &[Seen]) {
    for seen in processes {
        signal(seen.process, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_spaces_and_line_ends_does_not_move_the_fields() {
        let pid = Pid::from_raw(12).unwrap();
        let mut stat =
            b"12 (a) S 1 1\n\xff) ) S 3 4 5 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 ".to_vec();
        stat.extend_from_slice(b"987 1000 20");
        assert_eq!(
            Seen::parse(pid, &stat),
            Some(Seen {
                process: Process { pid, started: 987 },
                parent: 3,
                group: 4,
                session: 5
            })
        );
    }

    #[test]
    fn groups_of_other_sessions_are_killed_whole_even_if_ours_began_outside_the_container() {
        let pid = Pid::from_raw(12).unwrap();
        let seen = |group, session| Seen {
            process: Process { pid, started: 1 },
            parent: 1,
            group,
            session,
        };
        for own in [seen(0, 0), seen(7, 0), seen(7, 7)] {
            let found = foreign_groups(
                own,
                &[
                    own,
                    seen(0, own.session),
                    seen(30, 30),
                    seen(31, 30),
                    seen(9, own.session),
                ],
            );
            assert_eq!(
                found,
                [30, 31].map(|raw| Pid::from_raw(raw).unwrap()).into()
            );
        }
    }

    #[test]
    fn a_line_that_ends_early_is_no_process() {
        let pid = Pid::from_raw(12).unwrap();
        for stat in [&b""[..], b"12 (a", b"12 (a) S 3 4 5", b")"] {
            assert_eq!(Seen::parse(pid, stat), None);
        }
    }

    #[test]
    fn a_child_is_found_and_killed() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let seen = descendants()
            .unwrap()
            .into_iter()
            .find(|seen| seen.process.pid == pid)
            .unwrap();
        kill_each(&[seen]);
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn another_process_under_the_same_id_is_not_signalled() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let now = Seen::read(pid).unwrap().process;
        signal(
            Process {
                started: now.started + 1,
                ..now
            },
            Signal::KILL,
        );
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn only_processes_with_the_mark_are_found_by_it() {
        let mark = Mark::random();
        assert_eq!(marked(&mark).unwrap(), []);
        let spawn = |value: &str| {
            std::process::Command::new("sleep")
                .arg("600")
                .env(MARK_VARIABLE, value)
                .spawn()
                .unwrap()
        };
        let mut child = spawn(mark.as_str());
        let mut other = spawn(Mark::random().as_str());
        let found: Vec<Pid> = marked(&mark)
            .unwrap()
            .into_iter()
            .map(|seen| seen.process.pid)
            .collect();
        assert_eq!(found, [Pid::from_child(&child)]);
        for child in [&mut child, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
