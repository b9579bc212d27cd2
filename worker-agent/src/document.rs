//! The task as its coordinator describes it, as far as a worker needs it.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::secrets::ValueFrom;

/// What is to be done; fields that this version does not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct TaskDocument {
    /// The task's name.
    pub(crate) name: String,
    /// Who does it.
    pub(crate) agent: AgentDocument,
    /// What a model is asked to do.
    pub(crate) prompt: Option<String>,
    /// Script for `/bin/sh -c`.
    pub(crate) run: Option<String>,
    /// Scripts for `/bin/sh -c`; all must succeed.
    pub(crate) verify: Vec<String>,
    /// Variables for everything that runs.
    pub(crate) env: BTreeMap<String, String>,
    /// Variables for everything that runs, from places on the worker.
    pub(crate) env_from: BTreeMap<String, ValueFrom>,
    /// Variables for the agent alone, from places on the worker.
    pub(crate) secrets: BTreeMap<String, ValueFrom>,
    /// Most bytes on disk of work tree and temporary files, where the worker's own limit is not less.
    pub(crate) disk_bytes: Option<u64>,
    /// Folder within the work tree whose git hooks run when the agent commits.
    pub(crate) hooks: Option<String>,
    /// Limit of an attempt from start to finish, in milliseconds; that of the grant comes first.
    pub(crate) timeout_ms: Option<u64>,
    /// Longest silence of the agent, in milliseconds.
    pub(crate) idle_timeout_ms: Option<u64>,
    /// Limit of a verify from start to finish, in milliseconds; that of the grant comes first.
    pub(crate) verify_timeout_ms: Option<u64>,
    /// Folder within the work tree in which the agent starts.
    pub(crate) folder: Option<String>,
    /// The agent is to work in the user's own folder.
    pub(crate) in_place: bool,
    /// Options for Codex, as the plan gave them.
    pub(crate) codex: BTreeMap<String, serde_json::Value>,
    /// Which model; the agent's own default if absent.
    pub(crate) model: Option<String>,
    /// What the agent's commands may touch, for agents that can hold them to it.
    pub(crate) sandbox: Option<SandboxMode>,
    /// Text for the whole conversation: the persona's.
    pub(crate) instructions: Option<String>,
    /// Files of the persona's skills, by their path below `skills`.
    pub(crate) skills: BTreeMap<String, String>,
    /// What must be true of the work, for the prompt.
    pub(crate) acceptance: Vec<String>,
    /// JSON Schema of the agent's last message.
    pub(crate) output_schema: Option<serde_json::Value>,
    /// Images for the first prompt, relative to the work tree.
    pub(crate) images: Vec<String>,
    /// Folders besides the work tree in which the agent may write.
    pub(crate) add_dirs: Vec<String>,
    /// Which questions are answered without a person.
    pub(crate) approvals: ApprovalPolicy,
    /// Whether an attempt that changes nothing has failed.
    pub(crate) change: Change,
    /// Variables for the agent's program, such as where its provider is; `${NAME}` stands for one of
    /// the worker's.
    pub(crate) agent_env: BTreeMap<String, String>,
}

/// What the commands of an agent may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SandboxMode {
    /// Nothing is written.
    ReadOnly,
    /// The work tree and temporary files are.
    WorkspaceWrite,
    /// Anything that the worker's user may touch.
    FullAccess,
}

/// Whether a task must change something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    /// It has not succeeded without.
    Required,
    /// It may leave everything as it is.
    #[default]
    Optional,
}

/// Which questions of an agent are answered without a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApprovalPolicy {
    /// What happens to questions that no list below answers.
    pub ask: AskMode,
    /// Commands that begin with these words are allowed.
    pub allow: Vec<String>,
    /// Commands with these words in a row, anywhere, are denied; wins over `allow`.
    pub deny: Vec<String>,
}

