//! What a prompt tells a fake provider to do.
//!
//! A scenario is written between double square brackets in a prompt: `[[write:a.txt hello]]`. The last
//! one counts. Which of its steps comes next is told by the conversation itself, so that a provider
//! remembers nothing of it; only faults that pass are counted.

/// What a model is to do, step by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// `say:TEXT`, and any prompt without a scenario.
    Say(String),
    /// `write:FILE TEXT`: writes a file with a command.
    Write {
        /// Its path.
        file: String,
        /// Its content.
        text: String,
    },
    /// `patch:FILE`: adds a file with the tool for changes.
    Patch(String),
    /// `sh:COMMAND`: runs a command.
    Run(String),
    /// `each:COMMAND then COMMAND`: runs commands one after the other.
    Commands(Vec<String>),
    /// `escalate:COMMAND`: runs it outside of the sandbox, for which permission is asked.
    Escalate(String),
    /// `call:TOOL {…}`: calls a tool; `server/tool` for one of a server.
    Call {
        /// Name of the server, or empty.
        server: String,
        /// Name of the tool.
        tool: String,
        /// JSON.
        arguments: String,
    },
    /// `plan`: tells a plan of two steps and does it.
    Plan,
    /// `loop:N`: runs so many commands.
    Loop(usize),
    /// `json:VALUE`: answers with JSON.
    Json(String),
    /// `badjson:N VALUE`: as `json`, but only after so many bad answers.
    BadJson {
        /// How many bad ones.
        times: usize,
        /// The good one.
        value: String,
    },
    /// `fault:KIND TIMES then SCENARIO`: fails so many times (`always` for ever), then does that.
    Faulty {
        /// How it fails.
        fault: Fault,
        /// How often.
        times: usize,
        /// What comes then.
        then: Box<Self>,
    },
}

/// How an answer fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An answer with this status; 429 comes with the wish to be called later.
    Status(u16),
    /// The stream breaks off in the middle.
    Drop,
    /// The model refuses.
    Refusal,
    /// The conversation is too long.
    Context,
    /// The account has nothing left.
    Quota,
    /// The model has no room.
    Overloaded,
    /// The answer is cut at its length.
    Incomplete,
    /// The answer never ends.
    Hang,
}

impl Scenario {
    /// Finds the scenario of a text; the last one if there are several.
    #[must_use]
    pub fn find(text: &str) -> Option<&str> {
        let begin = text.rfind("[[")? + 2;
        let rest = text.get(begin..)?;
        rest.get(..rest.find("]]")?)
    }

    /// Understands what stands between the brackets; what it does not is said.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (name, argument) = text.split_once(':').unwrap_or((text, ""));
        let (first, rest) = argument.split_once(' ').unwrap_or((argument, ""));
        let number = |text: &str| text.parse().unwrap_or(usize::MAX);
        match name {
            "write" => Self::Write {
                file: first.to_owned(),
                text: rest.to_owned(),
            },
            "patch" => Self::Patch(argument.to_owned()),
            "sh" => Self::Run(argument.to_owned()),
            "each" => Self::Commands(argument.split(" then ").map(str::to_owned).collect()),
            "escalate" => Self::Escalate(argument.to_owned()),
            "call" => {
                let (server, tool) = first.rsplit_once('/').unwrap_or(("", first));
                Self::Call {
                    server: server.to_owned(),
                    tool: tool.to_owned(),
                    arguments: rest.to_owned(),
                }
            }
            "plan" => Self::Plan,
            "loop" => Self::Loop(number(argument)),
            "json" => Self::Json(argument.to_owned()),
            "badjson" => Self::BadJson {
                times: number(first),
                value: rest.to_owned(),
            },
            "fault" => {
                let (times, then) = rest.split_once(" then ").unwrap_or((rest, "say:fine"));
                let fault = match first {
                    "drop" => Fault::Drop,
                    "refusal" => Fault::Refusal,
                    "context" => Fault::Context,
                    "quota" => Fault::Quota,
                    "overloaded" => Fault::Overloaded,
                    "incomplete" => Fault::Incomplete,
                    "hang" => Fault::Hang,
                    status => Fault::Status(status.parse().unwrap_or(500)),
                };
                Self::Faulty {
                    fault,
                    times: number(times),
                    then: Box::new(Self::parse(then)),
                }
            }
            "say" => Self::Say(argument.to_owned()),
            _ => Self::Say(text.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_scenario_of_a_prompt_counts() {
        let prompt = "Do [[say:no]] or\n[[fault:429 2 then write:a.txt b c]] it.";
        let found = Scenario::find(prompt).unwrap();
        assert_eq!(
            Scenario::parse(found),
            Scenario::Faulty {
                fault: Fault::Status(429),
                times: 2,
                then: Box::new(Scenario::Write {
                    file: "a.txt".into(),
                    text: "b c".into(),
                }),
            }
        );
        assert_eq!(Scenario::find("nothing ]] [["), None);
    }

    #[test]
    fn a_fault_without_a_number_stays() {
        let Scenario::Faulty { times, .. } = Scenario::parse("fault:hang always") else {
            panic!("no fault");
        };
        assert_eq!(times, usize::MAX);
    }
}
