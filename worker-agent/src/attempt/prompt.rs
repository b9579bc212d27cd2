//! What a model agent is told at the beginning, and when its answer was not good enough. Pure.

use std::fmt::Write as _;

use muster_proto::v1::EarlierAttempt;

use super::earlier;
use crate::document::TaskDocument;

/// Faults of a structured answer that one repair names.
const FAULTS_MAX: usize = 10;
/// Longest description of a fault.
const FAULT_CHARS_MAX: usize = 300;

/// Where an attempt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// From the task's base.
    Clean,
    /// From the unfinished edits of the attempt with this number, which was cut off; the agent does not
    /// remember it.
    Unfinished(u32),
    /// In the conversation that the agent had in the attempt with this number.
    Resumed {
        /// The attempt that was cut off.
        attempt: u32,
        /// Its unfinished edits are there.
        edits: bool,
    },
}

/// Writes the first prompt of an attempt. `earlier` is what is told of those before to an agent that
/// does not remember them.
pub(crate) fn first(
    task: &TaskDocument,
    beginning: Beginning,
    earlier: &[EarlierAttempt],
) -> String {
    // What others said comes first, and the task has the last word.
    let mut prompt = match beginning {
        Beginning::Clean | Beginning::Unfinished(_) => earlier::told(earlier),
        Beginning::Resumed { .. } => String::new(),
    };
    match beginning {
        Beginning::Clean if earlier.is_empty() => {}
        Beginning::Clean => prompt.push_str(
            "You begin anew: nothing of the work of earlier attempts is in this work tree.\n\n",
        ),
        Beginning::Unfinished(attempt) => {
            // Fails never: it is a string.
            let _ = write!(
                prompt,
                "An earlier try at this task (attempt {attempt}) was cut off. Its unfinished edits are \
                 in this work tree. Look at them, keep what is good, and finish the task.\n\n"
            );
        }
        Beginning::Resumed { attempt, edits } => {
            let kept = if edits {
                "Your unfinished edits are in this work tree"
            } else {
                "None of your edits were kept: this work tree is as it was when you began"
            };
            let _ = write!(
                prompt,
                "You were cut off in attempt {attempt} of this task. {kept}; commands that ran then do \
                 not run any more, and some may not have ended. Go on and finish the task, which \
                 was:\n\n"
            );
        }
    }
    prompt.push_str(task.prompt.as_deref().unwrap_or_default());
    if !task.acceptance.is_empty() {
        prompt.push_str("\n\nThe task is done when all of this holds:\n");
        for criterion in &task.acceptance {
            let _ = writeln!(prompt, "- {}", criterion.trim());
        }
    }
    if !task.verify.is_empty() {
        prompt.push_str("\n\nYour result is checked in a clean checkout with:\n");
        for command in &task.verify {
            let _ = writeln!(prompt, "- {}", command.trim());
        }
    }
    prompt
}

/// Asks for a structured answer once more.
pub(crate) fn repair(faults: &[String]) -> String {
    let mut prompt = String::from(
        "Your last message does not fit the JSON Schema that was asked for. Answer again with one JSON \
         value that does, and nothing else. What is wrong:\n",
    );
    for fault in faults.iter().take(FAULTS_MAX) {
        let fault: String = fault.chars().take(FAULT_CHARS_MAX).collect();
        let _ = writeln!(prompt, "- {fault}");
    }
    if faults.len() > FAULTS_MAX {
        let _ = writeln!(prompt, "- and {} more", faults.len() - FAULTS_MAX);
    }
    prompt
}

/// Tells an agent how its answer must look, for agents that cannot be held to a schema.
pub(crate) fn with_schema(prompt: &str, schema: &serde_json::Value) -> String {
    format!(
        "{prompt}\n\nYour last message must be one JSON value, and nothing else, that fits this JSON \
         Schema:\n{schema}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_says_where_it_begins_and_when_it_is_done() {
        let task = TaskDocument {
            prompt: Some("Add a test.".into()),
            acceptance: vec!["the test fails without the fix\n".into()],
            verify: vec!["cargo test".into()],
            ..TaskDocument::default()
        };
        let clean = first(&task, Beginning::Clean, &[]);
        assert!(clean.starts_with("Add a test."), "{clean}");
        assert!(
            clean.contains("- the test fails without the fix\n"),
            "{clean}"
        );
        assert!(clean.contains("- cargo test\n"), "{clean}");
        let unfinished = first(&task, Beginning::Unfinished(3), &[]);
        assert!(unfinished.contains("attempt 3"), "{unfinished}");
        assert!(unfinished.ends_with(&clean));
        for edits in [true, false] {
            let resumed = first(&task, Beginning::Resumed { attempt: 3, edits }, &[]);
            assert_eq!(
                resumed.contains("edits are in this work tree"),
                edits,
                "{resumed}"
            );
            assert!(resumed.ends_with(&clean));
        }
    }

    #[test]
    fn an_agent_is_told_of_attempts_that_it_does_not_remember() {
        let task = TaskDocument {
            prompt: Some("Add a test.".into()),
            ..TaskDocument::default()
        };
        let earlier = [EarlierAttempt {
            attempt: 3,
            said: "It does not build.".into(),
            ..EarlierAttempt::default()
        }];
        let told = |beginning| first(&task, beginning, &earlier);
        for beginning in [Beginning::Clean, Beginning::Unfinished(3)] {
            let prompt = told(beginning);
            assert!(prompt.contains("> It does not build.\n"), "{prompt}");
            assert!(prompt.ends_with("Add a test."), "{prompt}");
        }
        let resumed = told(Beginning::Resumed {
            attempt: 3,
            edits: true,
        });
        assert!(!resumed.contains("It does not build."), "{resumed}");
    }

    #[test]
    fn a_repair_names_a_bounded_number_of_faults() {
        let faults: Vec<String> = (0..30).map(|fault| format!("fault {fault}")).collect();
        let prompt = repair(&faults);
        assert!(prompt.contains("fault 9\n") && !prompt.contains("fault 10\n"));
        assert!(prompt.ends_with("- and 20 more\n"));
    }
}
