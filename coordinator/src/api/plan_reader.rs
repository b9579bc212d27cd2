//! The thread on which plans are read and checked.
//!
//! It is one, for two reasons. The largest plan takes some hundred MB while it is read, which allocators
//! keep for the thread that asked for it: with a thread of the pool each time, a client that submits
//! such plans again and again would make every one of them keep as much. And the largest ones take
//! seconds, in which heartbeats must not wait.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Plans that wait for the thread; those behind them wait at the door.
const QUEUE: usize = 1;

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread, which ends with the last of them; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct PlanReader(mpsc::Sender<Work>);

impl PlanReader {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start() -> std::io::Result<Self> {
        let (way, mut inbox) = mpsc::channel::<Work>(QUEUE);
        std::thread::Builder::new()
            .name("plans".into())
            .spawn(move || {
                while let Some(work) = inbox.blocking_recv() {
                    // Whoever waits for it sees that there is no answer; the next plan is read.
                    let _panicked = catch_unwind(AssertUnwindSafe(work));
                }
            })?;
        Ok(Self(way))
    }

    /// Does something on the thread. It is done to its end when the asker goes.
    ///
    /// # Errors
    /// It panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, result) = oneshot::channel();
        let work = Box::new(move || {
            // The asker may have gone.
            drop(answer.send(work()));
        });
        let broken = || Status::internal("the plan could not be read");
        self.0.send(work).await.map_err(|_| broken())?;
        result.await.map_err(|_| broken())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_plan_is_read_on_one_thread_even_after_one_that_broke_it() {
        let reader = PlanReader::start().unwrap();
        let thread = || std::thread::current().id();
        let first = reader.run(thread).await.unwrap();
        let broken = reader.run(|| -> () { panic!("a plan that nobody thought of") });
        assert_eq!(broken.await.unwrap_err().code(), tonic::Code::Internal);
        assert_eq!(reader.run(thread).await.unwrap(), first);
    }
}
