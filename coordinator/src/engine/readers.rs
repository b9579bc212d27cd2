//! Reads of the store, off the async threads and beside the writer.
//!
//! Each reader has a thread of its own. A row of the journal may hold the events of a plan with hundreds
//! of thousands of tasks, and allocators keep for a thread what it once needed: on whichever thread of
//! a pool is idle, in the end each of them would have kept room for such a row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::Fatal;
use crate::store::{self, Reader, Store};

/// Reads that wait for a thread; further ones wait to get in.
const QUEUE: usize = 64;

type Work = Box<dyn FnOnce(&mut dyn Reader) + Send>;

/// A few readers of the store, shared by all requests, until the last of these goes; cheap to clone.
#[derive(Clone)]
pub struct Readers {
    work: mpsc::Sender<Work>,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The read panicked.
    #[error("the read was given up")]
    GivenUp,
}

impl Readers {
    /// Opens so many readers of a store, one at least.
    ///
    /// # Errors
    /// The store's own, or the system has no thread left.
    pub fn open(store: &dyn Store, count: usize) -> Result<Self, Fatal> {
        let (work, inbox) = mpsc::channel(QUEUE);
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..count.max(1) {
            let reader = store.reader().map_err(Fatal::Load)?;
            let inbox = Arc::clone(&inbox);
            std::thread::Builder::new()
                .name("reader".into())
                .spawn(move || serve(reader, &inbox))
                .map_err(Fatal::ReaderThread)?;
        }
        Ok(Self { work })
    }

    /// Runs a read on a reader's thread, once one is free.
    ///
    /// # Errors
    /// The store's error.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Reader) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, ReadError> {
        let (answer, result) = oneshot::channel();
        let work: Work = Box::new(move |reader| {
            // The asker may have gone.
            drop(answer.send(read(reader)));
        });
        let sent = self.work.send(work).await;
        sent.map_err(|_| ReadError::GivenUp)?;
        Ok(result.await.map_err(|_| ReadError::GivenUp)??)
    }
}

fn serve(mut reader: Box<dyn Reader>, inbox: &Mutex<mpsc::Receiver<Work>>) {
    loop {
        // Whoever waits for work holds the lock, and the others wait for that.
        let work = inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(work) = work else {
            return;
        };
        // Whoever asked sees that there is no answer; the next read may do better.
        let _panicked = catch_unwind(AssertUnwindSafe(|| work(&mut *reader)));
    }
}
