//! Explanations in words.

use std::fmt;

use super::{Explanation, Lack, NAMED, Waiting};
use crate::ids::WorkerId;
use crate::schedule::Misfit;
use crate::worker::DeclaredAgent;

impl Explanation {
    /// Gives what would help, as one line; `None` when waiting is all there is.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Waiting {
                source: Some(source),
                ..
            } => Some(source.help()),
            Self::Waiting { why, .. } => match why {
                Waiting::RunLimit { .. } => Some("raise the plan's max_parallel".into()),
                Waiting::NoWorkers => Some("start a worker".into()),
                Waiting::NoneFits { lacks } => {
                    if let Some((Lack::Program(agent), _)) = lacks.first() {
                        if is_bare(agent) {
                            return Some(format!(
                                "declare it in the plan, `agents: {{NAME: {{kind: {}, command: \
                                 [...]}}}}`, or start a worker with `--agent {}=COMMAND`",
                                agent.kind, agent.name
                            ));
                        }
                        return Some(format!(
                            "install {} where a worker runs, which finds it within a minute, or \
                             start a worker with `--agent {}=COMMAND`",
                            program_of(agent),
                            agent.name
                        ));
                    }
                    let worker = lacks.first().map(|(lack, _)| match lack {
                        Lack::Pool(name) => format!("with a token for pool {name}"),
                        Lack::Agent(name) => format!("that has agent {name}"),
                        Lack::Program(agent) => format!("that has {}", program_of(agent)),
                        Lack::Label(name) => format!("with `--label {name}`"),
                        Lack::Resource(name) => format!("with more {name} (`--resource {name}=N`)"),
                    });
                    worker.map(|worker| format!("start a worker {worker}, or ask for less"))
                }
                Waiting::FittingBusy { draining, .. } if *draining > 0 => {
                    Some("end the draining, or start more workers".into())
                }
                Waiting::FittingBusy { people, .. } if *people > 0 => Some(
                    "answer what agents ask (`coordinator approvals`), or start more workers"
                        .into(),
                ),
                Waiting::FittingBusy {
                    full: 0,
                    resources: 0,
                    asked: 0,
                    leaving: 1..,
                    ..
                } => Some(
                    "start a worker that stays longer, or give the task a shorter `expected` in the \
                     plan"
                        .into(),
                ),
                Waiting::FittingBusy { .. } => Some("wait, or start more workers".into()),
                Waiting::Ending { .. }
                | Waiting::PathHeld { .. }
                | Waiting::Conversation { .. }
                | Waiting::Soon => None,
            },
            Self::Asking { question, .. } => Some(format!(
                "answer it: `coordinator approve {question}` or `coordinator deny {question}`"
            )),
            Self::Final {
                because: Some(task),
                ..
            } => Some(format!("retry {task}")),
            Self::Final {
                remedy: Some(remedy),
                ..
            } => Some(format!("{remedy}, and retry it")),
            Self::Final { state, .. } if *state != "succeeded" => Some("retry it".into()),
            Self::Unknown
            | Self::Blocked { .. }
            | Self::Merging { .. }
            | Self::Delayed { .. }
            | Self::Running { .. }
            | Self::Final { .. } => None,
        }
    }
}

/// Names what a declared agent needs on a host.
/// Tells whether it is a built-in agent that has no program unless a worker's operator names one.
fn is_bare(agent: &DeclaredAgent) -> bool {
    agent.program.is_empty() && agent.name == agent.kind
}

