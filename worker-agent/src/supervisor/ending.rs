//! Ending a tree: TERM, some grace, then KILL until nothing is left.

use std::collections::HashSet;
use std::time::Duration;

use super::cgroup::Cgroup;
use super::launch::Mark;
use super::supervise::Children;
use super::{Error, tree};
use crate::clock::{self, Boottime};

/// How often to look for processes that are not ours to wait for.
const ESCAPED_PAUSE: Duration = Duration::from_millis(20);
/// Pauses between two rounds of KILL. The first is short because most processes end at once; the
/// last is for those in the kernel's hands (a hanging network disk), however long that takes.
const KILL_PAUSE_FIRST: Duration = Duration::from_millis(10);
const KILL_PAUSE_LAST: Duration = Duration::from_secs(1);

/// Says whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    Gone,
}

#[derive(Debug)]
enum Stage {
    Terminating {
        kill_at: Boottime,
    },
    Killing {
        pause: Duration,
        last: HashSet<tree::Process>,
    },
}

/// Is a tree on its way out.
#[derive(Debug)]
pub(super) struct Ending {
    stage: Stage,
    due: Boottime,
}

impl Ending {
    /// Sends TERM to every process of the tree, once: what they start in order to end in peace is
    /// not asked to end.
    pub(super) fn begin(kill_at: Boottime, mark: &Mark) -> Result<Self, Error> {
        let mut found = tree::descendants()?;
        let own: HashSet<tree::Process> = found.iter().map(|seen| seen.process).collect();
        found.extend(
            tree::marked(mark)?
                .into_iter()
                .filter(|seen| !own.contains(&seen.process)),
        );
        tree::terminate(&found);
        Ok(Self {
            stage: Stage::Terminating { kill_at },
            due: kill_at,
        })
    }

    /// Kills from the start: for a tree that nobody owns any more.
    pub(super) fn at_once() -> Self {
        Self {
            stage: Stage::Killing {
                pause: KILL_PAUSE_FIRST,
                last: HashSet::new(),
            },
            due: clock::now(),
        }
    }

    /// Returns when to call [`Ending::proceed`] if no child ends before.
    pub(super) fn due(&self) -> Boottime {
        self.due
    }

    /// Does what is due. It never gives up: as long as something is left, the caller stays, and
    /// with it the lock that says so.
    pub(super) fn proceed(
        &mut self,
        children: Children,
        now: Boottime,
        mark: &Mark,
        cgroup: Option<&Cgroup>,
    ) -> Result<Progress, Error> {
        if children == Children::None && nothing_left(mark, cgroup)? {
            return Ok(Progress::Gone);
        }
        if let Stage::Terminating { kill_at } = self.stage {
            if now < kill_at {
                self.due = match children {
                    Children::Some => kill_at,
                    Children::None => kill_at.min(now.after(ESCAPED_PAUSE)),
                };
                return Ok(Progress::Going);
            }
            self.stage = Stage::Killing {
                pause: KILL_PAUSE_FIRST,
                last: HashSet::new(),
            };
            self.due = now;
        }
        if let Stage::Killing { pause, last } = &mut self.stage
            && now >= self.due
        {
            let killed = kill(mark, cgroup)?;
            // Where something new appeared, something forks: no pause gives it time.
            if killed.is_subset(last) {
                self.due = now.after(*pause);
                *pause = (*pause * 2).min(KILL_PAUSE_LAST);
            }
            *last = killed;
        }
        Ok(Progress::Going)
    }
}

/// Says whether no process of the tree is left besides descendants.
fn nothing_left(mark: &Mark, cgroup: Option<&Cgroup>) -> Result<bool, Error> {
    // Twice, because a process that is just executing another program has no environment.
    Ok(cgroup.is_none_or(Cgroup::is_empty)
        && tree::marked(mark)?.is_empty()
        && tree::marked(mark)?.is_empty())
}

/// Sends KILL to everything that can be found and returns what was found.
fn kill(mark: &Mark, cgroup: Option<&Cgroup>) -> Result<HashSet<tree::Process>, Error> {
    if let Some(cgroup) = cgroup {
        cgroup.kill();
    }
    tree::kill_children();
    let own = tree::descendants()?;
    tree::kill_own(&own);
    let marked = tree::marked(mark)?;
    tree::kill_each(&marked);
    Ok(own.iter().chain(&marked).map(|seen| seen.process).collect())
}
