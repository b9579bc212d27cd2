//! The thread and the port of a fake provider.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use tokio::sync::oneshot;

/// Serves until it is dropped; `K` is what its provider knows.
pub(super) struct Server<K> {
    pub(super) address: SocketAddr,
    pub(super) known: Arc<K>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<K: Default> Server<K> {
    /// Starts one at a free port of this host, in a thread of this name.
    ///
    /// # Errors
    /// There is no port or no thread.
    pub(super) fn start(name: &str, routes: impl FnOnce(Arc<K>) -> Router) -> Result<Self> {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let known = Arc::new(K::default());
        let (stop, stopped) = oneshot::channel();
        let routes = routes(Arc::clone(&known)).layer(DefaultBodyLimit::disable());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the provider's runtime")?;
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                        return;
                    };
                    tokio::select! {
                        _ = async { axum::serve(listener, routes).await } => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            known,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl<K> Drop for Server<K> {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails only if it has ended.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Locks what a thread that panicked may have left locked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
