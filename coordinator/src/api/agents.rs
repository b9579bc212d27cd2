//! What workers have found of agents on their hosts: for the core, which schedules by it, and for
//! people.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::worker::DeclaredAgent;
use coordinator_core::{WorkerId, limits};
use muster_proto::v1;
use tonic::Status;

use super::by_session::BySession;
use super::convert;

/// Agents of one worker.
const AGENTS_MAX: usize = 2 * limits::DECLARED_AGENTS;
/// A name or a program, as a plan may declare it.
const TEXT_BYTES: usize = 4_096;
/// A version.
const VERSION_BYTES: usize = 100;

/// Agents of connected workers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Agents(BySession<Vec<v1::WorkerAgent>>);

impl Agents {
    /// Notes what a session says, in place of what was said before.
    pub(super) fn note(&self, worker: &WorkerId, session: u64, found: &v1::AgentsFound) {
        let declared = found.looked_for.iter().filter_map(|looked| {
            let name = &looked.agent.as_ref()?.name;
            looked.found.as_ref().map(|found| (name, found))
        });
        let own = found.offers.iter().map(|offer| (&offer.name, offer));
        let agents = own.chain(declared).take(AGENTS_MAX);
        let agents = agents.map(|(name, offer)| v1::WorkerAgent {
            name: shown(name, TEXT_BYTES),
            program: shown(&offer.program, TEXT_BYTES),
            version: shown(&offer.version, VERSION_BYTES),
        });
        self.0.note(worker, session, agents.collect());
    }

    /// Forgets what a session told, once it has ended.
    pub(super) fn forget(&self, worker: &WorkerId, session: u64) {
        self.0.forget(worker, session);
    }

    /// Gives the agents of each connected worker.
    pub(super) fn told(&self) -> BTreeMap<WorkerId, Vec<v1::WorkerAgent>> {
        self.0.told()
    }
}

/// Bounds a text of a worker; what is not of one line is not shown.
fn shown(text: &str, bytes_max: usize) -> String {
    if text.contains(char::is_control) {
        return String::new();
    }
    convert::clip(text, bytes_max).to_owned()
}

/// Writes a declared agent for workers.
pub(super) fn to_wire(agent: &DeclaredAgent) -> v1::DeclaredAgent {
    v1::DeclaredAgent {
        kind: agent.kind.to_string(),
        name: agent.name.to_string(),
        program: agent.program.to_string(),
    }
}

/// Reads which declared agents a worker has and which it lacks.
///
/// # Errors
/// `INVALID_ARGUMENT` when there are more, or longer ones, than anybody can have asked for.
pub(super) fn looked(found: &v1::AgentsFound) -> Result<BTreeMap<DeclaredAgent, bool>, Status> {
    if found.looked_for.len() > limits::DECLARED_AGENTS {
        let max = limits::DECLARED_AGENTS;
        let message = format!("heartbeat.agents.looked_for: at most {max}");
        return Err(Status::invalid_argument(message));
    }
    let text = |text: &str| {
        if text.len() > TEXT_BYTES {
            let message = format!("heartbeat.agents: a text has more than {TEXT_BYTES} bytes");
            return Err(Status::invalid_argument(message));
        }
        Ok(Arc::from(text))
    };
    let answered = found
        .looked_for
        .iter()
        .filter_map(|looked| Some((looked.agent.as_ref()?, looked.found.is_some())));
    let read = answered.map(|(agent, has)| {
        let agent = DeclaredAgent {
            kind: text(&agent.kind)?,
            name: text(&agent.name)?,
            program: text(&agent.program)?,
        };
        Ok((agent, has))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(name: &str, program: &str, version: &str) -> v1::AgentOffer {
        v1::AgentOffer {
            name: name.into(),
            program: program.into(),
            version: version.into(),
        }
    }

    fn asked(name: &str) -> v1::DeclaredAgent {
        v1::DeclaredAgent {
            kind: "acp".into(),
            name: name.into(),
            program: "p".into(),
        }
    }

    #[test]
    fn what_a_session_found_is_shown_until_it_says_otherwise_or_ends() {
        let (agents, worker) = (Agents::default(), WorkerId::new("w"));
        let shown = || {
            let told = agents.told().into_values().flatten();
            told.map(|agent| format!("{} {} {}", agent.name, agent.program, agent.version))
                .collect::<Vec<_>>()
        };
        let looked_for = |name: &str, found: Option<v1::AgentOffer>| v1::LookedFor {
            agent: Some(asked(name)),
            found,
        };
        let found = v1::AgentsFound {
            offers: vec![offer("codex", "/bin/codex", "1.2\u{1b}[2J")],
            looked_for: vec![
                looked_for("mine", Some(offer("", "/bin/p", ""))),
                looked_for("theirs", None),
            ],
        };
        agents.note(&worker, 2, &found);
        agents.forget(&worker, 1);
        assert_eq!(shown(), ["codex /bin/codex ", "mine /bin/p "]);
        agents.note(&worker, 2, &v1::AgentsFound::default());
        assert!(shown().is_empty());
        agents.forget(&worker, 2);
        assert!(agents.told().is_empty());
    }

    #[test]
    fn answers_are_read_within_bounds() {
        let found = |count: usize, name: &str| v1::AgentsFound {
            looked_for: vec![
                v1::LookedFor {
                    agent: Some(asked(name)),
                    found: None,
                };
                count
            ],
            ..v1::AgentsFound::default()
        };
        let read = looked(&found(2, "x")).unwrap();
        assert_eq!(read.values().collect::<Vec<_>>(), [&false]);
        assert_eq!(to_wire(read.keys().next().unwrap()), asked("x"));
        assert!(looked(&found(limits::DECLARED_AGENTS + 1, "x")).is_err());
        assert!(looked(&found(1, &"x".repeat(TEXT_BYTES + 1))).is_err());
    }
}
