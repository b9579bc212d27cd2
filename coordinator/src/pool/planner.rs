//! Lets the core plan pools: soon after anything was committed, and every few seconds.

use std::time::Duration;

use coordinator_core::Command;
use coordinator_core::pool::PoolCommand;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::engine::Handle;

/// Shortest pause between two plans: work that comes in one breath is planned for together.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause: idle times and deadlines pass without any event.
const LOOK: Duration = Duration::from_secs(5);

/// Plans until `ending`.
pub async fn run(engine: Handle, ending: CancellationToken) {
    let mut committed = engine.notices().committed();
    loop {
        committed.mark_unchanged();
        if let Err(error) = engine.command(Command::Pool(PoolCommand::Plan)).await {
            warn!(error = %error, "failed to plan pools");
        }
        let pause = async {
            tokio::time::sleep(PAUSE).await;
            drop(tokio::time::timeout(LOOK, committed.changed()).await);
        };
        tokio::select! {
            () = ending.cancelled() => return,
            () = pause => {}
        }
    }
}
