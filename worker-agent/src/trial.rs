//! Conversations with agents that are not there, for what feeds them with anything.

use std::collections::BTreeSet;

use crate::agent::agent_of;
use crate::agent::conversation::{Decision, Opening, Step};
use crate::agent::lines::{Line, Lines};
use crate::document::{AgentDocument, TaskDocument};

/// Turns that are begun after the first one has ended.
const PROMPTS_MAX: usize = 8;

/// Lets the conversation of an agent of this kind hear a stream. Half of the questions are answered,
/// and a turn that ends is followed by another one.
///
/// # Errors
/// Says which promise of a conversation was broken.
pub fn hear(kind: &str, stream: &[u8]) -> Result<(), String> {
    let task = TaskDocument {
        agent: AgentDocument {
            kind: kind.to_owned(),
            ..AgentDocument::default()
        },
        ..TaskDocument::default()
    };
    let agent = agent_of(&task).map_err(|failure| failure.message)?;
    let Some(mut conversation) = agent.conversation(&task) else {
        return Err(format!("{kind} has no conversation"));
    };
    let opening = Opening {
        folder: "/w".into(),
        prompt: "Do it.".to_owned(),
        ..Opening::default()
    };
    let mut heard = Heard::default();
    let mut steps = conversation.open(&opening);
    let mut lines = Lines::default();
    let mut rest = lines.push(stream).into_iter();
    loop {
        for step in std::mem::take(&mut steps) {
            match heard.step(&step)? {
                Then::Nothing => {}
                Then::Answer(question, decision) => {
                    steps.extend(conversation.answer(question, &decision));
                }
                Then::Prompt => steps.extend(conversation.prompt("Again.")),
            }
        }
        if !steps.is_empty() {
            continue;
        }
        steps = match rest.next() {
            Some(Line::Whole(line)) => conversation.line(&line),
            Some(Line::Overlong(beginning)) => conversation.overlong(&beginning),
            None => break,
        };
    }
    for step in conversation.cancel() {
        heard.step(&step)?;
    }
    for step in conversation.close() {
        heard.step(&step)?;
    }
    Ok(())
}

#[derive(Default)]
struct Heard {
    asked: u32,
    open: BTreeSet<u32>,
    prompts: usize,
    ended: usize,
}

enum Then {
    Nothing,
    Answer(u32, Decision),
    Prompt,
}

impl Heard {
    fn step(&mut self, step: &Step) -> Result<Then, String> {
        match step {
            Step::Send(line) if line.contains('\n') => Err(format!("two lines at once: {line:?}")),
            Step::Ask(question) => {
                if question.number != self.asked + 1 {
                    return Err(format!("question {} after {}", question.number, self.asked));
                }
                self.asked = question.number;
                self.open.insert(question.number);
                let ids: BTreeSet<&str> = question.choices.iter().map(|c| c.id.as_str()).collect();
                if ids.is_empty() || ids.len() != question.choices.len() {
                    return Err(format!("choices of question {}: {ids:?}", question.number));
                }
                let first = question.choices.first();
                let Some(choice) = first.filter(|_| question.number.is_multiple_of(2)) else {
                    return Ok(Then::Nothing);
                };
                self.open.remove(&question.number);
                let decision = Decision {
                    choice: choice.id.clone(),
                    text: "yes".to_owned(),
                };
                Ok(Then::Answer(question.number, decision))
            }
            Step::Withdraw(number) if !self.open.remove(number) => {
                Err(format!("question {number} is withdrawn, but not open"))
            }
            Step::TurnEnded(_) => {
                self.ended += 1;
                if self.ended > self.prompts + 1 {
                    return Err(format!(
                        "{} turns ended of {}",
                        self.ended,
                        self.prompts + 1
                    ));
                }
                if self.prompts < PROMPTS_MAX {
                    self.prompts += 1;
                    return Ok(Then::Prompt);
                }
                Ok(Then::Nothing)
            }
            _ => Ok(Then::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDINGS: [&str; 2] = [
        include_str!("../tests/streams/codex/approvals.txt"),
        include_str!("../tests/streams/codex/questions.txt"),
    ];

    #[test]
    fn recorded_streams_keep_the_promises_of_a_conversation() {
        for recording in RECORDINGS {
            let lines = recording.lines().filter_map(|line| line.strip_prefix("< "));
            let stream: String = lines.flat_map(|line| [line, "\n"]).collect();
            hear("codex", stream.as_bytes()).unwrap();
        }
    }

    proptest! {
        #[test]
        fn lines_in_any_order_keep_them_too(
            which in 0_usize..RECORDINGS.len(),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 1..60),
        ) {
            let lines: Vec<&str> = RECORDINGS[which]
                .lines()
                .filter_map(|line| line.strip_prefix("< "))
                .collect();
            let stream: String = order.iter().flat_map(|at| [*at.get(&lines), "\n"]).collect();
            for kind in ["codex", "claude", "acp"] {
                hear(kind, stream.as_bytes()).unwrap();
            }
        }
    }
}
