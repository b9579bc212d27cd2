//! What `status RUN --json` says, for tests to ask.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A run as the command line describes it.
#[derive(Clone, Debug)]
pub struct RunStatus {
    /// The document itself.
    pub json: Value,
}

impl RunStatus {
    /// The run's state.
    #[must_use]
    pub fn state(&self) -> &str {
        self.json["state"].as_str().unwrap_or("?")
    }

    /// Tells whether the run has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        ["succeeded", "failed", "cancelled"].contains(&self.state())
    }

    /// How many tasks are in a state.
    #[must_use]
    pub fn count(&self, state: &str) -> u64 {
        self.json["tasks"][state].as_u64().unwrap_or_default()
    }

    /// A task by its name.
    ///
    /// # Errors
    /// The run has no such task.
    pub fn task(&self, name: &str) -> Result<&Value> {
        self.tasks()
            .find(|task| task["name"] == name)
            .with_context(|| format!("no task {name} in {}", self.json))
    }

    /// All tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &Value> {
        self.json["task_list"].as_array().into_iter().flatten()
    }

    /// State of a task.
    ///
    /// # Errors
    /// As [`RunStatus::task`].
    pub fn task_state(&self, name: &str) -> Result<&str> {
        Ok(self.task(name)?["state"].as_str().unwrap_or("?"))
    }

    /// Attempts of a task, first one first.
    ///
    /// # Errors
    /// As [`RunStatus::task`].
    pub fn attempts(&self, name: &str) -> Result<&[Value]> {
        Ok(self.task(name)?["attempts"]
            .as_array()
            .map_or(&[], Vec::as_slice))
    }

    /// The worker of a task's last attempt.
    ///
    /// # Errors
    /// It has no attempt yet.
    pub fn worker_of(&self, name: &str) -> Result<&str> {
        let last = self
            .attempts(name)?
            .last()
            .with_context(|| format!("{name} has no attempt"))?;
        last["worker"]
            .as_str()
            .with_context(|| format!("{name} has no worker"))
    }

    /// States of all tasks by name, as one line a task, for whole comparisons.
    #[must_use]
    pub fn states(&self) -> Vec<String> {
        let word = |task: &Value, key: &str| task[key].as_str().unwrap_or("?").to_owned();
        self.tasks()
            .map(|task| format!("{} {}", word(task, "name"), word(task, "state")))
            .collect()
    }
}
