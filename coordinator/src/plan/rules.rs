//! Rules across keys and tasks: ours here, the core's through its own check.

use std::collections::BTreeMap;

use coordinator_core::command::PlanError;
use coordinator_core::ids::TaskIx;
use coordinator_core::limits;
use coordinator_core::validate::validate;

use super::decode::Marks;
use super::document::{
    AgentDefinition, AgentKind, Hooks, Integrate, PlanDocument, Settings, TaskEntry,
};
use super::lower::{Admission, agent_name, find_agent, lower, settle};
use super::model::{Change, SandboxMode};
use super::problem::{Position, Problems, nearest, quote};
use super::settings::SettingsMarks;

/// Names that one hint lists.
const LISTED_MAX: usize = 12;

/// Checks what the decoder could read.
pub(super) fn check(
    document: &PlanDocument,
    marks: &Marks,
    configured: &BTreeMap<String, AgentDefinition>,
    problems: &mut Problems,
) {
    let names = agent_names(document, configured);
    let default_unknown = document
        .defaults
        .agent
        .as_deref()
        .filter(|agent| find_agent(document, configured, agent).is_none());
    if let Some(agent) = default_unknown {
        unknown_agent(problems, marks.defaults.agent, "defaults: ", agent, &names);
    }
    for (entry, place) in document.tasks.iter().zip(&marks.tasks) {
        if !place.whole {
            continue;
        }
        let context = format!("task {}: ", quote(&entry.name));
        let Some(agent) = agent_name(&document.defaults, entry) else {
            problems.add_with(
                place.task,
                format!("{context}it has neither a `run` script nor an agent"),
                "add `run:`, or `prompt:` with `agent:` here or under `defaults`",
            );
            continue;
        };
        match find_agent(document, configured, agent) {
            Some(definition) => {
                agent_fits(
                    problems,
                    &context,
                    entry,
                    place.task,
                    place.run,
                    agent,
                    &definition,
                );
                ignored(problems, &context, entry, &place.settings, definition.kind);
            }
            None if default_unknown == Some(agent) && entry.settings.agent.is_none() => {}
            None => unknown_agent(problems, place.settings.agent, &context, agent, &names),
        }
    }
    expectations(document, marks, problems);
    if document.repo.is_none() {
        without_repository(document, marks, problems);
    }
    if marks.named {
        let admission = Admission::default();
        let lowered = lower(document, configured, "", &admission);
        if let Err(errors) = validate(&lowered.spec) {
            for error in errors {
                core_problem(document, marks, &error, problems);
            }
        }
    }
}

/// Finds work that is expected to take longer than it may.
fn expectations(document: &PlanDocument, marks: &Marks, problems: &mut Problems) {
    let defaults = &document.defaults;
    let mut tell = |at, context: &str, settings: &Settings| {
        let limit = settings
            .timeout
            .map_or(limits::TASK_TIMEOUT, |limit| limit.0);
        if settings.expected.is_some_and(|expected| expected.0 > limit) {
            let message = format!("{context}`expected` is longer than `timeout`");

            let hint =
                "an attempt is ended when its `timeout` is over (6h unless given): raise that";
            problems.add_with(at, message, hint);
        }
    };
    tell(marks.defaults.expected, "defaults: ", defaults);
    for (entry, place) in document.tasks.iter().zip(&marks.tasks) {
        let own = &entry.settings;
        let at = match (own.expected, own.timeout) {
            (Some(_), _) => place.settings.expected,
            (None, Some(_)) => place.task,
            // That was told of the defaults.
            (None, None) => continue,
        };
        let context = format!("task {}: ", quote(&entry.name));
        tell(at, &context, &settle(defaults, own));
    }
}

/// Finds settings of a task that its agent would ignore although somebody relies on them.
fn ignored(
    problems: &mut Problems,
    context: &str,
    entry: &TaskEntry,
    marks: &SettingsMarks,
    kind: AgentKind,
) {
    let settings = &entry.settings.model;
    let confines = settings
        .sandbox
        .is_some_and(|sandbox| sandbox != SandboxMode::FullAccess);
    if confines && kind == AgentKind::Command {
        let message = format!("{context}`sandbox` does not hold programs, which do as they like");
        let hint = "take it away, and run workers as a user, or in a container, of their own";
        problems.add_with(marks.sandbox, message, hint);
    }
    if settings.codex.is_some() && kind != AgentKind::Codex {
        let message = format!("{context}`codex` is for tasks of codex alone");
        problems.add_with(
            marks.codex,
            message,
            "take it away, or name an agent of its kind",
        );
    }
}

