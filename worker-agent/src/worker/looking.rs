//! Which agents a worker has, looked for again and again.

use std::sync::Arc;
use std::time::Duration;

use muster_proto::v1::{AgentsFound, DeclaredAgent};
use tokio::sync::{mpsc, watch};

use crate::agent;

/// How often declared agents are looked for again, so that one that is installed is found.
const LOOK_FOR_AGENTS_EVERY: Duration = Duration::from_secs(10);

/// Looks for agents, at once for what is wanted and then for versions, which may take long.
pub(super) async fn look(
    mut wanted: watch::Receiver<Vec<DeclaredAgent>>,
    tell: mpsc::Sender<AgentsFound>,
    overrides: agent::Overrides,
) {
    let overrides = Arc::new(overrides);
    loop {
        let agents = Arc::new(wanted.borrow_and_update().clone());
        for asking in [agent::Asking::Nothing, agent::Asking::Versions] {
            let (agents, overrides) = (Arc::clone(&agents), Arc::clone(&overrides));
            let looking = tokio::task::spawn_blocking(move || {
                agent::found(
                    &agents,
                    &|name| std::env::var(name).ok(),
                    &overrides,
                    asking,
                )
            });
            let found = tokio::select! {
                found = looking => found,
                // What is wanted now comes first; the answer to the question is kept for later.
                Ok(()) = wanted.changed() => {
                    wanted.mark_changed();
                    break;
                }
            };
            // Nobody is there any more, or it panicked: the next look may go better.
            if let Ok(found) = found
                && tell.send(found).await.is_err()
            {
                return;
            }
        }
        let again = async {
            match agents.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(LOOK_FOR_AGENTS_EVERY).await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}
