//! What a plan can say, key by key, for people: made from the schema.

use std::fmt::Write as _;

use coordinator_core::limits;
use serde_json::{Map, Value};

use super::decode::{PROMPT_BYTES_MAX, SCRIPT_BYTES_MAX};
use super::schema::json_schema;
use super::settings::VERIFY_COMMANDS_MAX;
use super::tree::FILE_BYTES_MAX;

const INTRODUCTION: &str = "\
# Plans

What a plan can say, key by key. `coordinator plan reference` prints this text, `coordinator plan \
schema` the JSON Schema that it is made from, and `coordinator plan check PLAN` says what is wrong \
with a plan, and where.

A plan is one YAML document; JSON is YAML. Unknown keys are errors. The plans in this folder are \
examples, each of which says at its top what it shows; [outcomes.txt](outcomes.txt) says how each \
of them ends, and a test runs them all.
";

/// The maps of a plan that have keys of their own: heading, pointer into the schema, and what is said
/// before the table.
const PARTS: [(&str, &str, &str); 11] = [
    ("The plan", "", ""),
    ("A task", "/$defs/TaskEntry", "One of `tasks`."),
    (
        "Defaults",
        "/$defs/Settings",
        "`defaults` takes these keys of a task:",
    ),
    ("Resources", "/$defs/Resources", ""),
    ("Hooks", "/$defs/HooksFolder", ""),
    ("Approvals", "/$defs/Approvals", ""),
    ("Codex", "/$defs/CodexSettings", ""),
    ("A review by Codex", "/$defs/CodexReview", ""),
    ("A folder as repository", "/$defs/FolderRepo", ""),
    ("Integrate", "/$defs/IntegrateSettings", ""),
    ("An agent", "/$defs/AgentDefinition", "One of `agents`."),
];

/// A way to write each key, where its type alone does not show one.
const EXAMPLES: [(&str, &str); 55] = [
    ("acceptance", "[a test fails without the fix]"),
    ("add_dirs", "[/srv/cache]"),
    ("agent", "codex"),
    (
        "agents",
        "{ mine: { kind: codex, command: [codex, --profile, big] } }",
    ),
    ("allow", "[cargo test, git status]"),
    (
        "approvals",
        "{ ask: outside, allow: [cargo test], deny: [git push] }",
    ),
    ("ask", "outside"),
    ("base", "main"),
    ("change", "optional"),
    ("codex", "{ profile: careful }"),
    ("command", "[codex, --profile, big]"),
    ("commit", "3f2c1a0"),
    ("config_overrides", "['model_reasoning_effort=\"high\"']"),
    ("cpus", "4"),
    ("defaults", "{ timeout: 45m, retries: 2 }"),
    ("deny", "[git push, rm]"),
    ("depends_on", "[schema, docs]"),
    ("disable_features", "[web_search]"),
    ("disk", "2 GB"),
    ("enable_features", "[view_image]"),
    ("env", "{ RUST_LOG: debug }"),
    ("ephemeral", "true"),
    ("expected", "20m"),
    ("prefer", "dependencies"),
    ("from", "./first"),
    ("gpus", "1"),
    ("hooks", "{ path: .githooks }"),
    ("idle_timeout", "10m"),
    ("images", "[docs/screen.png]"),
    ("integrate", "{ verify: [cargo test] }"),
    ("labels", "[gpu, disk=fast]"),
    ("max_parallel", "8"),
    ("memory", "4 GiB"),
    ("model", "gpt-5.5"),
    ("name", "add-auth"),
    ("output_schema", "{ type: object, required: [verdict] }"),
    ("paths", "[src/db, docs/db.md]"),
    ("path", ".githooks"),
    ("persona", "reviewers/AGENTS.md"),
    ("pool", "gpu"),
    ("priority", "10"),
    ("profile", "careful"),
    ("prompt", "Add the users table."),
    ("repo", "."),
    ("resources", "{ cpus: 2, memory: 4 GiB }"),
    ("retries", "2"),
    ("review", "{ base: main }"),
    ("run", "cargo fmt"),
    ("sandbox", "read-only"),
    ("secrets", "[API_KEY]"),
    ("timeout", "45m"),
    ("title", "Before the release"),
    ("uncommitted", "true"),
    ("verify", "[cargo test]"),
    ("verify_timeout", "10m"),
];