fn agent_names<'a>(
    document: &'a PlanDocument,
    configured: &'a BTreeMap<String, AgentDefinition>,
) -> Vec<&'a str> {
    let built_in = AgentKind::ALL.iter().map(|kind| kind.as_str());
    let declared = document.agents.keys().chain(configured.keys());
    built_in.chain(declared.map(String::as_str)).collect()
}

fn unknown_agent(
    problems: &mut Problems,
    at: Position,
    context: &str,
    agent: &str,
    names: &[&str],
) {
    let Some(problem) = problems.add(at, format!("{context}no agent is named {}", quote(agent)))
    else {
        return;
    };
    match nearest(agent, names.iter().copied()) {
        Some(name) => problem.hints.push(format!("did you mean `{name}`?")),
        None => problem
            .hints
            .push(format!("known: {}", listed(names.iter().copied()))),
    }
    problem
        .hints
        .push("others are declared under `agents:` in the plan".to_owned());
}

fn agent_fits(
    problems: &mut Problems,
    context: &str,
    entry: &TaskEntry,
    task: Position,
    run: Position,
    agent: &str,
    definition: &AgentDefinition,
) {
    if definition.kind == AgentKind::Scripted && definition.command.is_none() {
        // Its program is the task's script, and the prompt is what that is told.
        if entry.run.is_none() || entry.prompt.is_none() {
            let message = format!("{context}`agent: {agent}` needs a `prompt` and a `run`");
            let hint = "`run:` is the program that speaks, `prompt:` is what it is asked to do";
            problems.add_with(task, message, hint);
        }
        return;
    }
    let runs_script = definition.kind == AgentKind::Command && definition.command.is_none();
    if runs_script && entry.run.is_none() {
        problems.add_with(
            task,
            format!("{context}`agent: {agent}` needs `run`"),
            "`run:` is a shell script; to have a prompt worked on, name a coding agent",
        );
    } else if !runs_script && entry.run.is_some() {
        problems.add_with(
            run,
            format!("{context}`agent: {agent}` works on a `prompt`; `run` is for `agent: command`"),
            "remove `agent` to run the script, or `run` to use the agent",
        );
    } else if let Some(codex) = entry.settings.model.codex.as_ref()
        && codex.review.is_some()
    {
        if definition.kind != AgentKind::Codex {
            let message = format!("{context}`agent: {agent}` knows no `codex: {{review}}`");
            problems.add_with(
                task,
                message,
                "only agents of kind `codex` review in this way",
            );
        } else if entry.prompt.is_some() {
            let message = format!("{context}a review has a scope instead of a `prompt`");
            problems.add_with(task, message, "remove `prompt`, or `review`");
        }
    } else if !runs_script && entry.prompt.is_none() && entry.codex.is_none() {
        problems.add(task, format!("{context}`agent: {agent}` needs a `prompt`"));
    }
}

fn without_repository(document: &PlanDocument, marks: &Marks, problems: &mut Problems) {
    const HINT: &str = "add `repo: .` for the repository that the plan file is in";
    if document.base.is_some() {
        problems.add_with(marks.base, "`base` needs a `repo`", HINT);
    }
    if !matches!(document.integrate, None | Some(Integrate::Switch(false))) {
        problems.add_with(marks.integrate, "`integrate` needs a `repo`", HINT);
    }
    let verifies = |verify: &Option<Vec<String>>| verify.as_ref().is_some_and(|v| !v.is_empty());
    if verifies(&document.defaults.verify) {
        let message = "defaults: `verify` checks a commit, so it needs a `repo`";
        problems.add_with(marks.defaults.verify, message, HINT);
    }
    let runs_hooks = |hooks: &Option<Hooks>| matches!(hooks, Some(Hooks::In(_)));
    if runs_hooks(&document.defaults.hooks) {
        let message = "defaults: `hooks` are folders of a repository, so they need a `repo`";
        problems.add_with(marks.defaults.hooks, message, HINT);
    }
    let must_change = |settings: &Settings| settings.model.change == Some(Change::Required);
    if must_change(&document.defaults) {
        let message = "defaults: `change: required` is about a commit, so it needs a `repo`";
        problems.add_with(marks.defaults.change, message, HINT);
    }
    for (entry, place) in document.tasks.iter().zip(&marks.tasks) {
        let context = format!("task {}: ", quote(&entry.name));
        if must_change(&entry.settings) {
            let message =
                format!("{context}`change: required` is about a commit, so it needs a `repo`");
            problems.add_with(place.settings.change, message, HINT);
        }
        if runs_hooks(&entry.settings.hooks) {
            let message =
                format!("{context}`hooks` are folders of a repository, so they need a `repo`");
            problems.add_with(place.settings.hooks, message, HINT);
        }
        if verifies(&entry.settings.verify) {
            let message = format!("{context}`verify` checks a commit, so it needs a `repo`");
            problems.add_with(place.settings.verify, message, HINT);
        }
        if let Some(at) = place.paths.first() {
            problems.add_with(*at, format!("{context}`paths` needs a `repo`"), HINT);
        }
    }
}

