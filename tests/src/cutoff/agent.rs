//! The first attempt of a case: a tree of processes that never ends by itself.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::traces;
use crate::wait::{SOON, until_true};

/// Variable that all processes of the tree have.
pub(super) const MARK: &str = "CUTOFF_MARK";

/// The tree, seen from outside.
pub(super) struct Agent {
    mark: PathBuf,
    /// When the last process of the tree ended.
    ended: Arc<Mutex<Option<SystemTime>>>,
    /// When it and its worker were put to sleep and woken up.
    pub(super) slept_at: Option<SystemTime>,
    pub(super) woke_at: Option<SystemTime>,
    stopped: Vec<Pid>,
}

impl Agent {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        Self {
            mark: folder.join(format!("case-{name}")),
            ended: Arc::default(),
            slept_at: None,
            woke_at: None,
            stopped: Vec::new(),
        }
    }

    pub(super) fn mark(&self) -> String {
        self.mark.to_string_lossy().into_owned()
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.mark.with_extension(kind)
    }

    /// A task that notes its start and, in the first attempt, gives signs of life for ever, deaf to
    /// TERM and with a process that has detached itself.
    pub(super) fn script(&self) -> String {
        let mark = self.mark();
        format!(
            r#"      echo "$MUSTER_ATTEMPT" >> {mark}.starts
      if [ "$MUSTER_ATTEMPT" != 1 ]; then exit 0; fi
      trap '' TERM
      (setsid sh -c 'trap "" TERM HUP; while :; do sleep 1; done' &) &
      while [ ! -e {mark}.finish ]; do : > {mark}.pulse; sleep 0.02; done
"#
        )
    }

    /// Waits until the whole tree runs, and begins to watch for its end.
    pub(super) fn wait_until_at_work(&mut self) -> Result<()> {
        let (mark, pulse) = (self.mark(), self.file("pulse"));
        until_true(
            "the agent and what it has detached are at work",
            SOON,
            || Ok(pulse.exists() && traces::with_variable(MARK, &mark)?.len() >= 4),
        )?;
        let mut tree: Vec<OwnedFd> = Vec::new();
        for id in traces::with_variable(MARK, &mark)? {
            let id = i32::try_from(id).ok().and_then(Pid::from_raw);
            // Its sleeps come and go.
            tree.extend(id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok()));
        }
        let ended = Arc::clone(&self.ended);
        std::thread::Builder::new()
            .name("agent-watch".to_owned())
            .spawn(move || {
                for process in &tree {
                    let mut waiting = [PollFd::new(process, PollFlags::IN)];
                    // Until it has ended; a signal only makes it wait again.
                    while poll(&mut waiting, None).is_err() {}
                }
                let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                *ended = Some(SystemTime::now());
            })
            .context("watch an agent")?;
        Ok(())
    }

    /// When the last process of the tree ended, if it has.
    pub(super) fn ended_at(&self) -> Option<SystemTime> {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last moment at which it certainly did something.
    pub(super) fn last_sign(&self) -> Result<SystemTime> {
        let pulse = std::fs::metadata(self.file("pulse")).context("look for signs of life")?;
        Ok(pulse.modified()?)
    }

    /// Numbers of the attempts that were started, in this order.
    pub(super) fn starts(&self) -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(self.file("starts"))?;
        let numbers = text.lines().map(|line| line.parse().context("a start"));
        numbers.collect()
    }

    /// Lets it end well.
    pub(super) fn finish(&self) -> Result<()> {
        std::fs::write(self.file("finish"), "").context("let an agent finish")
    }

    /// Puts the tree to sleep, and everything else that mentions `folder` or is `worker`.
    pub(super) fn sleep(&mut self, worker: Pid, folder: &Path) -> Result<()> {
        self.slept_at = Some(SystemTime::now());
        self.stopped = vec![worker];
        kill_process(worker, Signal::STOP)?;
        let folder = format!("{}/", folder.display());
        // A process may be started while others are being stopped.
        loop {
            let mut found = traces::mentioning(&folder);
            found.extend(traces::with_variable(MARK, &self.mark())?);
            let found = found
                .into_iter()
                .filter_map(|id| Pid::from_raw(i32::try_from(id).ok()?));
            let new: Vec<Pid> = found.filter(|id| !self.stopped.contains(id)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for id in new {
                // It may have ended.
                let _ = kill_process(id, Signal::STOP);
                self.stopped.push(id);
            }
        }
    }

    /// Wakes up what was put to sleep, agents first.
    pub(super) fn wake(&mut self) {
        self.woke_at = Some(SystemTime::now());
        for id in self.stopped.drain(..).rev() {
            // It may have been killed.
            let _ = kill_process(id, Signal::CONT);
        }
    }
}