/// Makes the reference of plan files, as Markdown.
///
/// # Errors
/// The schema that is built in is no JSON; a test sees to it that it is.
pub fn reference() -> Result<String, serde_json::Error> {
    let schema: Value = serde_json::from_str(json_schema())?;
    let mut text = INTRODUCTION.to_owned();
    let settings = schema.pointer("/$defs/Settings/properties");
    for (heading, pointer, before) in PARTS {
        let Some(part) = schema.pointer(pointer) else {
            continue;
        };
        let _ = write!(text, "\n## {heading}\n\n");
        let said = [before, part["description"].as_str().unwrap_or_default()];
        let said = if before.ends_with(':') {
            &said[..1]
        } else {
            &said[..]
        };
        let said: Vec<_> = said
            .iter()
            .filter(|said| !said.is_empty())
            .copied()
            .collect();
        let _ = write!(text, "{}\n\n", said.join(" "));
        let keys = part["properties"].as_object();
        if before.ends_with(':') {
            let names = keys.into_iter().flat_map(Map::keys);
            let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
            let _ = writeln!(text, "{}.", names.join(", "));
            continue;
        }
        text += "| key | value | meaning |\n|---|---|---|\n";
        for (key, of) in keys.into_iter().flatten() {
            let required = part["required"].as_array();
            let required = required.is_some_and(|all| all.iter().any(|one| one == key));
            let by_default = settings.is_some_and(|settings| {
                pointer.ends_with("TaskEntry") && settings.get(key).is_some()
            });
            let meaning = of["description"].as_str().unwrap_or_default();
            let meaning = meaning.replace('\n', " ").replace('|', "\\|");
            let _ = writeln!(
                text,
                "| `{key}`{} | {}{} | {meaning}{} |",
                if required { " (needed)" } else { "" },
                kind(&schema, of),
                range(of),
                if by_default {
                    " May be in `defaults`."
                } else {
                    ""
                },
            );
        }
        text += "\n```yaml\n";
        for key in keys.into_iter().flat_map(Map::keys) {
            if let Some((_, example)) = EXAMPLES.iter().find(|(known, _)| known == key) {
                let _ = writeln!(text, "{key}: {example}");
            }
        }
        text += "```\n";
    }
    text += &bounds();
    Ok(text)
}

/// Says in words what kind of value fits.
fn kind(schema: &Value, of: &Value) -> String {
    if let Some(name) = of["$ref"].as_str() {
        let short = name.rsplit('/').next().unwrap_or_default();
        let at = schema.pointer(name.trim_start_matches('#'));
        return match (short, at) {
            ("Word", _) => "text".to_owned(),
            ("Duration", _) => "time: `90s`, `45m`, `1h30m`".to_owned(),
            ("Size", _) => "size: `512 MiB`, `4 GB`".to_owned(),
            ("Settings", _) => "[map](#defaults)".to_owned(),
            ("TaskEntry", _) => "[map](#a-task)".to_owned(),
            ("Resources", _) => "[map](#resources)".to_owned(),
            ("HooksFolder", _) => "[map](#hooks)".to_owned(),
            ("Approvals", _) => "one word for `ask`, or [map](#approvals)".to_owned(),
            ("CodexSettings", _) => "[map](#codex)".to_owned(),
            ("CodexReview", _) => "[map](#a-review-by-codex)".to_owned(),
            ("FolderRepo", _) => "[map](#a-folder-as-repository)".to_owned(),
            ("IntegrateSettings", _) => "[map](#integrate)".to_owned(),
            ("AgentDefinition", _) => "[map](#an-agent)".to_owned(),
            (_, Some(at)) => kind(schema, at),
            (_, None) => short.to_owned(),
        };
    }
    let one_of = of["anyOf"].as_array().or_else(|| of["oneOf"].as_array());
    if let Some(one_of) = one_of {
        let kinds = one_of.iter().filter(|one| one["type"] != "null");
        let mut kinds: Vec<_> = kinds.map(|one| kind(schema, one)).collect();
        kinds.dedup();
        return kinds.join(" or ");
    }
    if let Some(word) = of["const"].as_str() {
        return format!("`{word}`");
    }
    if let Some(words) = of["enum"].as_array() {
        let words = words.iter().filter_map(Value::as_str);
        let words: Vec<_> = words.map(|word| format!("`{word}`")).collect();
        return words.join(" or ");
    }
    let name = of["type"].as_str().or_else(|| {
        let names = of["type"].as_array()?.iter().filter_map(Value::as_str);
        names.into_iter().find(|name| *name != "null")
    });
    match name.unwrap_or("anything") {
        "array" => format!("list of {}", kind(schema, &of["items"])),
        "object" if of["additionalProperties"].is_object() => {
            format!(
                "map of names to {}",
                kind(schema, &of["additionalProperties"])
            )
        }
        "object" => {
            let keys = of["properties"].as_object().into_iter().flat_map(Map::keys);
            let keys: Vec<_> = keys.map(|key| format!("`{key}: …`")).collect();
            format!("map with {}", keys.join(", "))
        }
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        other => other.to_owned(),
    }
}

