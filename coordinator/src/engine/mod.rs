//! The one writer: drains commands, decides a batch, commits once, then speaks.
//!
//! A dedicated thread owns the state and the store. It takes as many requests as are waiting (up
//! to [`BATCH_MAX`]), lets the core decide each, runs the scheduler once, and appends all events as
//! one journal row. Only when that row is safely on disk do replies, grants and notices leave.
//! When a row cannot be written the thread ends and with it the coordinator: state in memory is
//! ahead of the disk, and a restart is the one recovery path.

mod actor;
pub mod clock;
pub mod grant;
pub mod notice;
pub mod readers;
mod rows;

use std::sync::Arc;

use coordinator_core::command::Hello;
use coordinator_core::{Command, Rejection, Reply, RunId, State, Timestamp};
use tokio::sync::{mpsc, oneshot};

pub(crate) use actor::rebuild;
pub use actor::{Fatal, Options, Started, start};
pub use notice::Notices;
pub use readers::{ReadError, Readers};

/// Requests that may wait; beyond it senders wait, which is the coordinator's back pressure.
const QUEUE: usize = 8_192;
/// Commands of one batch, so that one commit and one reply wave stay short.
const BATCH_MAX: usize = 1_024;
/// Messages that may wait for one session before it is given up; its worker reconnects.
pub const SESSION_QUEUE: usize = 256;

/// What the engine tells the task that serves a worker's session.
#[derive(Debug)]
pub enum ToSession {
    Grants(Vec<grant::GrantFacts>),
    Stop(Vec<coordinator_core::LeaseId>),
    /// What people have answered. Told again in each session until the question is closed.
    Answers(Vec<grant::AnswerFacts>),
    /// Look for these declared agents: all that are wanted now.
    Look(Vec<coordinator_core::worker::DeclaredAgent>),
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The engine has ended; whether the command was committed is unknown.
    #[error("the coordinator is stopping")]
    Stopped,
    #[error("storing it failed")]
    Store(#[from] Arc<crate::store::Error>),
}

type Answer<T> = oneshot::Sender<T>;
type Question = Box<dyn FnOnce(&State, Timestamp) + Send>;
/// Answers to two commands.
pub type Both = (Result<Reply, Rejection>, Result<Reply, Rejection>);
type StoreAnswer = Result<(), Arc<crate::store::Error>>;

enum Request {
    Command {
        command: Command,
        answer: Answer<Result<Reply, Rejection>>,
    },
    Both {
        commands: Box<(Command, Command)>,
        answer: Answer<Both>,
    },
    Open {
        hello: Hello,
        out: mpsc::Sender<ToSession>,
        answer: Answer<Result<Reply, Rejection>>,
    },
    Query(Question),
    PutSpecs {
        run: Arc<str>,
        specs: Vec<Vec<u8>>,
        answer: Answer<StoreAnswer>,
    },
    /// The run's branches are in place; it goes to the archive once nothing of it is open.
    Archive {
        run: RunId,
    },
    Hold {
        holding: bool,
        answer: Answer<()>,
    },
    Stop {
        answer: Answer<()>,
    },
}

/// Talks to the engine; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    notices: Arc<Notices>,
}

impl Handle {
    /// Sends a command; the answer comes after its events are on disk.
    ///
    /// # Errors
    /// The core's rejection (nothing changed), or that the engine has ended.
    pub async fn command(&self, command: Command) -> Result<Reply, Error> {
        let (answer, reply) = oneshot::channel();
        self.send(Request::Command { command, answer }).await?;
        Ok(reply.await.map_err(|_| Error::Stopped)??)
    }

    /// Puts a command into the queue and gives a future of its answer, so that many can share a batch.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn enqueue(
        &self,
        command: Command,
    ) -> Result<oneshot::Receiver<Result<Reply, Rejection>>, Error> {
        let (answer, reply) = oneshot::channel();
        self.send(Request::Command { command, answer }).await?;
        Ok(reply)
    }

    /// Opens a worker's session; grants and stops go to `out` from then on.
    ///
    /// # Errors
    /// As [`Handle::command`].
    pub async fn open(&self, hello: Hello, out: mpsc::Sender<ToSession>) -> Result<Reply, Error> {
        let (answer, reply) = oneshot::channel();
        self.send(Request::Open { hello, out, answer }).await?;
        Ok(reply.await.map_err(|_| Error::Stopped)??)
    }

    /// Reads the state between two batches: everything seen is committed.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&State, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, result) = oneshot::channel();
        let read = Box::new(move |state: &State, now| {
            // The asker may have gone; its answer is then of no use to anybody.
            drop(answer.send(read(state, now)));
        });
        self.send(Request::Query(read)).await?;
        result.await.map_err(|_| Error::Stopped)
    }

    /// Stores the task documents of a run that is about to be submitted.
    ///
    /// # Errors
    /// The store's error (nothing is stored), or that the engine has ended.
    pub async fn put_specs(&self, run: Arc<str>, specs: Vec<Vec<u8>>) -> Result<(), Error> {
        let (answer, result) = oneshot::channel();
        self.send(Request::PutSpecs { run, specs, answer }).await?;
        Ok(result.await.map_err(|_| Error::Stopped)??)
    }

    /// Sends two commands of which the second is decided right after the first.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn both(&self, first: Command, second: Command) -> Result<Both, Error> {
        let (answer, reply) = oneshot::channel();
        self.send(Request::Both {
            commands: Box::new((first, second)),
            answer,
        })
        .await?;
        reply.await.map_err(|_| Error::Stopped)
    }

    /// Lets an ended run go to the archive as soon as nothing of it is open.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn archive(&self, run: RunId) -> Result<(), Error> {
        self.send(Request::Archive { run }).await
    }

    /// Lets no new lease begin while `holding`.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn hold(&self, holding: bool) -> Result<(), Error> {
        let (answer, done) = oneshot::channel();
        self.send(Request::Hold { holding, answer }).await?;
        done.await.map_err(|_| Error::Stopped)
    }

    /// Commits what is waiting and ends the engine.
    pub async fn stop(&self) {
        let (answer, done) = oneshot::channel();
        if self.send(Request::Stop { answer }).await.is_ok() {
            // An error says that it has ended already, which is what was wanted.
            drop(done.await);
        }
    }

    /// Gives the signals that say that something was committed.
    #[must_use]
    pub fn notices(&self) -> &Arc<Notices> {
        &self.notices
    }

    async fn send(&self, request: Request) -> Result<(), Error> {
        self.requests
            .send(request)
            .await
            .map_err(|_| Error::Stopped)
    }
}

/// Finds a live run by its name.
///
/// # Errors
/// The engine has ended.
pub async fn live_run(handle: &Handle, name: &str) -> Result<Option<RunId>, Error> {
    let name = name.to_owned();
    handle
        .query(move |state, _| state.run_by_name(&name).map(|run| run.id))
        .await
}

#[cfg(test)]
mod tests;
