//! Plan files: read, checked, lowered, drawn.
//!
//! A file goes through five steps, all of them bounded and none of them able to panic:
//!
//! 1. `tree`: bytes become values that know their line and column. The YAML parser is
//!    `granit-parser`, the event parser under `serde-saphyr`. Reading by events instead of through
//!    serde is what lets one reading find all problems of a file. Compared on hostile input
//!    (20,000 open brackets, dashes or question marks, 4 MB of ever deeper blocks, 10 MB in one
//!    scalar, NUL): it alone bounds block nesting, its positions point at the mistake (an unclosed
//!    bracket, not the file's end), and it is the fastest on long texts. `saphyr-parser` passes
//!    deep blocks on without a bound; `yaml-rust2`, on which `marked-yaml` stands, overflows the
//!    stack on them and lets NUL through. JSON is YAML, so plans may be JSON too.
//! 2. `decode` (or `codex` for codex-par files): values become a [`PlanDocument`].
//! 3. `rules`: rules across keys, and the core's own check, whose refusals get their places.
//! 4. [`Plan::lower`]: the document becomes what the core and the workers need.
//! 5. [`Graph`]: the same tasks as pictures.
//!
//! A coordinator runs the same steps on a submitted file: it trusts no client's reading.

mod codex;
mod decode;
mod document;
mod fields;
mod graph;
mod lower;
mod model;
pub mod persona;
mod problem;
mod reference;
mod rules;
mod schema;
mod settings;
mod tree;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

pub(crate) use decode::{AGENTS_MAX, SHORT_BYTES_MAX, is_plain_name};
pub use decode::{PROMPT_BYTES_MAX, SCRIPT_BYTES_MAX};
pub use document::{
    AgentDefinition, AgentKind, CodexEntry, FolderRepo, Hooks, HooksFolder, Integrate,
    IntegrateSettings, Never, OnConflict, PlanDocument, Prefer, Repo, Resources, Settings,
    TaskEntry, ValueFrom,
};
pub use graph::{Graph, Node, NodeState, TooLarge, WIDTH_DEFAULT};
pub use lower::{
    Admission, AgentDocument, Error as LowerError, IntegrateDocument, Lowered, TaskDocument,
};
pub use model::{Approvals, Ask, Change, ModelDocument, ModelSettings, SandboxMode};
pub use problem::{PROBLEMS_MAX, Position, Problem, Problems};
pub(crate) use problem::{nearest, quote};
pub use reference::reference;
pub use schema::json_schema;
pub use settings::VERIFY_COMMANDS_MAX;
pub(crate) use settings::{VARIABLE_BYTES_MAX, VARIABLES_MAX, variable_fault};
pub use tree::FILE_BYTES_MAX;
pub use values::{Duration, Size};

/// Reads any YAML, for tests of other files than plans.
#[cfg(test)]
pub(crate) fn json_of_yaml(bytes: &[u8]) -> serde_json::Value {
    let root = tree::read(bytes, tree::VALUES_MAX, &mut Problems::new("")).unwrap();
    codex::json(&root)
}

/// A checked plan.
#[derive(Clone, Debug)]
pub struct Plan {
    pub document: PlanDocument,
    /// What was tolerated, such as unknown keys of a codex-par file.
    pub warnings: Problems,
    name: String,
    agents: BTreeMap<String, AgentDefinition>,
}