/// Places a refusal of the core.
fn core_problem(
    document: &PlanDocument,
    marks: &Marks,
    error: &PlanError,
    problems: &mut Problems,
) {
    let place = |task: &TaskIx| marks.tasks.get(task.0 as usize);
    let entry = |task: &TaskIx| document.tasks.get(task.0 as usize);
    let task_at = |task: &TaskIx| place(task).map_or(marks.plan, |place| place.task);
    let name_at = |task: &TaskIx| place(task).map_or(marks.plan, |place| place.name);
    let (at, hints) = match error {
        PlanError::Empty => (
            marks.tasks_key,
            vec!["give each task a `name` and a `run` or `prompt`".to_owned()],
        ),
        PlanError::BadName { task, .. } => (name_at(task), Vec::new()),
        PlanError::DuplicateName { task, first, .. } => (
            name_at(task),
            vec![format!("the first is in line {}", name_at(first).line)],
        ),
        PlanError::UnknownDependency {
            task,
            dependency,
            suggestion,
            ..
        } => {
            let at = mention(document, marks, *task, dependency, Which::First);
            let hint = suggestion.as_ref().map_or_else(
                || {
                    let names = document.tasks.iter().map(|task| task.name.as_str());
                    format!("the plan's tasks: {}", listed(names))
                },
                |name| format!("did you mean {}?", quote(name)),
            );
            (at, vec![hint])
        }
        PlanError::DoubleDependency {
            task, dependency, ..
        } => (
            mention(document, marks, *task, dependency, Which::Last),
            Vec::new(),
        ),
        PlanError::Cycle { tasks, .. } => cycle(document, marks, tasks),
        PlanError::BadPath { task, path, .. } => {
            let index =
                entry(task).and_then(|entry| entry.paths.iter().position(|p| **p == **path));
            let at = place(task)
                .zip(index)
                .and_then(|(place, index)| place.paths.get(index).copied());
            (at.unwrap_or_else(|| task_at(task)), Vec::new())
        }
        PlanError::Limit { task, .. } => {
            (task.as_ref().map_or(marks.tasks_key, task_at), Vec::new())
        }
    };
    if let Some(problem) = problems.add(at, error.to_string()) {
        problem.hints = hints;
    }
}

#[derive(Clone, Copy)]
enum Which {
    First,
    Last,
}

/// Finds where a task names a dependency.
fn mention(
    document: &PlanDocument,
    marks: &Marks,
    task: TaskIx,
    dependency: &str,
    which: Which,
) -> Position {
    let index = task.0 as usize;
    let Some((entry, place)) = document.tasks.get(index).zip(marks.tasks.get(index)) else {
        return marks.plan;
    };
    let found = |name: &String| name == dependency;
    let position = match which {
        Which::First => entry.depends_on.iter().position(found),
        Which::Last => entry.depends_on.iter().rposition(found),
    };
    position
        .and_then(|position| place.depends_on.get(position).copied())
        .unwrap_or(place.task)
}

/// Places a cycle, each of whose tasks depends on the next and the last on the first.
fn cycle(document: &PlanDocument, marks: &Marks, tasks: &[TaskIx]) -> (Position, Vec<String>) {
    let name = |task: &TaskIx| {
        let entry = document.tasks.get(task.0 as usize);
        entry.map_or("", |entry| entry.name.as_str())
    };
    let next = |i: usize| tasks.get((i + 1) % tasks.len()).map_or("", name);
    let places: Vec<Position> = (0..tasks.len())
        .zip(tasks)
        .map(|(i, task)| mention(document, marks, *task, next(i), Which::First))
        .collect();
    let hints = tasks
        .iter()
        .zip(&places)
        .enumerate()
        .take(LISTED_MAX)
        .map(|(i, (task, at))| {
            format!(
                "line {}: {} depends on {}",
                at.line,
                quote(name(task)),
                quote(next(i))
            )
        })
        .collect();
    (places.first().copied().unwrap_or(marks.plan), hints)
}

/// Lists names, the first few of many.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<&str> = names.take(LISTED_MAX + 1).collect();
    let shown: Vec<String> = all
        .iter()
        .take(LISTED_MAX)
        .map(|name| quoted_bare(name))
        .collect();
    let more = if all.len() > LISTED_MAX { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn quoted_bare(name: &str) -> String {
    let quoted = quote(name);
    quoted.trim_matches('"').to_owned()
}
