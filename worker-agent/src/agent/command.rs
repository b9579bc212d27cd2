//! Any program is an agent: a script for `/bin/sh`, judged by its exit code.

use std::collections::BTreeMap;

use muster_proto::v1::{AgentOffer, Failure};

use super::{Agent, Invocation, Own, Place, program};
use crate::document::TaskDocument;
use crate::failure::{class, failure};
use crate::supervisor::{End, ExecFailure};

const KIND: &str = "command";
const SHELL: &str = "/bin/sh";

/// Runs the task's `run` script, or the program that the plan's agent definition names.
#[derive(Debug)]
pub(super) struct CommandAgent;

impl Agent for CommandAgent {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn find(&self, own: Own<'_>) -> Option<AgentOffer> {
        let in_path = || program("sh", &own("PATH").unwrap_or_default());
        let shell = program("sh", "/bin").or_else(in_path)?;
        Some(AgentOffer {
            name: KIND.to_owned(),
            program: shell,
            version: String::new(),
        })
    }

    fn version(&self, _program: &str) -> String {
        // Of a shell it says nothing that matters, and many shells do not know the question.
        String::new()
    }

    fn invocation(&self, task: &TaskDocument, _place: &Place<'_>) -> Result<Invocation, Failure> {
        let argv = match &task.run {
            Some(script) => shell(script),
            None if !task.agent.command.is_empty() => task.agent.command.clone(),
            None => {
                let message = "the task names neither a script nor a program to run";
                return Err(failure(class::AGENT_UNAVAILABLE, message, b""));
            }
        };
        Ok(Invocation {
            argv,
            env: BTreeMap::new(),
            masked: Vec::new(),
        })
    }

    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), Failure> {
        judge("the agent", class::AGENT_FAILED, end, tail)
    }
}

/// Gives the arguments that run a script.
pub(crate) fn shell(script: &str) -> Vec<String> {
    vec![SHELL.to_owned(), "-c".to_owned(), script.to_owned()]
}

/// Judges a program by its exit code: success, or a failure of class `failed`.
pub(crate) fn judge(what: &str, failed: &str, end: &End, tail: &[u8]) -> Result<(), Failure> {
    let (class, message) = match end {
        End::Exited { code: 0 } => return Ok(()),
        End::Exited { code } => (failed, format!("{what} ended with exit code {code}")),
        End::Signalled { signal } => (failed, format!("{what} was killed by signal {signal}")),
        End::ExecFailed { reason } => {
            let reason = match reason {
                ExecFailure::NotFound => "there is no such program".to_owned(),
                ExecFailure::PermissionDenied => "it may not be executed".to_owned(),
                ExecFailure::WorkingFolder { message } => {
                    format!("its folder cannot be entered: {message}")
                }
                ExecFailure::Other { message } => message.clone(),
            };
            let message = format!("{what} could not be started: {reason}");
            (class::AGENT_UNAVAILABLE, message)
        }
        End::Stopped { by, .. } => (
            class::WORKER_LOST,
            format!("{what} was stopped by its supervisor ({by:?})"),
        ),
        End::SupervisorLost { .. } => (
            class::WORKER_LOST,
            format!("the supervisor of {what} was killed"),
        ),
    };
    Err(failure(class, &message, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_goes_to_the_shell_and_a_definition_runs_as_it_is() {
        let mut task = TaskDocument {
            run: Some("echo hi".into()),
            ..TaskDocument::default()
        };
        let place = Place {
            work: "/w".into(),
            last_message: "/l".into(),
            prompt: "/p".into(),
            own: &|_| None,
        };
        let argv = |task: &TaskDocument| {
            let invoked = CommandAgent.invocation(task, &place);
            invoked.map(|run| run.argv)
        };
        assert_eq!(argv(&task).unwrap(), ["/bin/sh", "-c", "echo hi"]);
        task.run = None;
        assert_eq!(argv(&task).unwrap_err().class, "agent_unavailable");
        task.agent.command = vec!["tool".into(), "x".into()];
        assert_eq!(argv(&task).unwrap(), ["tool", "x"]);
    }

    #[test]
    fn each_end_has_its_class() {
        let class = |end: End| {
            CommandAgent
                .judge(&end, b"t")
                .map_err(|failure| failure.class)
        };
        assert_eq!(class(End::Exited { code: 0 }), Ok(()));
        assert_eq!(class(End::Exited { code: 3 }), Err("agent_failed".into()));
        assert_eq!(
            class(End::Signalled { signal: 9 }),
            Err("agent_failed".into())
        );
        let reason = ExecFailure::NotFound;
        let not_found = class(End::ExecFailed { reason });
        assert_eq!(not_found, Err("agent_unavailable".into()));
    }
}
