//! What a task or a run changed.

use coordinator_core::event::Outcome;
use coordinator_core::state::{AttemptEnd, Run, RunPhase};
use coordinator_core::{AttemptNo, CommitId};
use muster_git::{BinaryFiles, ChangeKind, ObjectId, Repository};
use muster_proto::v1::{ChangedFile, GetDiffRequest, GetDiffResponse};
use tonic::Status;

use super::runs::Runs;
use super::status;
use crate::git::repositories::Repositories;

/// Bytes of a patch in one answer.
const PATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Changed files in one answer.
const FILES_MAX: usize = 10_000;

/// Columns of a list of changed files: those of the narrowest terminal that is common.
const STAT_WIDTH: &str = "--stat=80";

struct Ends {
    repository: String,
    from: CommitId,
    to: CommitId,
}

/// Gives the difference that is asked for.
///
/// # Errors
/// `NOT_FOUND` and `FAILED_PRECONDITION` that say what is not there (yet).
pub(super) async fn of(
    runs: &Runs,
    repositories: &Repositories,
    request: &GetDiffRequest,
) -> Result<GetDiffResponse, Status> {
    let (task, attempt) = (request.task.clone(), request.attempt);
    let ends = runs
        .read(&request.run, move |run, _| ends(run, &task, attempt))
        .await??;
    let repository = repositories.open(&ends.repository).await?;
    let (from, to) = (id(&ends.from)?, id(&ends.to)?);
    let shape = match (request.stat, request.binary) {
        (true, _) => Shape::Stat,
        (false, true) => Shape::Patch(BinaryFiles::Whole),
        (false, false) => Shape::Patch(BinaryFiles::Named),
    };
    let (patch, truncated) = patch(&repository, from, to, shape).await?;
    let (files, files_total) = if request.files {
        files(&repository, from, to).await?
    } else {
        (Vec::new(), 0)
    };
    Ok(GetDiffResponse {
        patch,
        truncated,
        from: ends.from.to_string(),
        to: ends.to.to_string(),
        files,
        files_total,
    })
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Stat,
    Patch(BinaryFiles),
}

/// Lists changed files, at most [`FILES_MAX`], and tells how many there are.
async fn files(
    repository: &Repository,
    from: ObjectId,
    to: ObjectId,
) -> Result<(Vec<ChangedFile>, u64), Status> {
    let changes = repository
        .changes(from, to)
        .await
        .map_err(|error| status::internal(&error))?;
    let total = u64::try_from(changes.len()).unwrap_or(u64::MAX);
    let files = changes.into_iter().take(FILES_MAX).map(|change| {
        let (status, old_path) = match change.kind {
            ChangeKind::Added => ("added", None),
            ChangeKind::Deleted => ("deleted", None),
            ChangeKind::Modified => ("modified", None),
            ChangeKind::TypeChanged => ("type_changed", None),
            ChangeKind::Renamed { from } => ("renamed", Some(from)),
        };
        ChangedFile {
            path: change.path,
            status: status.to_owned(),
            old_path,
            added: change.lines.map(|(added, _)| added),
            removed: change.lines.map(|(_, removed)| removed),
        }
    });
    Ok((files.collect(), total))
}

fn id(commit: &CommitId) -> Result<ObjectId, Status> {
    ObjectId::parse(commit.as_str()).map_err(|error| status::internal(&error))
}