/// Why a plan file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read {file}")]
    Io {
        file: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads and checks the plan file at `path`, at most [`FILE_BYTES_MAX`] of it. `agents` are those
/// that the coordinator's configuration declares.
///
/// # Errors
///
/// Fails if the file cannot be read, or with all its problems.
pub fn read(path: &Path, agents: &BTreeMap<String, AgentDefinition>) -> Result<Plan, ReadError> {
    let file = path.display().to_string();
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|opened| {
            opened
                .take(FILE_BYTES_MAX as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|source| ReadError::Io {
            file: file.clone(),
            source,
        })?;
    Ok(parse(&file, &bytes, agents)?)
}

/// Reads and checks a plan. `file` names it in messages, and its stem names a plan without `name`.
///
/// # Errors
///
/// Fails with all problems of the file, each with its place.
pub fn parse(
    file: &str,
    bytes: &[u8],
    agents: &BTreeMap<String, AgentDefinition>,
) -> Result<Plan, Problems> {
    examine(file, bytes, agents, None).map(|(plan, _)| plan)
}

/// Reads and checks a plan as [`parse`] does, and the personas that it names; their paths are relative
/// to `folder`.
///
/// # Errors
///
/// Fails with all problems of the file and of its personas, each with its place in the file.
pub fn parse_with_personas(
    file: &str,
    bytes: &[u8],
    agents: &BTreeMap<String, AgentDefinition>,
    folder: &Path,
) -> Result<(Plan, persona::Personas), Problems> {
    examine(file, bytes, agents, Some(folder))
}

fn examine(
    file: &str,
    bytes: &[u8],
    agents: &BTreeMap<String, AgentDefinition>,
    folder: Option<&Path>,
) -> Result<(Plan, persona::Personas), Problems> {
    let mut problems = Problems::new(file);
    let mut warnings = Problems::new(file);
    let decoded = tree::read(bytes, tree::VALUES_MAX, &mut problems).and_then(|root| {
        let mut reader = fields::Reader {
            problems: &mut problems,
            warnings: &mut warnings,
            context: String::new(),
        };
        if codex::is_codex_par(&root) {
            codex::plan(&mut reader, &root)
        } else {
            decode::plan(&mut reader, &root)
        }
    });
    let document = decoded.map(|(document, marks)| {
        rules::check(&document, &marks, agents, &mut problems);
        let read = |folder| persona::read_all(&document, &marks, folder, &mut problems);
        let personas = folder.map(read).unwrap_or_default();
        (document, personas)
    });
    problems.settle();
    warnings.settle();
    match document {
        Some((document, personas)) if problems.is_empty() => {
            let plan = Plan {
                name: document.name.clone().unwrap_or_else(|| stem(file)),
                document,
                warnings,
                agents: agents.clone(),
            };
            Ok((plan, personas))
        }
        _ => Err(problems),
    }
}

/// Gives the file's name without folders and ending.
fn stem(file: &str) -> String {
    let stem = Path::new(file)
        .file_stem()
        .map(|stem| stem.to_string_lossy());
    let plain: String = stem
        .iter()
        .flat_map(|stem| stem.chars())
        .filter(|c| !c.is_control())
        .take(coordinator_core::limits::TASK_NAME_BYTES / 4)
        .collect();
    if plain.is_empty() {
        "plan".to_owned()
    } else {
        plain
    }
}

impl Plan {
    /// Gives the plan's name: its own, else the file's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes what the core and the workers need.
    ///
    /// # Errors
    ///
    /// Fails if a base commit is given without a `repo` in the plan, or the other way round.
    pub fn lower(&self, admission: &Admission<'_>) -> Result<Lowered, LowerError> {
        match (&self.document.repo, &admission.source) {
            (Some(_), None) => Err(LowerError::SourceMissing),
            (None, Some(_)) => Err(LowerError::SourceUnwanted),
            _ => self
                .check_personas(&admission.personas)
                .map(|()| lower::lower(&self.document, &self.agents, &self.name, admission)),
        }
    }

    fn check_personas(&self, personas: &persona::Personas) -> Result<(), LowerError> {
        for path in persona::named(&self.document) {
            let Some(persona) = personas.get(path) else {
                return Err(LowerError::PersonaMissing(path.to_owned()));
            };
            persona::check(path, persona)
                .map_err(|error| LowerError::Persona(error.to_string()))?;
        }
        Ok(())
    }
}
