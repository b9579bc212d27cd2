//! The supervisor's voice towards its worker, which may be frozen or dead.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::Notice;
use crate::clock::Boottime;

/// Pause between two `output` lines: short enough to look live, long enough not to wake the
/// worker for each write of a chatty agent.
const OUTPUT_PAUSE: Duration = Duration::from_millis(20);

/// Queues a handful of lines and writes them when the worker has room; never waits for it.
///
/// The queue is bounded by what is said: each notice once, and `output` only into an empty queue.
#[derive(Debug)]
pub(super) struct Notices {
    /// `None` once the worker has closed its end.
    out: Option<io::Stdout>,
    pending: Vec<u8>,
    /// Bytes of output that there are and that the worker was told of.
    bytes: u64,
    told: u64,
    may_tell_at: Boottime,
}

impl Notices {
    pub(super) fn new(out: io::Stdout) -> Self {
        let may_tell_at = Boottime::from_millis(0);
        Self {
            out: Some(out),
            pending: Vec::new(),
            bytes: 0,
            told: 0,
            may_tell_at,
        }
    }

    /// Queues a line.
    pub(super) fn say(&mut self, notice: Notice) {
        if self.out.is_some() {
            self.pending
                .extend_from_slice(notice.to_string().as_bytes());
        }
    }

    /// Notes how much output there is; it is told when it is time.
    pub(super) fn output(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// Tells at once how much output there is, before the last words.
    pub(super) fn say_output(&mut self) {
        if self.bytes != self.told {
            self.told = self.bytes;
            self.say(Notice::Output(self.bytes));
        }
    }

    /// Returns when something is to be told of which nobody else wakes the supervisor.
    pub(super) fn due(&self) -> Option<Boottime> {
        let untold = self.bytes != self.told && self.pending.is_empty();
        (self.out.is_some() && untold).then_some(self.may_tell_at)
    }

    /// Returns the descriptor to be watched for room, if there is something to write.
    pub(super) fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.out
            .as_ref()
            .filter(|_| !self.pending.is_empty())
            .map(AsFd::as_fd)
    }

    /// Writes what there is, as far as there is room now.
    pub(super) fn flush(&mut self, now: Boottime) {
        if self.due().is_some_and(|due| due <= now) {
            self.may_tell_at = now.after(OUTPUT_PAUSE);
            self.say_output();
        }
        while let Some(fd) = self.waiting() {
            let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
            if !matches!(poll(&mut ready, Some(&Timespec::default())), Ok(1)) {
                return;
            }
            // A pipe with room takes a write of at most PIPE_BUF (4096) bytes without waiting.
            let end = self.pending.len().min(4096);
            match rustix::io::write(fd, self.pending.get(..end).unwrap_or_default()) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return,
                // Its other end is closed. That the worker is gone, the control pipe says.
                Err(_) => {
                    self.out = None;
                    self.pending.clear();
                }
            }
        }
    }
}
