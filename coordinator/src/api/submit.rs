//! Taking a run in: naming it, checking its plan, and admitting it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::plan::{RunSpec, Source};
use coordinator_core::{Command, Rejection, Reply};
use muster_git::{ObjectFormat, RefName};
use muster_proto::v1;
use tokio::sync::Mutex;
use tonic::Status;
use tracing::info;

use super::convert;
use super::plan_reader::PlanReader;
use super::status;
use crate::engine::{self, Handle, Readers};
use crate::git::names;
use crate::git::refs::valid_component;
use crate::git::repositories::Repositories;
use crate::plan::persona::{Persona, Personas};
use crate::plan::{self, Admission, AgentDefinition};
use crate::store::Which;

/// Characters of the plan's name that a run's name begins with.
const SLUG_CHARS: usize = 32;
/// Bytes of an idempotency key.
const KEY_BYTES: usize = 200;

/// Takes runs in.
#[derive(Clone)]
pub struct Submissions {
    engine: Handle,
    readers: Readers,
    repositories: Repositories,
    /// Agents that the coordinator's configuration declares.
    agents: Arc<BTreeMap<String, AgentDefinition>>,
    /// Held from the look whether a run exists to its admission: of two plans under one key the
    /// refused one must not replace the other's documents in between.
    admitting: Arc<Mutex<()>>,
    reader: PlanReader,
}

/// What a submission means, once it was read and checked.
struct Checked {
    plan: String,
    spec: RunSpec,
    digest: String,
    /// The documents of its tasks, and of its integration behind them.
    documents: Vec<Vec<u8>>,
    warnings: Vec<String>,
}

