//! Codex: a conversation with `codex app-server`, or one `codex exec` for a task of a codex-par file.

mod ask;
mod errors;
mod exec;
mod find;
mod items;
mod json;
mod machine;
mod profile;
mod schema;
mod settings;
mod shell;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeMap;

use muster_proto::v1::{AgentOffer, Failure};

use super::conversation::Conversation;
use super::{Agent, Invocation, Meter, Own, Place};
use crate::document::TaskDocument;
use crate::failure::{class, failure};
use crate::supervisor::End;
use machine::AppServer;
use settings::{API_KEY, Settings};

const KIND: &str = "codex";
/// Where Codex keeps its login and how it gets one; of the worker's environment it needs these.
const LOGIN: [&str; 3] = [API_KEY, "CODEX_HOME", "OPENAI_API_KEY"];
/// Those that are secret.
const KEYS: [&str; 2] = [API_KEY, "OPENAI_API_KEY"];

/// Runs Codex.
#[derive(Debug)]
pub(super) struct CodexAgent;

impl Agent for CodexAgent {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn find(&self, own: Own<'_>) -> Option<AgentOffer> {
        Some(AgentOffer {
            name: KIND.to_owned(),
            program: find::find(own)?,
            version: String::new(),
        })
    }

    fn invocation(&self, task: &TaskDocument, place: &Place<'_>) -> Result<Invocation, Failure> {
        let unavailable = |message: &str| failure(class::AGENT_UNAVAILABLE, message, b"");
        let program = match task.agent.command.as_slice() {
            [] => vec![find::find(place.own).ok_or_else(|| {
                unavailable(
                    "codex is not there any more: neither CODEX_BIN nor PATH has it; install it on this \
                     worker, or start the worker with `--agent codex=COMMAND`",
                )
            })?],
            command => command.to_vec(),
        };
        let argv = if is_exec(task) {
            exec::argv(program, task, place)?
        } else {
            converse(program, task, place).map_err(|message| unavailable(&message))?
        };
        let env = LOGIN
            .iter()
            .filter(|name| !task.has_variable(name) && !task.agent_env.contains_key(**name))
            .filter_map(|name| Some(((*name).to_owned(), (place.own)(name)?)))
            .collect::<BTreeMap<_, _>>();
        Ok(Invocation {
            argv,
            env,
            masked: KEYS.map(str::to_owned).into(),
        })
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), Failure> {
        super::command::judge(KIND, class::AGENT_FAILED, end, tail)
    }

    fn conversation(&self, task: &TaskDocument) -> Option<Box<dyn Conversation>> {
        if is_exec(task) {
            return None;
        }
        // Settings that cannot be read were refused by `invocation`.
        let settings = Settings::of(task).ok()?;
        Some(Box::new(AppServer::new(settings)))
    }

    fn meter(&self, task: &TaskDocument) -> Option<Box<dyn Meter>> {
        is_exec(task).then(|| Box::new(exec::Turns::new(task)) as Box<dyn Meter>)
    }

    fn takes_schema(&self) -> bool {
        true
    }

    fn leftovers(&self) -> &'static [&'static str] {
        // Where its sandbox hides folders of these names; if it ends while a command runs they stay,
        // and later runs take them for settings of the project that they must not trust.
        &[".agents", ".aws", ".codex"]
    }

    fn summary(&self, place: &Place<'_>) -> String {
        exec::summary(place)
    }
}

/// Tells whether a task is done by `codex exec`. The tasks of codex-par files are: programs of their
/// users read the stream of `codex exec --json` in `logs/NAME.jsonl`, and their `CODEX_BIN` may be a
/// stand-in that understands nothing else.
fn is_exec(task: &TaskDocument) -> bool {
    task.codex
        .get("protocol")
        .is_some_and(|named| named == "exec")
}

/// Gives program and arguments of a conversation.
fn converse(
    program: Vec<String>,
    task: &TaskDocument,
    place: &Place<'_>,
) -> Result<Vec<String>, String> {
    // Whatever cannot be passed on is told before anything starts.
    Settings::of(task)?;
    let own = task.agent_env.keys().map(String::as_str);
    let hidden: Vec<&str> = KEYS.into_iter().chain(own).collect();
    let mut argv = program;
    argv.extend(settings::arguments(task, &hidden, &place.work, place.own)?);
    Ok(argv)
}