async fn patch(
    repository: &Repository,
    from: ObjectId,
    to: ObjectId,
    shape: Shape,
) -> Result<(Vec<u8>, bool), Status> {
    let Shape::Patch(binary) = shape else {
        let output = repository
            .command()
            // The newer side must not choose what a reader sees.
            .env("GIT_ATTR_SOURCE", from.to_string())
            // Letters of all languages are letters; what is not text is quoted all the same.
            .config("core.quotePath", "false")
            .args(["diff", "-M", STAT_WIDTH, "--no-ext-diff"])
            .args(["--no-textconv", "--no-color", "--end-of-options"])
            .arg(from.to_string())
            .arg(to.to_string())
            .stdout_limit(PATCH_BYTES_MAX)
            .run_truncated()
            .await
            .map_err(|error| status::internal(&error))?;
        if !output.truncated && output.exit_code != Some(0) {
            return Err(Status::internal(format!(
                "git could not compare {from} and {to}: {}",
                output.stderr
            )));
        }
        return Ok((output.stdout, output.truncated));
    };
    let patch = repository
        .patch(from, to, binary, PATCH_BYTES_MAX)
        .await
        .map_err(|error| status::internal(&error))?;
    Ok((patch.bytes, patch.truncated))
}

fn ends(run: &Run, name: &str, attempt: u32) -> Result<Ends, Status> {
    let source = run
        .source
        .as_ref()
        .ok_or_else(|| Status::failed_precondition("the run has no repository"))?;
    let repository = source.repository.to_string();
    if name.is_empty() {
        let to = match &run.phase {
            RunPhase::Verifying { commit, .. }
            | RunPhase::Ended {
                integrated: Some(commit),
                ..
            } => commit.clone(),
            RunPhase::Active | RunPhase::Integrating { .. } | RunPhase::Ended { .. } => {
                return Err(Status::failed_precondition(
                    "nothing is integrated; name a task to see its change",
                ));
            }
        };
        return Ok(Ends {
            repository,
            from: source.base.clone(),
            to,
        });
    }
    let task = run
        .tasks
        .iter()
        .find(|task| *task.name == *name)
        .ok_or_else(|| Status::not_found(format!("no task {name:?} in run {}", run.name)))?;
    let nothing = || Status::failed_precondition(format!("task {name} has published nothing yet"));
    let history = task.history.as_deref().ok_or_else(nothing)?;
    let from = history.base.clone().ok_or_else(nothing)?;
    let made = |end: &Option<AttemptEnd>| match end {
        Some(
            AttemptEnd::Made(outcome)
            | AttemptEnd::Succeeded(outcome)
            | AttemptEnd::VerifyFailed { outcome, .. },
        ) => match outcome {
            Outcome::Commit(commit) => Some(commit.clone()),
            Outcome::NoChange | Outcome::NoRepository => Some(from.clone()),
        },
        Some(
            AttemptEnd::Failed(_)
            | AttemptEnd::Cancelled
            | AttemptEnd::Parked { .. }
            | AttemptEnd::NeverStarted,
        )
        | None => None,
    };
    let to = match attempt {
        0 => history
            .attempts
            .iter()
            .rev()
            .find_map(|tried| made(&tried.end)),
        number => {
            let tried = history
                .attempts
                .iter()
                .find(|tried| tried.number == AttemptNo(number));
            let tried = tried.ok_or_else(|| {
                Status::failed_precondition(format!("task {name} has no attempt {number}"))
            })?;
            made(&tried.end)
        }
    };
    Ok(Ends {
        repository,
        to: to.ok_or_else(nothing)?,
        from,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use muster_git::{Git, Mode};

    use super::*;

    #[tokio::test]
    async fn a_list_of_changed_files_fits_80_columns_and_quotes_odd_names() {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::find().await.unwrap();
        let run = |arguments: &'static [&'static str]| {
            git.command(Mode::UserRepository)
                .directory(folder.path())
                .config("user.name", "Ann")
                .config("user.email", "ann@example.org")
                .args(arguments)
                .run_ok()
        };
        run(&["init", "--quiet"]).await.unwrap();
        run(&["commit", "--quiet", "--allow-empty", "-m", "none"])
            .await
            .unwrap();
        let deep = "a-rather-long-folder/".repeat(6);
        std::fs::create_dir_all(folder.path().join(&deep)).unwrap();
        for name in [
            "with space",
            "tab\there",
            "new\nline",
            "日本語",
            &format!("{deep}file"),
        ] {
            std::fs::write(folder.path().join(name), "line\n".repeat(500)).unwrap();
        }
        run(&["add", "."]).await.unwrap();
        run(&["commit", "--quiet", "-m", "odd"]).await.unwrap();
        let repository = Repository::open_user(&git, folder.path()).await.unwrap();
        let from = repository.rev_parse("HEAD~1").await.unwrap();
        let to = repository.rev_parse("HEAD").await.unwrap();
        let (listed, truncated) = patch(&repository, from, to, Shape::Stat).await.unwrap();
        let listed = String::from_utf8(listed).unwrap();
        assert!(!truncated);
        for line in listed.lines() {
            assert!(console::measure_text_width(line) <= 80, "{line}");
        }
        for wanted in [
            r#""tab\there""#,
            r#""new\nline""#,
            "with space ",
            "日本語 ",
            "5 files",
        ] {
            assert!(listed.contains(wanted), "{wanted}: {listed}");
        }
        let missing = ObjectId::parse(&"1".repeat(40)).unwrap();
        assert!(
            patch(&repository, from, missing, Shape::Stat)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_patch_of_any_encoding_is_what_git_apply_needs() {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::find().await.unwrap();
        let work = folder.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let run = async |arguments: &[&str]| {
            git.command(Mode::UserRepository)
                .directory(&work)
                .config("user.name", "Ann")
                .config("user.email", "ann@example.org")
                .config("core.autocrlf", "false")
                .args(arguments)
                .run_ok()
                .await
                .unwrap()
                .text()
        };
        let odd = work.join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt"));
        let commit = async || {
            run(&["add", "--all"]).await;
            run(&["commit", "--quiet", "-m", "x"]).await;
        };
        run(&["init", "--quiet"]).await;
        std::fs::write(work.join("latin"), b"caf\xe9\nbar\r\n").unwrap();
        std::fs::write(work.join("long"), "line\n".repeat(20)).unwrap();
        std::fs::write(work.join("gone"), "x\n").unwrap();
        commit().await;
        std::fs::write(work.join("latin"), b"th\xe9\nbar\r\nno end").unwrap();
        std::fs::write(work.join("picture"), b"\0\x01\xff").unwrap();
        std::fs::write(&odd, b"\xe9\n").unwrap();
        std::fs::rename(work.join("long"), work.join("renamed")).unwrap();
        std::fs::remove_file(work.join("gone")).unwrap();
        commit().await;
        let repository = Repository::open_user(&git, &work).await.unwrap();
        let from = repository.rev_parse("HEAD~1").await.unwrap();
        let to = repository.rev_parse("HEAD").await.unwrap();
        let whole = Shape::Patch(BinaryFiles::Whole);
        let (patch, truncated) = patch(&repository, from, to, whole).await.unwrap();
        assert!(!truncated && std::str::from_utf8(&patch).is_err());
        let file = folder.path().join("patch");
        std::fs::write(&file, patch).unwrap();
        run(&["checkout", "--quiet", "HEAD~1"]).await;
        run(&["apply", "--index", file.to_str().unwrap()]).await;
        let wanted = run(&["rev-parse", &format!("{to}^{{tree}}")]).await;
        assert_eq!(run(&["write-tree"]).await, wanted);

        let (files, total) = files(&repository, from, to).await.unwrap();
        let change = |path: &[u8], status: &str, lines: Option<(u64, u64)>| ChangedFile {
            path: path.to_vec(),
            status: status.to_owned(),
            old_path: (status == "renamed").then(|| b"long".to_vec()),
            added: lines.map(|(added, _)| added),
            removed: lines.map(|(_, removed)| removed),
        };
        let wanted = [
            change(b"caf\xe9.txt", "added", Some((1, 0))),
            change(b"gone", "deleted", Some((0, 1))),
            change(b"latin", "modified", Some((2, 1))),
            change(b"picture", "added", None),
            change(b"renamed", "renamed", Some((0, 0))),
        ];
        assert_eq!((files, total), (wanted.to_vec(), 5));
    }
}
