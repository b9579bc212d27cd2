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
use crate::plan::persona::Personas;
use crate::plan::{self, AgentDefinition, Plan};

use source::Source;

/// Digits of what tells two submissions apart: 160 bits.
const FINGERPRINT_DIGITS: usize = 40;

/// A plan that was read and is right.
pub(crate) struct ReadPlan {
    pub(crate) plan: Plan,
    bytes: Vec<u8>,
    path: PathBuf,
    personas: Personas,
}

/// Reads a plan and checks it; what is wrong becomes an error with `FILE:LINE:COLUMN: …` lines.
pub(crate) fn read_plan(
    path: &Path,
    agents: &BTreeMap<String, AgentDefinition>,
) -> Result<ReadPlan> {
    let shown = path.display().to_string();
    let bytes = read_bytes(path)?;
    match plan::parse_with_personas(&shown, &bytes, agents, folder_of(path)) {
        Ok((mut plan, personas)) => {
            copy_instead_of_repository(&mut plan, path);
            Ok(ReadPlan {
                personas,
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

/// Gives the folder to which paths in a plan are relative.
pub(crate) fn folder_of(plan: &Path) -> &Path {
    plan.parent().unwrap_or(Path::new(""))
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
    let in_repository = folder
        .ancestors()
        .any(|above| is_repository(&above.join(".git")));
    if !in_repository {
        let from = location.clone();
        plan.document.repo = Some(plan::Repo::Folder(plan::FolderRepo { from }));
    }
}

/// Tells whether git takes this for a repository. An empty folder of the name is none: sandboxes of
/// agents leave such.
fn is_repository(git: &Path) -> bool {
    git.is_file() || git.join("HEAD").exists()
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

/// A plan with the code that it starts from, ready to be submitted.
///
/// Its runs have numbers: an unchanged plan of an unchanged commit has run 0, then run 1. What has
/// not changed follows from its contents, so that every client counts the same.
pub(crate) struct Submission<'r> {
    output: Output,
    read: &'r ReadPlan,
    source: Option<Source>,
    fingerprint: String,
}

impl<'r> Submission<'r> {
    /// Finds the code of a plan, in `repo` if that is given, else where the plan says.
    ///
    /// # Errors
    /// There is no such repository or commit. Nothing was written or sent.
    pub(crate) async fn find(
        git: &Git,
        output: Output,
        read: &'r ReadPlan,
        repo: Option<&str>,
        agents: &BTreeMap<String, AgentDefinition>,
    ) -> Result<Self> {
        say_warnings(output, read);
        let source = Source::find(git, output, read, repo).await?;
        if let Some(source) = &source {
            source.has_hooks(&read.plan.document).await?;
        }
        let fingerprint = fingerprint(read, source.as_ref(), agents);
        Ok(Self {
            output,
            read,
            source,
            fingerprint,
        })
    }

    fn key(&self, number: u32) -> String {
        format!("unchanged-{}-{number}", self.fingerprint)
    }

    /// Gives the lowest number that no run has.
    ///
    /// Another client may take it before we do; then the coordinator says so.
    ///
    /// # Errors
    /// The coordinator does not answer, or refuses the plan's name.
    pub(crate) async fn next_number(&self, client: &Client) -> Result<u32> {
        // Numbers are taken in turn, so it is found by halving.
        let (mut taken, mut free) = (None, 0_u32);
        while self.prepare(client, &self.key(free)).await?.exists {
            if free == u32::MAX {
                return Err(CliError::connection(
                    "the coordinator says that it has every run that there can be",
                ));
            }
            taken = Some(free);
            free = free.saturating_mul(2).saturating_add(1);
        }
        while let Some(last) = taken.filter(|last| last + 1 < free) {
            let middle = u32::midpoint(last, free);
            if self.prepare(client, &self.key(middle)).await?.exists {
                taken = Some(middle);
            } else {
                free = middle;
            }
        }
        Ok(free)
    }

    /// Gives the name that the run of a number has, or would have.
    ///
    /// # Errors
    /// The coordinator does not answer.
    pub(crate) async fn name(&self, client: &Client, number: u32) -> Result<String> {
        Ok(self.prepare(client, &self.key(number)).await?.run)
    }

    /// Submits the run of a number. Repeating it is harmless and gives the same run.
    ///
    /// # Errors
    /// The base cannot be pushed, or the plan is refused. No run exists then.
    pub(crate) async fn submit(
        &self,
        client: &Client,
        number: u32,
    ) -> Result<v1::SubmitRunResponse> {
        self.submit_as(client, self.key(number)).await
    }

    /// Submits a further run, whatever runs there are.
    ///
    /// # Errors
    /// As [`Submission::submit`].
    pub(crate) async fn submit_again(&self, client: &Client) -> Result<v1::SubmitRunResponse> {
        loop {
            let number = self.next_number(client).await?;
            let submitted = self.submit(client, number).await?;
            if submitted.fresh {
                return Ok(submitted);
            }
        }
    }

    /// Submits under a key of the person's own.
    ///
    /// # Errors
    /// As [`Submission::submit`].
    pub(crate) async fn submit_as(
        &self,
        client: &Client,
        key: String,
    ) -> Result<v1::SubmitRunResponse> {
        let (read, source) = (self.read, self.source.as_ref());
        let prepared = self.prepare(client, &key).await?;
        let mut not_pushed = None;
        if let Some(source) = source.filter(|_| !prepared.exists) {
            // Another client that submits the same may have pushed it; then the coordinator finds
            // the base, and only else does this matter.
            not_pushed = push(client, source, &prepared).await.err();
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
            personas: personas(&read.personas),
        };
        let submitted = match (client.operator().submit_run(submit).await, not_pushed) {
            (Ok(submitted), _) => submitted.into_inner(),
            (Err(_), Some(not_pushed)) => return Err(not_pushed),
            (Err(refused), None) => return Err(refused.into()),
        };
        for warning in &submitted.warnings {
            // Most were said above, with their places in a file that the person knows.
            if read.plan.warnings.list.is_empty() {
                self.output.say(&format!("warning: {}", harmless(warning)));
            }
        }
        Ok(submitted)
    }

    async fn prepare(&self, client: &Client, key: &str) -> Result<v1::PrepareRunResponse> {
        let source = self.source.as_ref();
        let prepare = v1::PrepareRunRequest {
            plan: self.read.plan.name().to_owned(),
            idempotency_key: key.to_owned(),
            repository_hint: source.map(|source| source.hint.clone()),
            object_format: source
                .map(|source| source.base.format().as_str().to_owned())
                .unwrap_or_default(),
        };
        Ok(client.operator().prepare_run(prepare).await?.into_inner())
    }
}

/// Gives what tells two submissions apart: the plan's bytes, the commit and folder it starts from,
/// its repository, and the agents that the configuration declares.
fn fingerprint(
    read: &ReadPlan,
    source: Option<&Source>,
    agents: &BTreeMap<String, AgentDefinition>,
) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        // With its length, so that no two lists of parts read the same.
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&read.bytes);
    for (path, persona) in &read.personas {
        part(path.as_bytes());
        part(format!("{persona:?}").as_bytes());
    }
    for (name, agent) in agents {
        part(name.as_bytes());
        part(format!("{agent:?}").as_bytes());
    }
    if let Some(source) = source {
        part(source.base.to_string().as_bytes());
        part(source.folder_prefix.as_bytes());
        part(source.hint.as_bytes());
    }
    let hash = hasher.finalize().to_hex();
    hash.chars().take(FINGERPRINT_DIGITS).collect()
}

fn personas(read: &Personas) -> Vec<v1::Persona> {
    let sent = read.iter().map(|(path, persona)| v1::Persona {
        path: path.clone(),
        instructions: persona.instructions.clone(),
        skills: persona.skills.clone().into_iter().collect(),
    });
    sent.collect()
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