impl Submissions {
    /// Makes the part that takes runs in.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn new(
        engine: Handle,
        readers: Readers,
        repositories: Repositories,
        agents: Arc<BTreeMap<String, AgentDefinition>>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            engine,
            readers,
            repositories,
            agents,
            admitting: Arc::default(),
            reader: PlanReader::start()?,
        })
    }

    /// Names a run and makes its hosted repository ready for the push of its base.
    ///
    /// The run's name follows from the idempotency key, so that a repeat names the same run and
    /// nothing needs to be remembered in between.
    ///
    /// # Errors
    /// Malformed names, or a repository that cannot be made.
    pub async fn prepare(
        &self,
        request: v1::PrepareRunRequest,
    ) -> Result<v1::PrepareRunResponse, Status> {
        let run = run_name(&request.plan, &request.idempotency_key)?;
        let mut response = v1::PrepareRunResponse {
            run: run.clone(),
            source_ref: names::source(&run),
            exists: self.exists(&run).await?,
            ..v1::PrepareRunResponse::default()
        };
        if let Some(hint) = &request.repository_hint {
            let format = match request.object_format.as_str() {
                "" | "sha1" => ObjectFormat::Sha1,
                "sha256" => ObjectFormat::Sha256,
                other => {
                    return Err(Status::invalid_argument(format!(
                        "object_format: {:?} is neither sha1 nor sha256",
                        convert::clip(other, 40)
                    )));
                }
            };
            let name = repository_name(hint, format);
            self.repositories.ready(&name, format).await?;
            response.repository = name;
        }
        Ok(response)
    }

    /// Admits a run.
    ///
    /// # Errors
    /// Everything that is wrong with the plan, a base that was not pushed, agents that no worker
    /// can run, or the core's rejection. Nothing is stored then.
    pub async fn submit(
        &self,
        mut request: v1::SubmitRunRequest,
        by: &str,
    ) -> Result<v1::SubmitRunResponse, Status> {
        let run = &request.run;
        valid_component(run).map_err(|error| Status::invalid_argument(format!("run: {error}")))?;
        let source = self.source(&request).await;
        let text = std::mem::take(&mut request.plan);
        let request = Arc::new(request);
        let (asked, agents, by_whom) = (request.clone(), self.agents.clone(), by.to_owned());
        let check = move || check(&asked, &text, source, &by_whom, &agents);
        let checked = self.reader.run(check).await??;
        let v1::SubmitRunRequest {
            run,
            idempotency_key,
            ..
        } = &*request;
        let name: Arc<str> = Arc::from(run.as_str());
        let _admitting = self.admitting.lock().await;
        if self.exists(run).await? {
            self.refuse_namesake(run, idempotency_key).await?;
        } else {
            self.engine
                .put_specs(name.clone(), checked.documents)
                .await
                .map_err(status::of)?;
        }
        let tasks = checked.spec.tasks.len();
        let command = Command::Submit {
            spec: Arc::new(checked.spec),
            key: (!idempotency_key.is_empty()).then(|| Arc::from(idempotency_key.as_str())),
            digest: Arc::from(checked.digest),
        };
        match self.engine.command(command).await {
            Ok(Reply::Submitted { fresh, .. }) => {
                if fresh {
                    info!(run = %name, plan = checked.plan, tasks, by, "admitted a run");
                }
                Ok(v1::SubmitRunResponse {
                    run: run.clone(),
                    fresh,
                    warnings: checked.warnings,
                })
            }
            Ok(_) => Err(Status::internal(
                "a submission was answered with something else",
            )),
            Err(engine::Error::Rejected(Rejection::InvalidPlan(error))) => {
                let plan_name = plan_name(&request);
                Err(Status::invalid_argument(format!("{plan_name}: {error}")))
            }
            Err(error) => Err(status::of(error)),
        }
    }

    /// Refuses a run whose name an archived run has under another key: keys rarely have one code.
    async fn refuse_namesake(&self, run: &str, key: &str) -> Result<(), Status> {
        let (name, key) = (run.to_owned(), key.to_owned());
        let known = self
            .engine
            .query(move |state, _| state.knows_key(&key) || state.run_by_name(&name).is_some())
            .await
            .map_err(status::of)?;
        if known {
            return Ok(());
        }
        Err(Status::already_exists(format!(
            "an archived run has the name {run}; use another idempotency key"
        )))
    }

    /// Tells whether a run of that name is live or archived.
    async fn exists(&self, run: &str) -> Result<bool, Status> {
        if engine::live_run(&self.engine, run)
            .await
            .map_err(status::of)?
            .is_some()
        {
            return Ok(true);
        }
        let name = run.to_owned();
        let archived = self
            .readers
            .read(move |reader| reader.archived(Which::Name(&name)))
            .await
            .map_err(status::of_read)?;
        Ok(archived.is_some())
    }

    /// Checks that the base was pushed, and is what the client says.
    async fn source(&self, request: &v1::SubmitRunRequest) -> Result<Option<Source>, Status> {
        let (repository, base) = match (&request.repository, &request.base) {
            (Some(repository), Some(base)) => (repository, base),
            (None, None) => return Ok(None),
            _ => {
                return Err(Status::invalid_argument(
                    "repository and base belong together",
                ));
            }
        };
        let base = convert::commit_of(base, "base")?;
        let hosted = self.repositories.open(repository).await?;
        let name = RefName::parse(&names::source(&request.run))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let found = hosted
            .read_ref(&name)
            .await
            .map_err(|error| status::internal(&error))?;
        match found {
            Some(found) if found.to_string() == base.as_str() => {}
            Some(found) => {
                return Err(Status::failed_precondition(format!(
                    "the base pushed for run {} is {found}, not {base}",
                    request.run
                )));
            }
            None => {
                return Err(Status::failed_precondition(format!(
                    "the base of run {} was not pushed to {}",
                    request.run,
                    names::source(&request.run)
                )));
            }
        }
        Ok(Some(Source {
            repository: Arc::from(repository.as_str()),
            base,
        }))
    }
}

/// Gives how a submission's plan is called in messages.
fn plan_name(request: &v1::SubmitRunRequest) -> &str {
    match request.plan_name.as_str() {
        "" => "plan",
        name => convert::clip(name, 400),
    }
}

