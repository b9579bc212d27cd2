//! Everything that a task was given and nobody may see.

use super::environment::TAKEN_OVER;
use crate::agent::{self, Own, profile};
use crate::document::TaskDocument;
use crate::secrets::{self, Secret};

/// Gives the values, as far as this worker has them: the task's secrets and variables from this host,
/// what its agent's variables have from the worker, and the logins of all agents.
///
/// Whatever an agent was given it can have written down, and a verify or a later start reads it there.
pub(super) fn values(listed: &[Secret], own: Own<'_>, task: &TaskDocument) -> Vec<String> {
    let given = [&task.secrets, &task.env_from].map(|from| secrets::known(listed, own, from));
    let mut values: Vec<String> = given.into_iter().flatten().collect();
    // Everything that runs has these anyway, and they are parts of many words.
    let told = |name: &str| own(name).filter(|_| !TAKEN_OVER.contains(&name));
    for (name, template) in &task.agent_env {
        values.extend(profile::wanted(template).filter_map(told));
        let variable = [(name.clone(), template.clone())].into();
        let expanded = profile::expand(&variable, own).unwrap_or_default();
        if !expanded.masked.is_empty() || agent::keys().any(|key| key == name) {
            values.extend(expanded.values.into_values());
        }
    }
    values.extend(agent::keys().filter_map(own));
    values
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn all_that_a_task_was_given_is_hidden_and_not_what_everybody_has() {
        let document = json!({
            "secrets": {"S": {"env": "KEY"}, "GONE": {"env": "NOT_THERE"}},
            "env_from": {"E": {"secret": "OTHER"}},
            "agent_env": {
                "AUTHORIZATION": "Bearer ${TOKEN}",
                "SPOOL": "${HOME}/spool",
                "OPENAI_API_KEY": "in the plan",
                "HALF": "${NOT_THERE} ${HALF}",
                "MODEL": "plain",
            },
        });
        let task = TaskDocument::parse(document.to_string().as_bytes()).unwrap();
        let own = |name: &str| (!name.starts_with("NOT")).then(|| format!("value of {name}"));
        let listed = ["KEY", "OTHER"].map(|name| name.parse().unwrap());
        let found: BTreeSet<String> = values(&listed, &own, &task).into_iter().collect();
        for expected in [
            "value of KEY",
            "value of OTHER",
            "value of TOKEN",
            "Bearer value of TOKEN",
            "value of HOME/spool",
            "value of HALF",
            "in the plan",
            "value of OPENAI_API_KEY",
            "value of CODEX_API_KEY",
            "value of ANTHROPIC_API_KEY",
            "value of CLAUDE_CODE_OAUTH_TOKEN",
        ] {
            assert!(found.contains(expected), "{expected}: {found:?}");
        }
        for shown in ["plain", "value of HOME", "value of PATH"] {
            assert!(!found.contains(shown), "{shown}");
        }
    }
}
