//! What a program does when it is told to end.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Does something once, on a thread of its own, when a person or a system asks this program to end; from
/// then on that alone ends it.
///
/// # Errors
/// Signals cannot be heard.
pub fn then(act: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        act();
    });
    Ok(())
}
