//! Any agent that speaks the [Agent Client Protocol](https://agentclientprotocol.com), version 1, given
//! its command line.

mod ending;
#[cfg(test)]
mod hostile;
mod machine;
mod question;
#[cfg(test)]
mod tests;
mod tools;
mod usage;

use muster_proto::v1::{AgentOffer, Failure};

use super::conversation::Conversation;
use super::{Agent, Invocation, Own, Place, profile};
use crate::document::TaskDocument;
use crate::failure::{class, failure};
use crate::supervisor::End;

const KIND: &str = "acp";

/// Runs the program that the task names.
#[derive(Debug)]
pub(super) struct AcpAgent;

impl Agent for AcpAgent {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn find(&self, _own: Own<'_>) -> Option<AgentOffer> {
        // Which program it is, the task says.
        Some(AgentOffer {
            name: KIND.to_owned(),
            ..AgentOffer::default()
        })
    }

    fn needs_command(&self) -> bool {
        true
    }

    fn invocation(&self, task: &TaskDocument, place: &Place<'_>) -> Result<Invocation, Failure> {
        if task.agent.command.is_empty() {
            let message = format!(
                "the agent {:?} is of the kind `acp` and has no `command`: give the command line of \
                 a program that speaks the Agent Client Protocol",
                task.agent.name
            );
            return Err(failure(class::AGENT_UNAVAILABLE, &message, b""));
        }
        let profile = profile::expand(&task.agent_env, place.own)?;
        Ok(Invocation {
            argv: task.agent.command.clone(),
            env: profile.values,
            masked: profile.masked,
        })
    }

    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), Failure> {
        super::command::judge("the agent", class::AGENT_FAILED, end, tail)
    }

    fn conversation(&self, task: &TaskDocument) -> Option<Box<dyn Conversation>> {
        Some(Box::new(machine::Acp::new(
            task.model.as_deref(),
            &task.images,
        )))
    }
}
