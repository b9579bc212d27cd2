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

pub(crate) use source::Source;

/// What a submission takes besides the plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
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
    let bytes = read_bytes(path)?;
    match plan::parse(&shown, &bytes, agents) {
        Ok(plan) => Ok(ReadPlan {
            plan,
            bytes,
            path: path.to_owned(),
        }),
        Err(problems) => {
            let count = problems.list.len() + problems.omitted;
            let what = super::show::counted(count, "problem");
            Err(CliError::user(format!("{shown} has {what}")).findings(problems.to_string()))
        }
    }
}

/// Reads the bytes of a plan, at most one more than a plan may have.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            file.take(plan::FILE_BYTES_MAX as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| {
            CliError::new(Kind::User, error)
                .while_doing(format!("read the plan {}", path.display()))
                .hint("name a YAML file with tasks; `coordinator help run` shows examples")
        })?;
    Ok(bytes)
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

/// Says what was tolerated in a plan and finds the code that it is about, before anything is started.
///
/// `None` if the plan has no repository; `instead` takes the place of the one that it names.
pub(crate) async fn source(
    git: &Git,
    output: Output,
    read: &ReadPlan,
    instead: Option<&str>,
) -> Result<Option<Source>> {
    say_warnings(output, read);
    Source::find(git, output, read, instead).await
}

/// Submits a plan and gives the name of its run.
///
/// Repeating it with the same idempotency key is harmless and gives the same run.
pub(crate) async fn submit(
    client: &Client,
    output: Output,
    read: &ReadPlan,
    source: Option<&Source>,
    request: &Request,
) -> Result<v1::SubmitRunResponse> {
    let key = match &request.idempotency_key {
        Some(key) => key.clone(),
        None => uuid::Uuid::now_v7().to_string(),
    };
    let prepare = v1::PrepareRunRequest {
        plan: read.plan.name().to_owned(),
        idempotency_key: key.clone(),
        repository_hint: source.map(|source| source.hint.clone()),
        object_format: source
            .map(|source| source.base.format().as_str().to_owned())
            .unwrap_or_default(),
    };
    let prepared = client.operator().prepare_run(prepare).await?.into_inner();
    if let Some(source) = source.filter(|_| !prepared.exists) {
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
        repository: source.map(|_| prepared.repository),
        base: source.map(|source| source.base.to_string()),
        folder_prefix: source
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
            return Err(with_shallow_hint(source, error).await);
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
            Err(with_shallow_hint(source, error).await)
        }
        _ => Ok(()),
    }
}

async fn with_shallow_hint(source: &Source, error: CliError) -> CliError {
    if source.is_shallow().await {
        error.hint(
            "the repository is a shallow clone, which cannot be pushed; \
             `git fetch --unshallow` completes it",
        )
    } else {
        error
    }
}

#[cfg(test)]
mod tests;
