//! What a model agent is told at the beginning, and when its answer was not good enough. Pure.

use std::fmt::Write as _;

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
    /// From the unfinished edits of the attempt with this number, whose worker was lost; the agent
    /// does not remember it.
    Unfinished(u32),
    /// From the same, in the conversation that the agent had.
    Resumed(u32),
}

/// Writes the first prompt of an attempt.
pub(crate) fn first(task: &TaskDocument, beginning: Beginning) -> String {
    let mut prompt = String::new();
    if let Beginning::Unfinished(attempt) = beginning {
        // Fails never: it is a string.
        let _ = write!(
            prompt,
            "An earlier try at this task (attempt {attempt}) was cut off. Its unfinished edits are in \
             this work tree; nothing else of it is known. Look at them, keep what is good, and finish \
             the task.\n\n"
        );
    }
    if let Beginning::Resumed(attempt) = beginning {
        let _ = write!(
            prompt,
            "You were cut off in attempt {attempt} of this task. Your unfinished edits are in this work \
             tree; commands that ran then do not run any more, and some may not have ended. Go on and \
             finish the task, which was:\n\n"
        );
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
        let clean = first(&task, Beginning::Clean);
        assert!(clean.starts_with("Add a test."), "{clean}");
        assert!(
            clean.contains("- the test fails without the fix\n"),
            "{clean}"
        );
        assert!(clean.contains("- cargo test\n"), "{clean}");
        let unfinished = first(&task, Beginning::Unfinished(3));
        assert!(unfinished.contains("attempt 3"), "{unfinished}");
        assert!(unfinished.ends_with(&clean));
    }

    #[test]
    fn a_repair_names_a_bounded_number_of_faults() {
        let faults: Vec<String> = (0..30).map(|fault| format!("fault {fault}")).collect();
        let prompt = repair(&faults);
        assert!(prompt.contains("fault 9\n") && !prompt.contains("fault 10\n"));
        assert!(prompt.ends_with("- and 20 more\n"));
    }
}
