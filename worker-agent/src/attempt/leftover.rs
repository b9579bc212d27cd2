//! What earlier incarnations of a worker left: confirmed to be over before the hello.

use std::sync::Arc;
use std::time::Duration;

use muster_git::Workspace;
use muster_proto::v1::{Grant, work};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::folder::LeaseFolder;
use super::hiding;
use super::launch::{self, Readers};
use super::meter::Metering;
use super::overheard::{self, Told};
use super::scribe::Scribe;
use super::{FromLease, Site};
use crate::agent::agent_of;
use crate::document::TaskDocument;
use crate::failure::chain;
use crate::frames;
use crate::mask::{Hidden, Mask};
use crate::secrets::Secret;
use crate::spool::{OUTPUT_BYTES_MAX, Spool, Taken};
use crate::supervisor::{self, Leftover};

/// How long one look at a supervisor waits for it to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lease whose folder an earlier incarnation left, and of which no process is left.
pub(crate) struct Found {
    pub(crate) grant: Grant,
    /// Its folder.
    pub(crate) folder: LeaseFolder,
    /// Its events so far.
    spool: Spool,
}

/// Finds what is left, and returns once no process of any of it runs.
///
/// That may take as long as a supervisor takes to end its tree; a process that withstands KILL
/// keeps it waiting, since saying hello would declare its lease free.
pub(crate) async fn find(site: &Site) -> Result<Vec<Found>, Error> {
    if let Err(error) = LeaseFolder::remove_deleted(&site.leases) {
        tracing::warn!(%error, "cannot delete what an earlier start meant to");
    }
    let leases = LeaseFolder::list(&site.leases).map_err(Error::Folder)?;
    let looks = leases.into_iter().map(|lease| look(site, lease));
    let found = futures::future::try_join_all(looks).await?;
    Ok(found.into_iter().flatten().collect())
}

async fn look(site: &Site, lease: u64) -> Result<Option<Found>, Error> {
    let folder = LeaseFolder::of(&site.leases, lease);
    for number in folder.launches().map_err(Error::Folder)? {
        loop {
            match supervisor::leftover(&folder.launch(number), PATIENCE).await {
                Ok(Leftover::Ended(_)) => break,
                Ok(Leftover::Running | Leftover::Unconfirmed) => {
                    tracing::warn!(lease, "waiting for processes of an earlier start to end");
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(lease, error, "cannot learn what an earlier start left");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    }
    let Some(grant) = folder.grant().map_err(Error::Folder)? else {
        // Nothing was begun in it.
        folder.remove().map_err(Error::Folder)?;
        return Ok(None);
    };
    let spool = Spool::open(&folder.events(), OUTPUT_BYTES_MAX)?;
    Ok(Some(Found {
        grant,
        folder,
        spool,
    }))
}

impl Found {
    /// Number of its last event so far.
    pub(crate) fn last_event(&self) -> u64 {
        self.spool.last()
    }

    /// Takes over the output that was not yet, salvages edits once there is a session, and tells
    /// when its folder holds nothing unpublished.
    pub(crate) async fn settle(self, site: Arc<Site>) {
        let lease = self.grant.lease;
        let (taken, captured) = (self.spool.taken(), self.spool.captured());
        let usages = self.spool.usages();
        let Self {
            grant,
            folder: lease_folder,
            spool,
        } = self;
        // An agent has the first launch of an attempt, and its only one.
        let is_attempt = matches!(
            grant.work.as_ref().and_then(|work| work.kind.as_ref()),
            Some(work::Kind::Attempt(_))
        );
        let (scribe, writing) = Scribe::start(
            lease,
            spool,
            site.told.clone(),
            site.disk.clone(),
            hidden(&site.secrets, &grant.document),
        );
        for number in lease_folder.launches().unwrap_or_default() {
            let told = Told {
                output: taken.of(number),
                captured: captured.of(number),
                usages,
            };
            let folder = lease_folder.launch(number);
            let is_agent = is_attempt && number == 1;
            let conversed =
                is_agent && overheard::settle(&grant, &folder, number, told, &scribe).await;
            if conversed || told.output == u64::MAX {
                continue;
            }
            let gone = CancellationToken::new();
            gone.cancel();
            let from = Taken {
                launch: number,
                position: told.output,
            };
            if supervisor::OutputReader::open(&folder, from.position).is_ok() {
                let more = Arc::new(Notify::new());
                let readers = Readers {
                    heard: None,
                    meter: is_agent.then(|| meter(&grant, usages)).flatten(),
                };
                launch::pump(folder, from, more, gone, scribe.clone(), readers).await;
            }
        }
        if !lease_folder.is_published() {
            scribe
                .note("the worker was started again; the attempt is over".to_owned())
                .await;
            salvage(&site, &grant, &lease_folder, &scribe).await;
        }
        drop(scribe);
        // Fails only if the writer panicked.
        let _ = writing.await;
        let _ = site.told.send(FromLease::Finished { lease }).await;
    }
}

/// Gives what reads off the output of a lease's program what it consumed.
fn meter(grant: &Grant, told: u64) -> Option<Metering> {
    let task = TaskDocument::parse(&grant.document).ok()?;
    let meter = agent_of(&task).ok()?.meter(&task)?;
    Some(Metering::new(meter, told))
}

async fn salvage(site: &Site, grant: &Grant, folder: &LeaseFolder, scribe: &Scribe) {
    let Some(source) = &grant.source else {
        return folder.mark_published();
    };
    if source.salvage_ref.is_empty() {
        // A verify changes nothing worth keeping.
        return folder.mark_published();
    }
    match Workspace::open(&site.git, &folder.workspace()).await {
        Ok(workspace) => {
            let workspace = workspace.with_change_limit(site.change_bytes_max);
            site.salvage(folder, &workspace, grant, source, scribe)
                .await;
        }
        Err(error) => {
            // No agent runs before its workspace is complete.
            tracing::debug!(error = chain(&error), "there is no workspace to salvage");
            folder.mark_published();
        }
    }
}

/// Hides what the task was given, as far as this worker still has it.
fn hidden(listed: &[Secret], document: &[u8]) -> Hidden {
    let hidden = Hidden::default();
    if let Ok(task) = TaskDocument::parse(document) {
        let own = |name: &str| std::env::var(name).ok();
        let values = hiding::values(listed, &own, &task);
        hidden.set(Mask::of(values.iter().map(String::as_str)));
    }
    hidden
}

/// Why leftovers cannot be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file cannot be used.
    #[error("cannot look at what an earlier start left")]
    Folder(#[source] std::io::Error),
    /// Events cannot be read.
    #[error(transparent)]
    Spool(#[from] frames::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_was_given_stays_hidden_as_far_as_the_worker_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "file-value-1\n").unwrap();
        let listed = [format!("KEY={}", key.display()).parse().unwrap()];
        let document = serde_json::json!({
            "secrets": {"GONE": {"env": "MUSTER_TEST_NOT_SET"}, "KEY": {"file": key}},
        });
        let told = hidden(&listed, document.to_string().as_bytes());
        assert_eq!(told.text("in file-value-1"), "in ***");
        let document = serde_json::json!({"env_from": {"KEY": {"file": key}}});
        let told = hidden(&listed, document.to_string().as_bytes());
        assert_eq!(told.text("in file-value-1"), "in ***");
        assert!(hidden(&listed, b"not a document").is_empty());
    }
}