fn range(of: &Value) -> String {
    match (of["minimum"].as_i64(), of["maximum"].as_i64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) => format!(", at least {least}"),
        _ => String::new(),
    }
}

fn bounds() -> String {
    let days = limits::TASK_TIMEOUT_MAX.ms() / 86_400_000;
    let mut text = "\n## Limits\n\n| what | at most |\n|---|---|\n".to_owned();
    let rows = [
        (
            "size of a plan file",
            format!("{} MiB", FILE_BYTES_MAX >> 20),
        ),
        ("tasks of a plan", limits::TASKS_PER_RUN.to_string()),
        (
            "dependencies of a task",
            limits::DEPENDENCIES_PER_TASK.to_string(),
        ),
        ("dependencies of a plan", limits::EDGES_PER_RUN.to_string()),
        (
            "length of a task's name",
            format!("{} bytes", limits::TASK_NAME_BYTES),
        ),
        ("`paths` of a task", limits::PATHS_PER_TASK.to_string()),
        ("`prompt`", format!("{} MiB", PROMPT_BYTES_MAX >> 20)),
        (
            "`run`, or one command of a `verify`",
            format!("{SCRIPT_BYTES_MAX} bytes"),
        ),
        ("commands of a `verify`", VERIFY_COMMANDS_MAX.to_string()),
        ("`retries`", limits::RETRIES_MAX.to_string()),
        ("a time limit", format!("{days} days")),
    ];
    for (what, most) in rows {
        let _ = writeln!(text, "| {what} | {most} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::schema::tests::accepts;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/plans/README.md");

    #[test]
    fn the_reference_that_is_checked_in_is_that_of_the_schema() {
        let wanted = reference().unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(FILE, wanted).unwrap();
            return;
        }
        let found = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            found == wanted,
            "tests/plans/README.md is out of date; renew it with \
             `UPDATE=1 cargo test -p coordinator plan::`"
        );
    }

    #[test]
    fn the_reference_explains_every_key_with_an_example_that_is_right() {
        let schema: Value = serde_json::from_str(json_schema()).unwrap();
        for (heading, pointer, _) in PARTS {
            let part = schema.pointer(pointer).unwrap();
            for (key, of) in part["properties"].as_object().unwrap() {
                assert!(
                    of["description"].is_string(),
                    "{heading}: {key} says nothing"
                );
                if ["tasks", "kind", "on_conflict"].contains(&key.as_str()) {
                    continue;
                }
                let example = EXAMPLES.iter().find(|(known, _)| known == key);
                let (_, example) = example.unwrap_or_else(|| {
                    panic!("{heading}: {key} needs a line in EXAMPLES of plan/reference.rs")
                });
                let entry = format!("{key}: {example}");
                let plan = match heading {
                    "The plan" => format!("{entry}\ntasks: [{{ name: a, run: x }}]"),
                    "A task" if key == "name" => format!("tasks: [{{ {entry}, run: x }}]"),
                    "A task" => format!("tasks:\n- name: a\n  {entry}"),
                    "Defaults" => format!("defaults:\n  {entry}\ntasks: [{{ name: a, run: x }}]"),
                    "Resources" => format!("tasks:\n- name: a\n  resources:\n    {entry}"),
                    "Hooks" => format!("tasks:\n- name: a\n  hooks:\n    {entry}"),
                    "Approvals" => format!("tasks:\n- name: a\n  approvals:\n    {entry}"),
                    "Codex" => format!("tasks:\n- name: a\n  codex:\n    {entry}"),
                    // Each scope stands alone, and a title with one of them.
                    "A review by Codex" if key == "title" => format!(
                        "tasks:\n- name: a\n  codex:\n    review: {{ base: main, {entry} }}"
                    ),
                    "A review by Codex" => {
                        format!("tasks:\n- name: a\n  codex:\n    review: {{ {entry} }}")
                    }
                    "A folder as repository" => {
                        format!("repo:\n  {entry}\ntasks: [{{ name: a, run: x }}]")
                    }
                    "Integrate" => {
                        format!("integrate:\n  {entry}\ntasks: [{{ name: a, run: x }}]")
                    }
                    _ => format!(
                        "agents:\n  mine:\n    kind: codex\n    {entry}\ntasks: [{{ name: a }}]"
                    ),
                };
                assert_eq!(accepts(plan.as_bytes()), Ok(()), "{plan}");
            }
        }
    }
}