/// Reads and checks a plan, and makes what the core and the workers need of it.
fn check(
    request: &v1::SubmitRunRequest,
    text: &[u8],
    source: Result<Option<Source>, Status>,
    by: &str,
    agents: &BTreeMap<String, AgentDefinition>,
) -> Result<Checked, Status> {
    let parsed = plan::parse(plan_name(request), text, agents)
        .map_err(|problems| Status::invalid_argument(problems.to_string()))?;
    let run = &request.run;
    if *run != run_name(parsed.name(), &request.idempotency_key)? {
        return Err(Status::invalid_argument(format!(
            "run: {run:?} was not prepared for this plan and idempotency key"
        )));
    }
    let admission = Admission {
        run,
        source: source?,
        submitted_by: by,
        folder_prefix: &request.folder_prefix,
        personas: Cow::Owned(personas(&request.personas)),
    };
    let lowered = parsed
        .lower(&admission)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    refuse_in_place(&lowered.tasks)?;
    let mut documents = Vec::with_capacity(lowered.tasks.len() + 1);
    for document in &lowered.tasks {
        documents.push(encode(document)?);
    }
    if let Some(integrate) = &lowered.integrate {
        documents.push(encode(integrate)?);
    }
    let warnings = parsed.warnings.list.iter();
    Ok(Checked {
        plan: parsed.name().to_owned(),
        spec: lowered.spec,
        digest: lowered.digest,
        documents,
        warnings: warnings.map(ToString::to_string).collect(),
    })
}

fn personas(sent: &[v1::Persona]) -> Personas {
    let read = |sent: &v1::Persona| {
        let persona = Persona {
            instructions: sent.instructions.clone(),
            skills: sent.skills.clone().into_iter().collect(),
        };
        (sent.path.clone(), persona)
    };
    sent.iter().map(read).collect()
}

fn encode(document: &impl serde::Serialize) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(document).map_err(|error| status::internal(&error))
}

/// Refuses tasks that would work in a person's own folder: what they do could be neither fenced nor
/// taken back.
fn refuse_in_place(tasks: &[plan::TaskDocument]) -> Result<(), Status> {
    match tasks.iter().find(|task| task.in_place) {
        None => Ok(()),
        Some(task) => Err(Status::failed_precondition(format!(
            "task {:?} has `in_place: true`, which this version cannot do; without it the task works \
             in a checkout of its own, and `land` brings its result into your folder",
            task.name
        ))),
    }
}

/// Makes a run's name: a slug of the plan's name and a code of the idempotency key.
fn run_name(plan: &str, key: &str) -> Result<String, Status> {
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(Status::invalid_argument(format!(
            "idempotency_key: 1 to {KEY_BYTES} bytes are needed"
        )));
    }
    let code: String = blake3::hash(key.as_bytes())
        .as_bytes()
        .iter()
        .take(7)
        .map(|byte| char::from(b"abcdefghijkmnpqrstuvwxyz23456789"[usize::from(byte % 32)]))
        .collect();
    Ok(format!("{}-{code}", slug(plan, "run")))
}

/// Names the hosted repository for a client's hint; formats never share one.
fn repository_name(hint: &str, format: ObjectFormat) -> String {
    match format {
        ObjectFormat::Sha1 => slug(hint, "repository"),
        ObjectFormat::Sha256 => format!("{}-sha256", slug(hint, "repository")),
    }
}

/// Keeps letters, digits and single dashes, so that the result is a component of a ref.
fn slug(text: &str, empty: &str) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= SLUG_CHARS {
            break;
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() {
        empty.to_owned()
    } else {
        slug.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_name_is_a_ref_component_and_follows_from_its_key() {
        for plan in ["add-auth", "Ünï çode / x", "..", "", &"long ".repeat(40)] {
            let name = run_name(plan, "key").unwrap();
            assert!(valid_component(&name).is_ok(), "{name}");
            assert_eq!(name, run_name(plan, "key").unwrap());
            assert_ne!(name, run_name(plan, "other").unwrap());
        }
    }

    #[test]
    fn repositories_of_different_formats_have_different_names() {
        let name = |format| repository_name("My Repo", format);
        assert_eq!(name(ObjectFormat::Sha1), "my-repo");
        assert_eq!(name(ObjectFormat::Sha256), "my-repo-sha256");
    }
}
