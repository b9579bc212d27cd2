//! Agents: programs that do a task's work in a work tree.

pub(crate) mod command;

use std::collections::BTreeMap;
use std::path::Path;

use muster_proto::v1::{AgentOffer, Failure};

use crate::document::TaskDocument;
use crate::failure::{class, failure};
use crate::supervisor::End;

/// One kind of agent.
pub(crate) trait Agent: Send + Sync {
    /// Name of the kind, as plans use it.
    fn kind(&self) -> &'static str;

    /// Looks for the agent's program in the folders of `path`; `None` if it is not there.
    fn find(&self, path: &str) -> Option<AgentOffer>;

    /// Says what to start for a task.
    fn invocation(&self, task: &TaskDocument) -> Result<Invocation, Failure>;

    /// Judges how the program ended by itself; `tail` is the end of its output.
    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), Failure>;
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// Program and arguments; no secret is among them.
    pub(crate) argv: Vec<String>,
    /// Variables besides those that every agent has.
    pub(crate) env: BTreeMap<String, String>,
}

/// All kinds that this version knows.
const KINDS: [&dyn Agent; 1] = [&command::CommandAgent];

/// Finds the agents of this host.
pub(crate) fn offers(path: &str) -> Vec<AgentOffer> {
    KINDS.iter().filter_map(|agent| agent.find(path)).collect()
}

/// Gives the agent of a task.
pub(crate) fn agent_of(task: &TaskDocument) -> Result<&'static dyn Agent, Failure> {
    let found = KINDS.iter().find(|agent| agent.kind() == task.agent.kind);
    found.copied().ok_or_else(|| {
        let message = format!("this worker has no agent of the kind {:?}", task.agent.kind);
        failure(class::AGENT_UNAVAILABLE, &message, b"")
    })
}

/// Finds a program in the folders of `path`.
fn program(name: &str, path: &str) -> Option<String> {
    let mut candidates = path.split(':').filter(|folder| folder.starts_with('/'));
    candidates.find_map(|folder| {
        let candidate = Path::new(folder).join(name);
        let may_run = rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok();
        (candidate.is_file() && may_run).then(|| candidate.to_string_lossy().into_owned())
    })
}
