//! Agents: programs that do a task's work in a work tree.

mod acp;
mod claude;
mod codex;
pub(crate) mod command;
pub(crate) mod conversation;
pub(crate) mod lines;
pub(crate) mod profile;
pub(crate) mod scripted;
mod search;
mod text;
mod version;

use std::collections::BTreeMap;
use std::path::PathBuf;

use muster_proto::v1::{AgentOffer, Failure, ModelUsage};

use crate::document::TaskDocument;
use crate::failure::{class, failure};
use crate::supervisor::End;

use conversation::Conversation;
pub(crate) use search::{Asking, Overrides, found, is_there, offers};
use search::{may_run, program};

/// One kind of agent.
pub(crate) trait Agent: Send + Sync {
    /// Name of the kind, as plans use it.
    fn kind(&self) -> &'static str;

    /// Looks for the agent's program on this host, without starting it; `None` if it is not there.
    /// The program is empty if each task brings its own.
    fn find(&self, own: Own<'_>) -> Option<AgentOffer>;

    /// Tells whether it can start nothing unless a plan or the operator names a program.
    fn needs_command(&self) -> bool {
        false
    }

    /// Asks a program of this kind for its version; empty if it does not say.
    fn version(&self, program: &str) -> String {
        version::ask(program)
    }

    /// Says what to start for a task.
    fn invocation(&self, task: &TaskDocument, place: &Place<'_>) -> Result<Invocation, Failure>;

    /// Changes an invocation so that the program goes on with a session of this host, if it is told so
    /// when it is started; `false` if the session is not there any more, and a new one begins.
    fn resume(&self, _invocation: &mut Invocation, _place: &Place<'_>, _session: &str) -> bool {
        true
    }

    /// Judges how the program ended by itself; `tail` is the end of its output.
    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), Failure>;

    /// Gives the conversation that drives the program; `None` for one that is only started and
    /// judged by how it ends.
    fn conversation(&self, _task: &TaskDocument) -> Option<Box<dyn Conversation>> {
        None
    }

    /// Gives what reads off the output of a program without a conversation what it consumed; `None` for
    /// one that says nothing of that.
    fn meter(&self, _task: &TaskDocument) -> Option<Box<dyn Meter>> {
        None
    }

    /// Tells whether the conversation itself holds the agent to a JSON Schema; the prompt says it
    /// otherwise.
    fn takes_schema(&self) -> bool {
        false
    }

    /// Names the variables that hold its logins.
    fn keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// Names empty folders that the agent may leave where it worked.
    fn leftovers(&self) -> &'static [&'static str] {
        &[]
    }

    /// Gives what the agent said last of what it did, for people and for dependents.
    fn summary(&self, _place: &Place<'_>) -> String {
        String::new()
    }
}

/// Reads off a program's output what it consumed of models, as a pure machine. No call may panic, whatever
/// the program wrote.
pub(crate) trait Meter: Send + std::fmt::Debug {
    /// Takes one line of its standard output, without its end; gives what was consumed since.
    fn line(&mut self, line: &[u8]) -> Option<ModelUsage>;

    /// Hears that the program has ended.
    fn ended(&mut self) -> Option<ModelUsage>;
}

/// Gives variables of the worker's own environment.
pub(crate) type Own<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// Where an agent works, and what is its besides the work tree.
pub(crate) struct Place<'a> {
    /// Where its program starts.
    pub(crate) work: PathBuf,
    /// Where it puts what it says last, if it can.
    pub(crate) last_message: PathBuf,
    /// For a prompt that goes through a file.
    pub(crate) prompt: PathBuf,
    pub(crate) own: Own<'a>,
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// Program and arguments; no secret is among them.
    pub(crate) argv: Vec<String>,
    /// Variables besides those that every agent has.
    pub(crate) env: BTreeMap<String, String>,
    /// Those of them whose values no output may show.
    pub(crate) masked: Vec<String>,
}

/// All kinds that this version knows.
const KINDS: [&dyn Agent; 5] = [
    &command::CommandAgent,
    &codex::CodexAgent,
    &scripted::ScriptedAgent,
    &claude::ClaudeAgent,
    &acp::AcpAgent,
];

/// Names the variables in which the logins of all agents are.
pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
    KINDS.iter().flat_map(|agent| agent.keys()).copied()
}

/// Gives the agent of a task.
pub(crate) fn agent_of(task: &TaskDocument) -> Result<&'static dyn Agent, Failure> {
    let found = KINDS.iter().find(|agent| agent.kind() == task.agent.kind);
    found.copied().ok_or_else(|| {
        let message = format!("this worker has no agent of the kind {:?}", task.agent.kind);
        failure(class::AGENT_UNAVAILABLE, &message, b"")
    })
}
