//! Commits an attempt's edits and gets them to the coordinator's repository.

use std::sync::Arc;
use std::time::Duration;

use muster_git::{
    Auth, CommitTime, Expected, GitError, ObjectId, PushOutcome, RefName, Remote, Snapshot,
    SnapshotNote, Workspace,
};
use muster_proto::v1::{GitSource, Grant};
use tokio_util::sync::CancellationToken;

use super::Site;
use super::environment::attempt_number;
use super::folder::LeaseFolder;
use super::scribe::Scribe;
use crate::clock;
use crate::disk;
use crate::failure::{chain, class};
use crate::mask::Hidden;
use crate::options::Repositories;
use crate::session::link::Access;

/// How often a workspace is looked at for changes. With the push that follows, an edit is kept
/// within a minute.
const WIP_INTERVAL: Duration = Duration::from_secs(45);
/// Pauses between tries of a push.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Most bytes of an agent's commit messages that are looked through.
const LOG_BYTES_MAX: usize = 16 << 20;
/// Refusals after which a push is given up: a ref that is being repaired is refused once or twice.
const REFUSALS_MAX: u32 = 3;
/// Tries after which a salvage is given up if the WIP ref holds the same edits.
const SALVAGE_TRIES_OF_KEPT: u32 = 3;
/// Tries after which a salvage is given up while the coordinator can be reached. It takes a lease
/// for alive longer than the worker does, and refuses until it is over: some minutes of patience.
const SALVAGE_TRIES_MAX: u32 = 40;

/// What a coordinator says whose git died in a push for a reason of its own, and what git says when
/// it cannot write a file and does not say why.
const COORDINATOR_FAILED: [&str; 3] = [
    "git failed at the coordinator",
    "couldn't write",
    "unable to create",
];

/// Which credential a push uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    /// Good for the lease's own refs while it lives.
    Lease(&'a str),
    /// Good for salvage refs.
    Session,
}

/// Why a commit is not where it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The coordinator refused the ref.
    #[error("the coordinator refuses {name}: {reason}")]
    Refused { name: RefName, reason: String },
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The commit of unfinished edits cannot be noted.
    #[error("cannot note the commit of unfinished edits")]
    Note(#[source] std::io::Error),
}

impl Error {
    /// Names the class of an attempt that ends with this.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Git(GitError::ChangeTooLarge { .. }) => class::CHANGE_TOO_LARGE,
            Self::Git(error) if error.is_about_content() => class::AGENT_FAILED,
            // What git checks at the coordinator is made of what the agent left.
            Self::Refused { reason, .. } if reason.contains("fsck error") => class::AGENT_FAILED,
            Self::Refused { .. } | Self::Git(_) | Self::Note(_) => class::PUBLISH,
        }
    }

    /// Tells whether another try would end the same way, because of what the agent left.
    pub(super) fn is_about_content(&self) -> bool {
        matches!(self, Self::Git(error) if error.is_about_content())
    }

    /// Tells whether the coordinator has judged the push, and not merely failed at it: a disk of its
    /// own that is full for a while must not cost an attempt its work.
    fn is_verdict(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => {
                !disk::is_sign(reason)
                    && !COORDINATOR_FAILED.iter().any(|said| reason.contains(said))
            }
            Self::Git(_) | Self::Note(_) => false,
        }
    }
}

impl Site {
    /// Gives the remote that holds a lease's refs, once there is a session.
    pub(super) async fn remote(
        &self,
        source: &GitSource,
        credential: Credential<'_>,
    ) -> Result<Remote, GitError> {
        let name = &source.repository;
        match &self.repositories {
            Repositories::Below(base) => Remote::new(&format!("{base}/{name}.git")),
            Repositories::Hosted => {
                let access = self.access().await;
                let token = match credential {
                    Credential::Lease(credential) => credential.to_owned(),
                    Credential::Session => access.session_credential,
                };
                let auth = Auth {
                    token,
                    ca_file: Some(access.ca_file),
                };
                Remote::coordinator(&access.address, &format!("git/{name}.git"), auth)
            }
        }
    }

    /// Waits for a session.
    pub(super) async fn access(&self) -> Access {
        let mut access = self.access.clone();
        let known = access.wait_for(Option::is_some).await;
        match known.ok().and_then(|access| access.clone()) {
            Some(access) => access,
            // The worker is ending; whatever waited here goes with it.
            None => std::future::pending().await,
        }
    }

