//! Reads of the store, off the async threads and beside the writer.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::store::{self, Reader, Store};

/// Connections that read at once.
const READERS: usize = 4;

/// A few readers of the store, shared by all requests; cheap to clone.
#[derive(Clone)]
pub struct Readers {
    idle: Arc<Mutex<Vec<Box<dyn Reader>>>>,
    room: Arc<Semaphore>,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The reading thread panicked or the runtime is ending.
    #[error("the read was given up")]
    GivenUp,
}

impl Readers {
    /// Opens the readers of a store.
    ///
    /// # Errors
    /// The store's own.
    pub fn open(store: &dyn Store) -> Result<Self, store::Error> {
        let readers = (0..READERS)
            .map(|_| store.reader())
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            idle: Arc::new(Mutex::new(readers)),
            room: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// Runs a read on a blocking thread, after waiting for a reader.
    ///
    /// # Errors
    /// The store's error.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Reader) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, ReadError> {
        let room = self
            .room
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| ReadError::GivenUp)?;
        let idle = self.idle.clone();
        let result = tokio::task::spawn_blocking(move || {
            let _room = room;
            let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut reader) = taken else {
                return Err(ReadError::GivenUp);
            };
            let result = read(&mut *reader);
            idle.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(reader);
            result.map_err(ReadError::from)
        });
        result.await.map_err(|_| ReadError::GivenUp)?
    }
}
