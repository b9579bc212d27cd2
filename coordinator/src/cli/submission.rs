//! From a plan file to an admitted run: read the plan, find its code, push the base, submit.
//!
//! Nothing is written to the person's repository, and the coordinator is told no path of theirs.

mod source;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use muster_git::{Expected, Git, PushOutcome, PushRef, RefName};
use muster_proto::v1;

use super::client::Client;
use super::error::{CliError, Kind, Result};
use crate::output::{Output, harmless};
use crate::plan::{self, AgentDefinition, Plan};

use source::Source;

/// What a submission takes besides the plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    /// Instead of the plan's own repository.
    pub(crate) repo: Option<String>,
    pub(crate) idempotency_key: Option<String>,
}

/// A plan that was read and is right.
pub(crate) struct ReadPlan {
    pub(crate) plan: Plan,
    bytes: Vec<u8>,
    path: PathBuf,
}

/// Reads a plan and checks it; what is wrong becomes an error with `FILE:LINE:COLUMN: …` lines.
pub(crate) fn read_plan(
    path: &Path,
    agents: &BTreeMap<String, AgentDefinition>,
) -> Result<ReadPlan> {
    let shown = path.display().to_string();
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            file.take(plan::FILE_BYTES_MAX as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| {
            CliError::new(Kind::User, error).while_doing(format!("read the plan {shown}"))
        })?;
    match plan::parse(&shown, &bytes, agents) {
        Ok(mut plan) => {
            copy_instead_of_repository(&mut plan, path);
            Ok(ReadPlan {
                plan,
                bytes,
                path: path.to_owned(),
            })
        }
        Err(problems) => {
            let count = problems.list.len() + problems.omitted;
            let what = super::show::counted(count, "problem");
            Err(CliError::user(format!("{shown} has {what}")).findings(problems.to_string()))
        }
    }
}

/// Lets a codex-par file whose folder is in no git repository, which codex-par does not ask for,
/// work on a copy of that folder.
fn copy_instead_of_repository(plan: &mut Plan, path: &Path) {
    let is_codex_par = plan.document.tasks.iter().any(|task| task.codex.is_some());
    let Some(plan::Repo::Location(location)) = plan.document.repo.as_ref().filter(|_| is_codex_par)
    else {
        return;
    };
    let folder = path.parent().unwrap_or(Path::new("")).join(location);
    // A folder that is not there is explained where it is looked for.
    let Ok(folder) = folder.canonicalize() else {
        return;
    };
    let in_repository = folder.ancestors().any(|above| above.join(".git").exists());
    if !in_repository {
        let from = location.clone();
        plan.document.repo = Some(plan::Repo::Folder(plan::FolderRepo { from }));
    }
}

/// Says what was tolerated in a plan.
pub(crate) fn say_warnings(output: Output, read: &ReadPlan) {
    for warning in &read.plan.warnings.list {
        let plan::Position { line, column } = warning.at;
        let file = read.path.display();
        let message = harmless(&warning.message);
        output.say(&format!("{file}:{line}:{column}: warning: {message}"));
    }
}

/// Submits a plan and gives the name of its run.
///
/// Repeating it with the same idempotency key is harmless and gives the same run.
pub(crate) async fn submit(
    client: &Client,
    git: &Git,
    output: Output,
    read: &ReadPlan,
    request: &Request,
) -> Result<v1::SubmitRunResponse> {
    say_warnings(output, read);
    let source = Source::find(git, output, read, request.repo.as_deref()).await?;
    let key = match &request.idempotency_key {
        Some(key) => key.clone(),
        None => uuid::Uuid::now_v7().to_string(),
    };
    let prepare = v1::PrepareRunRequest {
        plan: read.plan.name().to_owned(),
        idempotency_key: key.clone(),
        repository_hint: source.as_ref().map(|source| source.hint.clone()),
        object_format: source
            .as_ref()
            .map(|source| source.base.format().as_str().to_owned())
            .unwrap_or_default(),
    };
    let prepared = client.operator().prepare_run(prepare).await?.into_inner();
    if let Some(source) = source.as_ref().filter(|_| !prepared.exists) {
        push(client, source, &prepared).await?;
    }
    let submit = v1::SubmitRunRequest {
        run: prepared.run,
        idempotency_key: key,
        plan: read.bytes.clone(),
        // Only the name: where people keep their files is theirs alone.
        plan_name: read
            .path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        repository: source.as_ref().map(|_| prepared.repository),
        base: source.as_ref().map(|source| source.base.to_string()),
        folder_prefix: source
            .as_ref()
            .map(|source| source.folder_prefix.clone())
            .unwrap_or_default(),
    };
    let submitted = client.operator().submit_run(submit).await?.into_inner();
    for warning in &submitted.warnings {
        // Most were said above, with their places in a file that the person knows.
        if read.plan.warnings.list.is_empty() {
            output.say(&format!("warning: {}", harmless(warning)));
        }
    }
    Ok(submitted)
}

async fn push(client: &Client, source: &Source, prepared: &v1::PrepareRunResponse) -> Result<()> {
    let what = || format!("push the base of run {} to the coordinator", prepared.run);
    let name = RefName::parse(&prepared.source_ref)
        .map_err(|error| CliError::from(error).while_doing(what()))?;
    let wanted = PushRef {
        name,
        new: Some(source.base),
        expected: Expected::Absent,
    };
    let pushed = client
        .hosted(&prepared.repository)?
        .push(&source.repository, &[wanted])
        .await;
    let pushed = match pushed {
        Ok(pushed) => pushed,
        Err(error) => {
            let error = CliError::new(Kind::Connection, error).while_doing(what());
            return Err(error.hint(source.hint_for_push().await));
        }
    };
    match pushed.into_iter().next().map(|push| push.outcome) {
        Some(PushOutcome::Rejected {
            reason,
            remote_says,
        }) => {
            let said = if remote_says.is_empty() {
                reason
            } else {
                remote_says
            };
            let error = CliError::user(said).while_doing(what());
            Err(error.hint(source.hint_for_push().await))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