    /// Gets the objects again that a workspace borrows, if somebody has deleted the cache under it;
    /// what its agent has written is all here.
    async fn mend(&self, workspace: &Workspace, grant: &Grant) -> Result<(), GitError> {
        let Some(source) = &grant.source else {
            return Ok(());
        };
        if self.cache.lends_to(workspace).await {
            return Ok(());
        }
        tracing::warn!(
            lease = grant.lease,
            "the cache has gone under an attempt; fetching what it borrows again"
        );
        let (name, commit) = (
            RefName::parse(&source.read_ref)?,
            ObjectId::parse(&source.commit)?,
        );
        let credential = Credential::Lease(&grant.credential);
        let remote = self.remote(source, credential).await?;
        self.cache.ensure_commit(&remote, &name, commit).await?;
        Ok(())
    }

    /// Commits a workspace as it is now.
    pub(super) async fn snapshot(
        &self,
        workspace: &Workspace,
        grant: &Grant,
        subject: &str,
    ) -> Result<Snapshot, GitError> {
        self.mend(workspace, grant).await?;
        let seconds = clock::wall_millis() / 1000;
        let time = CommitTime::from_unix_seconds(seconds);
        let message = message(grant, subject);
        let parent = workspace.base();
        workspace
            .snapshot(&message, &self.identity, time, parent)
            .await
    }

    /// Commits a workspace as the result of an agent that has ended.
    ///
    /// Commits of the agent whose message or author holds a hidden value become one commit without.
    pub(super) async fn result(
        &self,
        workspace: &Workspace,
        grant: &Grant,
        hidden: &Hidden,
    ) -> Result<Snapshot, GitError> {
        self.mend(workspace, grant).await?;
        let time = CommitTime::from_unix_seconds(clock::wall_millis() / 1000);
        let message = message(grant, "");
        let identity = &self.identity;
        let mut snapshot = workspace.result(&message, identity, time).await?;
        let base = workspace.base();
        if let Some(commit) = snapshot.commit
            && !hidden.is_empty()
            && says_hidden(workspace, commit, hidden).await?
        {
            let control = workspace.control();
            let one = control
                .commit_tree(snapshot.tree, &[base], &message, identity, time)
                .await?;
            snapshot.commit = Some(one);
            snapshot.notes.push(SnapshotNote::HistoryLeft {
                reason: "a message or an author holds a secret of the task".to_owned(),
            });
        }
        Ok(snapshot)
    }

