//! `coordinator fetch`.

use std::path::Path;

use muster_git::{Git, GitError, ObjectId, RefName, Refspec, Repository};
use serde_json::json;

use super::arguments::Fetch;
use super::client::Client;
use super::context::{Context, Session};
use super::error::{CliError, Exit, Kind, Result};
use super::{find, show};
use crate::git::names;

pub(crate) async fn fetch(context: &Context, options: Fetch) -> Result<Exit> {
    let session = context.session().await?;
    let ended = bring(context, &session, &options).await;
    session.close().await;
    ended
}

async fn bring(context: &Context, session: &Session, options: &Fetch) -> Result<Exit> {
    let name = find::run(&session.client, options.run.as_deref()).await?;
    let run = find::get(&session.client, &name).await?;
    let git = Git::find().await?;
    let repository = open(&git, &options.repo).await?;
    let (branch, commit) = match &options.task {
        None => integrated(&run)?,
        Some(task) => {
            let found = run
                .tasks
                .iter()
                .find(|found| found.name == *task)
                .ok_or_else(|| {
                    CliError::user(format!("run {name} has no task {task:?}")).hint(format!(
                        "`{} status {name}` lists its tasks",
                        context.program
                    ))
                })?;
            let commit = found.commit.as_deref().ok_or_else(|| {
                let what = if found.no_change {
                    "has changed nothing"
                } else {
                    "has no result"
                };
                CliError::user(format!(
                    "task {task} of run {name} {what} ({})",
                    found.state
                ))
            })?;
            (names::task_head(&name, task), ObjectId::parse(commit)?)
        }
    };
    let fetched = into_remotes(&session.client, &repository, &run, &branch, commit).await?;
    let short = fetched.as_str().trim_start_matches("refs/remotes/");
    if options.json {
        context.output.json(&json!({
            "run": name,
            "task": options.task,
            "ref": fetched.as_str(),
            "commit": commit.to_string(),
        }))?;
    } else {
        context.output.data(&format!("{short} is {commit}"))?;
        context
            .output
            .say(&format!("look at it with: git log {short}"));
    }
    Ok(Exit::Success)
}

/// Opens the person's repository.
pub(crate) async fn open(git: &Git, folder: &Path) -> Result<Repository> {
    Repository::open_user(git, folder).await.map_err(|error| {
        let hint = "go to your repository, or name it with `--repo PATH`";
        not_opened(error, &folder.display().to_string(), hint)
    })
}

/// Says why a folder could not be opened as a repository, with the way out if git names none.
pub(crate) fn not_opened(error: GitError, shown: &str, hint: &str) -> CliError {
    // One that belongs to somebody else: git says what to do.
    let is_explained = error.to_string().contains("safe.directory");
    let error =
        CliError::new(Kind::User, error).while_doing(format!("open the repository {shown}"));
    if is_explained {
        error
    } else {
        error.hint(hint)
    }
}

/// Gives the integrated branch of a run and its commit.
pub(crate) fn integrated(run: &muster_proto::v1::Run) -> Result<(String, ObjectId)> {
    let name = &run.run;
    let none = |why: String| CliError::user(format!("run {name} has no integrated result: {why}"));
    let integration = run.integration.as_ref();
    match integration.map(|of| (of.state.as_str(), of.commit.as_deref())) {
        Some(("integrated", Some(commit))) => {
            Ok((names::integration_head(name), ObjectId::parse(commit)?))
        }
        Some(("conflict", _)) => Err(
            none("the work of its tasks does not merge".to_owned()).hint(format!(
                "`coordinator fetch {name} TASK` fetches the work of one task"
            )),
        ),
        _ if !show::has_ended(run) => Err(none(format!("it is {}", run.state))
            .hint(format!("`coordinator watch {name}` waits for its end"))),
        _ if run.repository.is_none() => Err(none("it has no repository".to_owned())),
        _ if run.state == "cancelled" => Err(none("it was cancelled".to_owned()).hint(format!(
            "`coordinator fetch {name} TASK` fetches the work of one task"
        ))),
        None if run.state == "succeeded" => {
            let why = "its plan says `integrate: false`, so each task has a branch of its own";
            Err(none(why.to_owned()).hint(format!(
                "`coordinator fetch {name} TASK` fetches the work of one task"
            )))
        }
        _ => Err(none(format!("it {}", run.state)).hint(format!(
            "`coordinator fetch {name} TASK` fetches the work of one task"
        ))),
    }
}

/// Fetches a branch of a run to the same place under refs/remotes, and makes sure that it is the
/// commit that the run's journal names.
pub(crate) async fn into_remotes(
    client: &Client,
    repository: &Repository,
    run: &muster_proto::v1::Run,
    branch: &str,
    commit: ObjectId,
) -> Result<RefName> {
    let hosted = run
        .repository
        .as_deref()
        .ok_or_else(|| CliError::user(format!("run {} has no repository", run.run)))?;
    let short = branch.trim_start_matches("refs/heads/");
    let from = RefName::parse(&format!("refs/heads/{short}"))?;
    let into = RefName::parse(&format!("refs/remotes/{short}"))?;
    client
        .hosted(hosted)?
        .fetch(repository, &[Refspec::to_ref(&from, &into)])
        .await
        .map_err(|error| {
            let here = refused_here(&error);
            let kind = here.map_or(Kind::Connection, |_| Kind::User);
            let error = CliError::new(kind, error).while_doing(format!("fetch {short}"));
            match here {
                Some(hint) => error.hint(format!("{hint} ({})", repository.folder().display())),
                None => error,
            }
        })?;
    match repository.read_ref(&into).await? {
        Some(found) if found == commit => Ok(into),
        found => {
            let found = found.map_or_else(|| "nothing".to_owned(), |found| found.to_string());
            Err(CliError::user(format!(
                "{short} is {found}, and the run's result is {commit}"
            ))
            .hint("the branch has moved just now; try again"))
        }
    }
}

/// Tells why the person's own repository did not take what was fetched, if it was that.
pub(super) fn refused_here(error: &GitError) -> Option<&'static str> {
    const SIGNS: [(&str, &str); 4] = [
        (
            "aborted by hook",
            "the hook `reference-transaction` of this repository refuses the ref",
        ),
        (
            "cannot lock ref",
            "something else holds the ref in this repository, or one of its name is in the way",
        ),
        (
            "insufficient permission",
            "this repository cannot be written to",
        ),
        ("No space left on device", "free some space on its disk"),
    ];
    let GitError::Failed { stderr, .. } = error else {
        return None;
    };
    let sign = SIGNS.iter().find(|(sign, _)| stderr.contains(sign));
    sign.map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    #[test]
    fn a_run_that_does_not_integrate_says_so_instead_of_its_success() {
        let run = muster_proto::v1::Run {
            integration: None,
            ..canned::succeeded()
        };
        let error = integrated(&run).unwrap_err().to_string();
        assert!(
            error.contains("its plan says `integrate: false`"),
            "{error}"
        );
        assert!(error.contains("TASK` fetches"), "{error}");
    }
}