fn program_of(agent: &DeclaredAgent) -> String {
    match &*agent.program {
        "" if is_bare(agent) => "a command for it".to_owned(),
        "" => format!("the program of {}", agent.kind),
        program => format!("the program `{program}`"),
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Agent(name) => write!(f, "agent {name}"),
            Self::Program(agent) => write!(f, "agent {}: {}", agent.name, program_of(agent)),
            Self::Label(name) => write!(f, "label {name}"),
            Self::Resource(name) => write!(f, "enough {name}"),
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RunLimit { max } => write!(f, "its run runs {max} at once, as many as it may"),
            Self::Ending { worker } => {
                write!(f, "what was begun of it before is being ended on {worker}")
            }
            Self::PathHeld { by, path } if path.is_empty() => {
                write!(f, "task {by} is at work and claims the whole repository")
            }
            Self::PathHeld { by, path } => write!(f, "task {by} is at work and claims {path}"),
            Self::Conversation { worker, left } => write!(
                f,
                "{worker} has the conversation that it goes on with; in {} s any other may take it",
                left.ms().div_ceil(1000)
            ),
            Self::NoWorkers => f.write_str("no worker is connected"),
            Self::NoneFits { lacks } => {
                f.write_str("no connected worker fits:")?;
                for (nth, (lack, workers)) in lacks.iter().enumerate() {
                    let comma = if nth == 0 { "" } else { "," };
                    write!(f, "{comma} {} without {lack}", workers.len())?;
                    if let Lack::Program(_) = lack {
                        let looked = workers.iter().take(NAMED).map(WorkerId::as_str);
                        let looked = looked.collect::<Vec<_>>().join(", ");
                        write!(f, " (looked for on {looked}")?;
                        match workers.len().saturating_sub(NAMED) {
                            0 => f.write_str(")")?,
                            more => write!(f, " and {more} more)")?,
                        }
                    }
                }
                Ok(())
            }
            Self::FittingBusy {
                full,
                draining,
                resources,
                leaving,
                time,
                asked,
                people,
                ahead,
            } => {
                f.write_str("the fitting workers are busy:")?;
                let parts = [
                    (*full, "full"),
                    (*draining, "draining"),
                    (*resources, "short of a resource"),
                    (*leaving, "without the time for it"),
                    (*asked, "asked whether they have its agent"),
                ];
                let mut comma = "";
                for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
                    write!(f, "{comma} {count} {what}")?;
                    comma = ",";
                }
                if let Some((left, expected)) = time {
                    let (left, expected) = (*left, *expected);
                    let misfit = Misfit::Walltime { left, expected };
                    write!(f, "; {misfit}")?;
                }
                match people {
                    0 => {}
                    1 => f.write_str("; in one slot an agent waits for a person's answer")?,
                    more => write!(f, "; in {more} slots agents wait for people's answers")?,
                }
                if *ahead > 0 {
                    write!(f, "; {ahead} of its run go first")?;
                }
                Ok(())
            }
            Self::Soon => f.write_str("a worker is free and takes it at once"),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = |verify: bool| if verify { "its verify" } else { "it" };
        match self {
            Self::Unknown => f.write_str("no such task is live"),
            Self::Blocked { by, more } => {
                f.write_str("it waits for")?;
                for (nth, (name, state)) in by.iter().enumerate() {
                    let comma = if nth == 0 { "" } else { "," };
                    write!(f, "{comma} {name} ({state})")?;
                }
                if *more > 0 {
                    write!(f, " and {more} more")?;
                }
                Ok(())
            }
            Self::Merging { .. } => {
                f.write_str("the coordinator is merging its dependencies into its base")
            }
            Self::Delayed {
                left,
                after,
                verify,
            } => {
                write!(
                    f,
                    "{} is tried again in {} s",
                    what(*verify),
                    left.ms().div_ceil(1000)
                )?;
                match after {
                    Some(class) => write!(f, ", after {class}"),
                    None => Ok(()),
                }
            }
            Self::Waiting {
                verify,
                why,
                source,
            } => {
                write!(f, "{} waits: {why}", what(*verify))?;
                match source {
                    Some(source) => write!(f, "; {source}"),
                    None => Ok(()),
                }
            }
            Self::Running {
                worker,
                verify,
                silent: None,
            } => write!(f, "{} runs on {worker}", what(*verify)),
            Self::Running {
                worker,
                verify,
                silent: Some(silent),
            } => write!(
                f,
                "{} was at work on {worker}, of which nothing was heard for {} s; if that goes on, \
                 another worker gets it when the lease has run out",
                what(*verify),
                silent.ms() / 1_000
            ),
            Self::Asking {
                question,
                text,
                more,
                parked,
            } => {
                write!(f, "its agent waits for the answer to {question}: {text}")?;
                if *more > 0 {
                    write!(f, " (and to {more} more)")?;
                }
                if *parked {
                    f.write_str("; its slot is for others until then")?;
                }
                Ok(())
            }
            Self::Final {
                state,
                because: Some(task),
                detail,
                ..
            } => write!(f, "it was {state} because of task {task}, which {detail}"),
            Self::Final { state, detail, .. } => match *state {
                "succeeded" | "failed" => write!(f, "it {state}{detail}"),
                state => write!(f, "it was {state}{detail}"),
            },
        }
    }
}
