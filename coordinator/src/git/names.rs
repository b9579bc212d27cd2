//! Spells the names of the refs that the coordinator tells workers about.

/// Folder of the branches that people fetch.
pub const HEADS: &str = "refs/heads/muster";

/// What an attempt publishes.
#[must_use]
pub fn attempt(run: &str, task: &str, attempt: u32) -> String {
    format!("refs/muster/attempts/{run}/{task}/{attempt}")
}

/// Snapshots of an attempt's unfinished work.
#[must_use]
pub fn wip(run: &str, task: &str, attempt: u32) -> String {
    format!("refs/muster/wip/{run}/{task}/{attempt}")
}

/// Unfinished work of a stopped attempt, kept for the user.
#[must_use]
pub fn salvage(run: &str, task: &str, attempt: u32) -> String {
    format!("refs/muster/salvage/{run}/{task}/{attempt}")
}

/// The merged base of a task with several dependencies.
#[must_use]
pub fn base(run: &str, task: &str) -> String {
    format!("refs/muster/base/{run}/{task}")
}

/// The commit a run starts from.
#[must_use]
pub fn source(run: &str) -> String {
    format!("refs/muster/source/{run}")
}

/// A merged integration that waits for its verify.
#[must_use]
pub fn candidate(run: &str, generation: u32) -> String {
    format!("refs/muster/candidate/{run}/{generation}")
}

/// The result of a succeeded task.
#[must_use]
pub fn task_head(run: &str, task: &str) -> String {
    format!("refs/heads/muster/{run}/tasks/{task}")
}

/// The run's integrated work.
#[must_use]
pub fn integration_head(run: &str) -> String {
    format!("refs/heads/muster/{run}/integration")
}

/// The integration branch's short name.
#[must_use]
pub fn integration_branch(run: &str) -> String {
    format!("muster/{run}/integration")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::refs::ParsedRef;

    /// The fence knows refs by what it parses; what workers are told must be just that.
    #[test]
    fn every_name_is_one_that_the_fence_knows_by_the_same_spelling() {
        let names = [
            attempt("r", "t", 1),
            wip("r", "t", 2),
            salvage("r", "t", 3),
            base("r", "t"),
            source("r"),
            candidate("r", 4),
            task_head("r", "t"),
            integration_head("r"),
        ];
        for name in names {
            let parsed = ParsedRef::parse(&name).map(|parsed| parsed.to_string());
            assert_eq!(parsed.as_deref(), Some(name.as_str()));
        }
    }
}
