//! Copies of the branches that people fetch, on a remote elsewhere.
//!
//! A reconciler for each repository that the configuration gives a mirror: it compares the branches
//! of the hosted repository with what the mirror says that it has, and pushes what differs. A branch
//! is only moved from a value that is known here; what somebody else has put there is never
//! overwritten, but told. A mirror that cannot be reached or refuses holds up nothing: the hosted
//! repository has everything, and the push is tried again with growing pauses. Branches are never
//! deleted there. Workers know nothing of it; only the coordinator has the credential.

mod credential;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use muster_git::{
    Expected, GitError, ObjectId, PushOutcome, PushRef, RefName, Remote, Repository, without_users,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::names;
use super::repositories::Repositories;
use super::repository;
use crate::causes::chain;
use state::Round;
pub use state::{Mirrors, RunMirror};

/// Branches that are pushed at once.
const BRANCHES_PER_PUSH: usize = 200;
/// How long one transfer may take.
const TRANSFER_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// Pause before the first repetition; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Where the branches of a hosted repository are copied to.
#[derive(Clone, PartialEq, Eq)]
pub struct MirrorSettings {
    /// Any address that git understands, without a password in it. Its user part may be a token, so
    /// people are shown it by [`without_users`].
    pub url: String,
    /// A file that only the coordinator's user may read, with `user:password` or a bare token.
    pub credential_file: Option<PathBuf>,
}

impl fmt::Debug for MirrorSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("MirrorSettings");
        debug.field("url", &without_users(&self.url));
        debug.field("credential_file", &self.credential_file);
        debug.finish()
    }
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Credential(#[from] credential::Error),
    #[error("the remote does not accept the credential, or needs one")]
    Denied,
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("{0}")]
    Hosted(String),
}

impl Error {
    /// Tells apart what a person has to mend from what may pass.
    fn of(error: GitError) -> Self {
        let denied = [
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "Permission denied",
            "error: 401",
            "error: 403",
        ];
        match &error {
            GitError::Failed { stderr, .. } if denied.iter().any(|sign| stderr.contains(sign)) => {
                Self::Denied
            }
            _ => Self::Git(error),
        }
    }
}

/// Copies the branches of one repository whenever they move, until cancelled.
pub(crate) async fn run(
    name: String,
    settings: MirrorSettings,
    repositories: Repositories,
    mirrors: Mirrors,
    mut moved: watch::Receiver<u64>,
    ending: CancellationToken,
) {
    let mut pause = PAUSE_MIN;
    loop {
        let version = *moved.borrow_and_update();
        let round = tokio::select! {
            () = ending.cancelled() => return,
            round = round(&name, &settings, &repositories) => round,
        };
        let is_behind = round.is_behind();
        let (trouble, refused) = (round.trouble.clone(), round.refused.len());
        if mirrors.note(&name, version, round) {
            match trouble {
                Some(what) => warn!(
                    repository = name,
                    what, "the mirror is behind; trying again"
                ),
                None if refused > 0 => {
                    warn!(
                        repository = name,
                        refused, "the mirror refuses branches; trying again"
                    );
                }
                None => info!(repository = name, "the mirror has all branches"),
            }
        }
        if is_behind {
            tokio::select! {
                () = ending.cancelled() => return,
                more = moved.changed() => if more.is_err() { return },
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        } else {
            pause = PAUSE_MIN;
            tokio::select! {
                () = ending.cancelled() => return,
                more = moved.changed() => if more.is_err() { return },
            }
        }
    }
}

/// Compares and pushes once, for every repository that the name fits. Branches of different
/// repositories never meet: the name of a run is part of theirs.
async fn round(name: &str, settings: &MirrorSettings, repositories: &Repositories) -> Round {
    let mut round = Round::default();
    for name in fitting(name, repositories) {
        if let Err(error) = one(&name, settings, repositories, &mut round).await {
            round.trouble.get_or_insert_with(|| chain(&error));
        }
    }
    round
}

/// Gives the hosted repositories that a name fits: one, or all that begin so if it ends with `*`.
fn fitting(name: &str, repositories: &Repositories) -> Vec<String> {
    let Some(start) = name.strip_suffix('*') else {
        return vec![name.to_owned()];
    };
    // Nothing was ever run on a home without the folder.
    let entries = std::fs::read_dir(repository::folder(repositories.home()));
    let names = entries.into_iter().flatten().filter_map(|entry| {
        let file = entry.ok()?.file_name();
        Some(file.to_str()?.strip_suffix(".git")?.to_owned())
    });
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort_unstable();
    names
}

async fn one(
    name: &str,
    settings: &MirrorSettings,
    repositories: &Repositories,
    round: &mut Round,
) -> Result<(), Error> {
    // Nothing was ever run in it.
    let Ok(repository) = repositories.open(name).await else {
        return Ok(());
    };
    let wanted = repository.list_refs(names::HEADS).await?;
    if wanted.is_empty() {
        return Ok(());
    }
    let remote = remote(settings)?;
    let patterns = format!("{}/*", names::HEADS);
    let found: BTreeMap<RefName, ObjectId> = remote
        .ls_remote(repository.git(), &[&patterns])
        .await
        .map_err(Error::of)?
        .refs
        .into_iter()
        .collect();
    let mut pushes = Vec::new();
    for (branch, commit) in wanted {
        let expected = match found.get(&branch) {
            Some(there) if *there == commit => {
                round
                    .mirrored
                    .insert(branch.to_string(), commit.to_string());
                continue;
            }
            None => Expected::Absent,
            Some(there) if is_ours(&repository, *there).await? => Expected::Is(*there),
            Some(there) => {
                let what = format!("somebody else has put {there} there");
                round.refused.insert(branch.to_string(), what);
                continue;
            }
        };
        pushes.push(PushRef {
            name: branch,
            new: Some(commit),
            expected,
        });
    }
    for chunk in pushes.chunks(BRANCHES_PER_PUSH) {
        let verdicts = remote.push(&repository, chunk).await.map_err(Error::of)?;
        for (push, verdict) in chunk.iter().zip(verdicts) {
            let branch = push.name.to_string();
            match verdict.outcome {
                PushOutcome::Rejected {
                    reason,
                    remote_says,
                } => {
                    let says = remote_says.lines().next().unwrap_or_default();
                    let what = match says {
                        "" => reason,
                        says => format!("{reason}: {says}"),
                    };
                    round.refused.insert(branch, without_users(&what));
                }
                PushOutcome::Created | PushOutcome::Moved | PushOutcome::UpToDate => {
                    let commit = push.new.map(|commit| commit.to_string());
                    round.mirrored.insert(branch, commit.unwrap_or_default());
                }
            }
        }
    }
    Ok(())
}

/// Tells whether a value of a branch there can be one that was pushed from here: a commit that
/// somebody else has made is not in the hosted repository.
async fn is_ours(repository: &Repository, there: ObjectId) -> Result<bool, Error> {
    repository
        .exists(there)
        .await
        .map_err(|error| Error::Hosted(chain(&error)))
}

fn remote(settings: &MirrorSettings) -> Result<Remote, Error> {
    let remote = Remote::new(&settings.url)?.with_timeout(TRANSFER_TIME_MAX);
    // Read each time: one that was mended or changed is used at the next try.
    Ok(match &settings.credential_file {
        Some(file) => {
            let credential::Credential { user, password } = credential::read(file)?;
            remote.with_password(user, password)
        }
        None => remote,
    })
}

#[cfg(test)]
mod tests;
