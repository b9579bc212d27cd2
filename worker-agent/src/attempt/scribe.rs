//! Writes down what happens in a lease: many entries, one sync.

use std::time::Duration;

use muster_proto::v1::{self, Phase, agent_event};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::FromLease;
use crate::disk::Disk;
use crate::failure::chain;
use crate::frames;
use crate::mask::Hidden;
use crate::spool::{Spool, Taken};

/// Entries that wait for the disk; the agent's output waits in the supervisor's file meanwhile.
const WAITING_MAX: usize = 64;
/// How long output is gathered before it is synced.
const GATHER: Duration = Duration::from_millis(50);
/// Pause after the disk refused.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// How long a phase or note waits for a disk that is behind; then it is left out, since nothing
/// may delay stopping an agent.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Entry {
    Lifecycle(agent_event::Kind),
    Output(v1::Output, Taken),
    EndOfOutput(u64),
}

/// Takes entries of one lease; clones write to the same spool.
#[derive(Clone, Debug)]
pub(crate) struct Scribe {
    entries: mpsc::Sender<Entry>,
    /// What no phase or note may show; output comes masked from its supervisor.
    hidden: Hidden,
}

/// Ends when every [`Scribe`] is gone and everything is on disk.
pub(crate) type Writing = JoinHandle<()>;

impl Scribe {
    /// Begins writing into a spool.
    pub(crate) fn start(
        lease: u64,
        spool: Spool,
        told: mpsc::Sender<FromLease>,
        disk: Disk,
        hidden: Hidden,
    ) -> (Self, Writing) {
        let (entries, waiting) = mpsc::channel(WAITING_MAX);
        (
            Self { entries, hidden },
            tokio::spawn(write(lease, spool, waiting, told, disk)),
        )
    }

    /// Notes that a phase began.
    pub(crate) async fn phase(&self, name: &str, detail: &str) {
        self.lifecycle(agent_event::Kind::Phase(Phase {
            name: name.to_owned(),
            detail: self.hidden.text(detail),
        }))
        .await;
    }

    /// Notes something for people.
    pub(crate) async fn note(&self, text: String) {
        let text = self.hidden.text(&text);
        self.lifecycle(agent_event::Kind::Note(text)).await;
    }

    /// Hides what no phase or note may show, for the worker's own log.
    pub(crate) fn masked(&self, text: &str) -> String {
        self.hidden.text(text)
    }

    async fn lifecycle(&self, kind: agent_event::Kind) {
        let entry = Entry::Lifecycle(kind);
        if self.entries.send_timeout(entry, PATIENCE).await.is_err() {
            tracing::warn!("the disk is too slow; a phase or note is left out");
        }
    }

    /// Writes output that ends at `taken` down; waits for the disk.
    pub(crate) async fn output(&self, output: v1::Output, taken: Taken) {
        // A writer that is gone has said why.
        let _ = self.entries.send(Entry::Output(output, taken)).await;
    }

    /// Notes that a launch will write no more, and how much of its output was dropped before.
    pub(crate) async fn end_of_output(&self, dropped: u64) {
        let _ = self.entries.send(Entry::EndOfOutput(dropped)).await;
    }
}

async fn write(
    lease: u64,
    mut spool: Spool,
    mut waiting: mpsc::Receiver<Entry>,
    told: mpsc::Sender<FromLease>,
    disk: Disk,
) {
    let mut entries = Vec::with_capacity(WAITING_MAX);
    while waiting.recv_many(&mut entries, WAITING_MAX).await > 0 {
        // Lifecycle entries are few and watched by people; output comes in crumbs.
        let only_output = entries
            .iter()
            .all(|entry| matches!(entry, Entry::Output(..)));
        if only_output && !waiting.is_closed() && entries.len() < WAITING_MAX {
            tokio::time::sleep(GATHER).await;
            while entries.len() < WAITING_MAX
                && let Ok(entry) = waiting.try_recv()
            {
                entries.push(entry);
            }
        }
        let taken = std::mem::take(&mut entries);
        for entry in taken {
            if let Err(error) = push(&mut spool, entry) {
                tracing::warn!(lease, error = chain(&error), "cannot write an event down");
            }
        }
        loop {
            let synced = tokio::task::spawn_blocking(move || {
                let synced = spool.sync();
                (spool, synced)
            });
            let Ok((back, synced)) = synced.await else {
                return;
            };
            spool = back;
            match synced {
                Ok(last) => {
                    if told.send(FromLease::Events { lease, last }).await.is_err() {
                        return;
                    }
                    break;
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(lease, error, "cannot write events down; trying again");
                    disk.suspect(&error);
                    tokio::time::sleep(DISK_PAUSE).await;
                }
            }
        }
    }
}

fn push(spool: &mut Spool, entry: Entry) -> Result<(), frames::Error> {
    match entry {
        Entry::Lifecycle(kind) => spool.lifecycle(kind),
        Entry::Output(output, taken) => spool.output(output, taken),
        Entry::EndOfOutput(dropped) => spool.end_of_output(dropped),
    }
}