    /// Pushes until it is done or was refused; repeats what may have failed by accident.
    pub(super) async fn push(
        &self,
        workspace: &Workspace,
        source: &GitSource,
        credential: Credential<'_>,
        commit: ObjectId,
        (name, expected): (&RefName, Expected),
    ) -> Result<(), Error> {
        let mut pause = PAUSE_FIRST;
        let mut refusals = 0;
        loop {
            match self
                .push_once(workspace, source, credential, commit, (name, expected))
                .await
            {
                Ok(()) => return Ok(()),
                Err(error) => {
                    if error.is_verdict() {
                        refusals += 1;
                        if refusals >= REFUSALS_MAX {
                            return Err(error);
                        }
                    }
                    let error = chain(&error);
                    tracing::warn!(error, name = %name, "a push failed; trying again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn push_once(
        &self,
        workspace: &Workspace,
        source: &GitSource,
        credential: Credential<'_>,
        commit: ObjectId,
        (name, expected): (&RefName, Expected),
    ) -> Result<(), Error> {
        let remote = self.remote(source, credential).await?;
        let pushed = workspace.push(&remote, commit, name, expected).await?;
        match pushed.outcome {
            PushOutcome::Created | PushOutcome::Moved | PushOutcome::UpToDate => Ok(()),
            PushOutcome::Rejected {
                reason,
                remote_says,
            } => Err(Error::Refused {
                name: name.clone(),
                reason: format!("{reason} {remote_says}").trim().to_owned(),
            }),
        }
    }

    /// Pushes edits to the WIP ref once; tells what was pushed, if there was anything, and what
    /// could not be part of it.
    pub(super) async fn push_wip(
        &self,
        workspace: &Workspace,
        grant: &Grant,
        source: &GitSource,
    ) -> Result<(Option<ObjectId>, Option<String>), Error> {
        let snapshot = self
            .snapshot(workspace, grant, "work in progress of")
            .await?;
        let refused = snapshot.refused();
        let Some(commit) = snapshot.commit else {
            return Ok((None, refused));
        };
        let name = RefName::parse(&source.wip_ref)?;
        let credential = Credential::Lease(&grant.credential);
        let folder = LeaseFolder::of(&self.leases, grant.lease);
        // Nobody knows what a push has done that was cut off.
        folder.note_wip(None);
        self.push_once(
            workspace,
            source,
            credential,
            commit,
            (&name, Expected::Any),
        )
        .await?;
        folder.note_wip(refused.is_none().then_some(snapshot.tree));
        Ok((Some(commit), refused))
    }

    /// Gets what an agent left beside its result to the WIP ref, which the result has made needless;
    /// tells whether it is there.
    pub(super) async fn keep_beside(
        &self,
        workspace: &Workspace,
        grant: &Grant,
        source: &GitSource,
        beside: ObjectId,
        (scribe, hidden): (&Scribe, &Hidden),
    ) -> bool {
        let keep = async {
            if !hidden.is_empty() && says_hidden(workspace, beside, hidden).await? {
                return Ok(false);
            }
            let name = RefName::parse(&source.wip_ref)?;
            let credential = Credential::Lease(&grant.credential);
            let target = (&name, Expected::Any);
            LeaseFolder::of(&self.leases, grant.lease).note_wip(None);
            self.push(workspace, source, credential, beside, target)
                .await?;
            Ok::<_, Error>(true)
        };
        match keep.await {
            Ok(true) => {
                let name = &source.wip_ref;
                scribe
                    .note(format!(
                        "what was left beside the result is kept as {beside} at {name}"
                    ))
                    .await;
                true
            }
            Ok(false) => false,
            Err(error) => {
                let error = hidden.text(&chain(&error));
                tracing::warn!(
                    lease = grant.lease,
                    error,
                    "cannot keep what is beside a result"
                );
                false
            }
        }
    }

    /// Keeps edits on the WIP ref while an agent works, until `done`.
    pub(super) async fn keep_wip(
        self: Arc<Self>,
        workspace: Arc<Workspace>,
        grant: Arc<Grant>,
        source: GitSource,
        hidden: Hidden,
        done: CancellationToken,
    ) {
        let mut kept = None;
        loop {
            let wait = tokio::time::sleep(self.wip_interval.unwrap_or(WIP_INTERVAL));
            if done.run_until_cancelled(wait).await.is_none() {
                return;
            }
            let keep = async {
                let snapshot = self
                    .snapshot(&workspace, &grant, "work in progress of")
                    .await?;
                if snapshot.commit.is_none() || Some(snapshot.tree) == kept {
                    return Ok(None);
                }
                self.push_wip(&workspace, &grant, &source).await?;
                Ok::<_, Error>(Some(snapshot.tree))
            };
            match done.run_until_cancelled(keep).await {
                None => return,
                Some(Ok(Some(tree))) => kept = Some(tree),
                Some(Ok(None)) => {}
                Some(Err(error)) => {
                    let error = hidden.text(&chain(&error));
                    tracing::warn!(lease = grant.lease, error, "cannot keep work in progress");
                }
            }
        }
    }

    /// Gets the edits of a lease that is over to its salvage ref. Returns when nothing in the
    /// folder is unpublished any more: they were pushed, there are none, or they were moved to a
    /// folder of their own because the coordinator does not take them.
    pub(super) async fn salvage(
        &self,
        folder: &LeaseFolder,
        workspace: &Workspace,
        grant: &Grant,
        source: &GitSource,
        scribe: &Scribe,
    ) {
        let mut pause = PAUSE_FIRST;
        for number in 1..=SALVAGE_TRIES_MAX {
            match self.try_salvage(folder, workspace, grant, source).await {
                Ok(None) => return folder.mark_published(),
                Ok(Some(commit)) => {
                    let name = &source.salvage_ref;
                    scribe
                        .note(format!("unfinished edits are kept as {commit} at {name}"))
                        .await;
                    return folder.mark_published();
                }
                Err(error) => {
                    let is_final = error.is_about_content();
                    let error = scribe.masked(&chain(&error));
                    tracing::warn!(lease = grant.lease, error, "cannot salvage edits yet");
                    if is_final {
                        break;
                    }
                    if number == SALVAGE_TRIES_OF_KEPT
                        && self.is_at_wip(folder, workspace, grant).await
                    {
                        let name = &source.wip_ref;
                        scribe
                            .note(format!("unfinished edits are kept at {name}"))
                            .await;
                        return folder.mark_published();
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        self.keep_aside(folder, grant, scribe).await;
    }

    /// Tells whether the WIP ref holds exactly what the workspace holds now.
    async fn is_at_wip(&self, folder: &LeaseFolder, workspace: &Workspace, grant: &Grant) -> bool {
        let Some(tree) = folder.wip() else {
            return false;
        };
        let snapshot = self.snapshot(workspace, grant, "unfinished work of").await;
        snapshot.is_ok_and(|found| found.tree == tree && found.refused().is_none())
    }

    async fn try_salvage(
        &self,
        folder: &LeaseFolder,
        workspace: &Workspace,
        grant: &Grant,
        source: &GitSource,
    ) -> Result<Option<ObjectId>, Error> {
        // Made once, also over incarnations: the ref is created once, so a repeated push must bring
        // the same commit.
        let commit = match folder.salvaged() {
            Some(commit) => commit,
            None => {
                let subject = "unfinished work of";
                let snapshot = self.snapshot(workspace, grant, subject).await?;
                if let Some(what) = snapshot.refused() {
                    return Err(GitError::Unkeepable { what }.into());
                }
                let Some(commit) = snapshot.commit else {
                    return Ok(None);
                };
                folder.note_salvage(commit).map_err(Error::Note)?;
                commit
            }
        };
        let name = RefName::parse(&source.salvage_ref)?;
        let target = (&name, Expected::Absent);
        self.push_once(workspace, source, Credential::Session, commit, target)
            .await?;
        Ok(Some(commit))
    }

    /// Moves the workspace to where edits are kept that the coordinator does not take.
    pub(super) async fn keep_aside(&self, folder: &LeaseFolder, grant: &Grant, scribe: &Scribe) {
        let attempt = attempt_number(grant).unwrap_or_default();
        let name = format!("{}-{}-{attempt}-{}", grant.run, grant.task, grant.lease);
        let plain = |character: char| match character {
            '/' | '\0' => '_',
            character => character,
        };
        let name: String = name.chars().map(plain).collect();
        match folder.keep_workspace(&self.kept, &name) {
            Ok(path) => {
                let path = path.display();
                tracing::error!(lease = grant.lease, %path, "edits could not be published; kept");
                let host = &self.host;
                scribe
                    .note(format!("unfinished edits are kept on {host} in {path}"))
                    .await;
                folder.mark_published();
            }
            Err(error) => {
                tracing::error!(lease = grant.lease, %error, "cannot move unpublished edits aside");
            }
        }
    }
}

/// Tells whether the commits from the base to this one say something hidden, or too much to know.
async fn says_hidden(
    workspace: &Workspace,
    commit: ObjectId,
    hidden: &Hidden,
) -> Result<bool, GitError> {
    let log = workspace
        .control()
        .command()
        .args(["log", "--format=%an%n%ae%n%cn%n%ce%n%B"])
        .arg(format!("{}..{commit}", workspace.base()))
        .stdout_limit(LOG_BYTES_MAX);
    let said = log.run_truncated().await?;
    Ok(said.truncated || hidden.finds(&said.stdout))
}

/// Message of a commit: what it is of, and which attempt made it.
fn message(grant: &Grant, subject: &str) -> String {
    let separator = if subject.is_empty() { "" } else { " " };
    let (task, run) = (&grant.task, &grant.run);
    let attempt = attempt_number(grant).unwrap_or_default();
    format!(
        "{subject}{separator}{task}\n\nMuster-Run: {run}\nMuster-Task: {task}\n\
         Muster-Attempt: {attempt}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_of_the_coordinator_is_no_verdict_on_a_push() {
        let refused = |reason: &str| Error::Refused {
            name: RefName::parse("refs/muster/attempts/r/t/1").unwrap(),
            reason: reason.to_owned(),
        };
        for failed in [
            "unpacker error fatal: unable to write loose object file: No space left on device",
            "git failed at the coordinator; see if the ref is there, and try again",
            "failed to update ref error: cannot update ref: couldn't write 'x.lock'",
        ] {
            assert!(!refused(failed).is_verdict(), "{failed}");
        }
        for verdict in [
            "this lease has ended",
            "unpacker error fatal: fsck error in packed object",
            "stale info",
        ] {
            assert!(refused(verdict).is_verdict(), "{verdict}");
        }
    }

    #[test]
    fn a_commit_names_its_task_and_its_attempt() {
        let grant = Grant {
            run: "r1".into(),
            task: "api".into(),
            ..Grant::default()
        };
        let trailers = "\n\nMuster-Run: r1\nMuster-Task: api\nMuster-Attempt: 0\n";
        assert_eq!(message(&grant, ""), format!("api{trailers}"));
        assert_eq!(message(&grant, "wip of"), format!("wip of api{trailers}"));
    }
}
