//! The person's own git at work in their terminal, and what Ctrl-C means meanwhile.

use muster_git::{GitCommand, GitError};

use crate::cli::error::{CliError, Kind, Result};
use crate::cli::interrupt::Interrupts;

/// What became of a command that was waited for.
pub(super) struct Ended {
    pub(super) result: Result<(), GitError>,
    /// Somebody asked for an end meanwhile. Ctrl-C has asked git as well.
    pub(super) is_interrupted: bool,
}

impl Ended {
    /// Tells who can do something about its failure.
    pub(super) const fn kind(&self) -> Kind {
        if self.is_interrupted {
            Kind::Interrupted
        } else {
            Kind::User
        }
    }
}

/// Runs a command to its end, also when the person presses Ctrl-C: git is asked by that too, and what
/// it leaves has to be taken back.
///
/// # Errors
/// They asked twice. Git was killed then, and whatever it was doing is half done.
pub(super) async fn run(command: GitCommand) -> Result<Ended> {
    let mut interrupts = Interrupts::listen()?;
    let running = command.in_foreground().run_ok();
    tokio::pin!(running);
    let mut is_interrupted = false;
    loop {
        tokio::select! {
            ended = &mut running => {
                let result = ended.map(drop);
                return Ok(Ended { result, is_interrupted });
            }
            _ = interrupts.next() => {
                if std::mem::replace(&mut is_interrupted, true) {
                    return Err(CliError::new(
                        Kind::Interrupted,
                        anyhow::Error::msg("git was killed in the middle of its work"),
                    )
                    .hint(
                        "`git status` shows what is left; `git merge --abort` takes a merge back, \
                         once no git is running and .git/index.lock is gone",
                    ));
                }
            }
        }
    }
}