impl ApprovalPolicy {
    /// Puts a worker's own policy over a task's: what its operator wants to be asked about, no plan
    /// allows, and what it denies, nobody does.
    pub(crate) fn over(&self, task: &Self) -> Self {
        let mut deny = self.deny.clone();
        deny.extend(task.deny.iter().cloned());
        Self {
            ask: self.ask.max(task.ask),
            allow: match self.ask {
                AskMode::Never => task.allow.clone(),
                AskMode::Outside | AskMode::Always => self.allow.clone(),
            },
            deny,
        }
    }
}

/// What happens to a question that no rule answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskMode {
    /// It is allowed: the task's isolation is what protects.
    #[default]
    Never,
    /// It is allowed if it stays within the work tree, else a person is asked.
    Outside,
    /// A person is asked.
    Always,
}

/// The agent of a task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct AgentDocument {
    /// Its name in the plan.
    #[serde(default)]
    pub(crate) name: String,
    /// Which protocol it speaks: `command`, `codex`, `claude`, `acp`.
    #[serde(default = "command")]
    pub(crate) kind: String,
    /// Program and arguments; empty for the kind's own.
    #[serde(default)]
    pub(crate) command: Vec<String>,
}

impl Default for AgentDocument {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: command(),
            command: Vec::new(),
        }
    }
}

fn command() -> String {
    "command".to_owned()
}

impl TaskDocument {
    /// Tells whether the task has a variable of this name, wherever its value comes from.
    pub(crate) fn has_variable(&self, name: &str) -> bool {
        self.env.contains_key(name)
            || self.env_from.contains_key(name)
            || self.secrets.contains_key(name)
    }

    /// Reads a grant's document.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let document: Self = serde_json::from_slice(bytes)?;
        for folder in document.folder.iter().chain(&document.hooks) {
            let inside = Path::new(folder)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !inside || folder.contains(char::is_control) {
                return Err(Error::Outside(folder.clone()));
            }
        }
        Ok(document)
    }
}

/// Why a task's document cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It is not JSON of the right shape.
    #[error("understand the task's document")]
    Json(#[from] serde_json::Error),
    /// A folder of it is not within the work tree.
    #[error("the task's folder {0:?} is not within the work tree")]
    Outside(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_allows_nothing_that_its_workers_operator_wants_to_be_asked_about() {
        let policy = |ask, allow: &[&str], deny: &[&str]| ApprovalPolicy {
            ask,
            allow: allow.iter().map(|words| (*words).to_owned()).collect(),
            deny: deny.iter().map(|words| (*words).to_owned()).collect(),
        };
        let task = policy(AskMode::Outside, &["make"], &["rm"]);
        let lenient = policy(AskMode::Never, &["ls"], &["sudo"]);
        let merged = policy(AskMode::Outside, &["make"], &["sudo", "rm"]);
        assert_eq!(lenient.over(&task), merged);
        let strict = policy(AskMode::Always, &["ls"], &[]);
        assert_eq!(
            strict.over(&task),
            policy(AskMode::Always, &["ls"], &["rm"])
        );
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_have_defaults() {
        let json = br#"{"name":"t","agent":{"name":"x","kind":"codex","new":1},"run":"true",
            "verify":["a"],"timeout_ms":5,"later":{}}"#;
        let document = TaskDocument::parse(json).unwrap();
        assert_eq!(document.agent.kind, "codex");
        assert_eq!(document.timeout_ms, Some(5));
        let integrate = TaskDocument::parse(br#"{"verify":["b"],"on_conflict":"fail"}"#).unwrap();
        assert_eq!(integrate.agent.kind, "command");
        assert_eq!(integrate.verify, ["b"]);
    }

    #[test]
    fn a_folder_outside_of_the_work_tree_is_refused() {
        for folder in ["../x", "/etc", "a/../../b"] {
            let json = format!(r#"{{"folder":"{folder}"}}"#);
            assert!(TaskDocument::parse(json.as_bytes()).is_err(), "{folder}");
            let json = format!(r#"{{"hooks":"{folder}"}}"#);
            assert!(TaskDocument::parse(json.as_bytes()).is_err(), "{folder}");
        }
        assert!(TaskDocument::parse(br#"{"folder":"a/b"}"#).is_ok());
    }
}
