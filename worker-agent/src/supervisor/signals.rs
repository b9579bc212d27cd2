//! Signals as something the supervisor can poll for.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::{flag, low_level};

use super::Error;

/// Wakes the supervisor for TERM and for ended children, and makes it deaf to HUP and INT, which
/// are a terminal's business with the worker, and to USR1 and USR2, which are a batch system's.
#[derive(Debug)]
pub(super) struct Signals {
    wake: UnixStream,
    waker: UnixStream,
    term: Arc<AtomicBool>,
}

impl Signals {
    pub(super) fn install() -> Result<Self, Error> {
        Self::try_install().map_err(Error::system("handle signals"))
    }

    fn try_install() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let term = Arc::new(AtomicBool::new(false));
        // Actions run in this order, so the flag is up before the wake-up is seen.
        flag::register(SIGTERM, Arc::clone(&term))?;
        for signal in [SIGTERM, SIGCHLD] {
            low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        // Handled, not ignored: what is ignored would stay so in the agent.
        for signal in [SIGHUP, SIGINT, SIGUSR1, SIGUSR2] {
            flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        Ok(Self { wake, waker, term })
    }

    /// Says whether TERM has ever come.
    pub(super) fn terminated(&self) -> bool {
        self.term.load(Ordering::SeqCst)
    }

    /// Makes the next sleep end at once.
    pub(super) fn wake(&self) {
        // A full pipe wakes just as well.
        let _ = (&self.waker).write(&[0]);
    }

    /// Forgets wake-ups, so that the next one is noticed.
    pub(super) fn clear(&self) {
        let mut buffer = [0; 256];
        while matches!((&self.wake).read(&mut buffer), Ok(read) if read > 0) {}
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
