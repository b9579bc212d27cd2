//! Checks of a plan before anything of it is stored. Iterative throughout: a chain of two hundred
//! thousand tasks must not overflow a stack.

use std::collections::BTreeMap;

use crate::build::{edges, place, reversed};
use crate::command::PlanError;
use crate::ids::TaskIx;
use crate::limits;
use crate::plan::{Profile, RunSpec, TaskSpec};

/// Checks a plan whole and reports up to [`limits::PLAN_ERRORS`] of its errors, in plan order.
///
/// # Errors
/// Never gives an empty list.
pub fn validate(spec: &RunSpec) -> Result<(), Vec<PlanError>> {
    let errors = check(spec);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn check(spec: &RunSpec) -> Vec<PlanError> {
    if spec.tasks.is_empty() {
        return vec![PlanError::Empty];
    }
    // What is too large is not looked at any further.
    if let Some(error) = too_large(spec) {
        return vec![error];
    }
    let mut errors = Errors(vec![]);
    let names = names(spec, &mut errors);
    for (ix, task) in indexed(spec) {
        if errors.full() {
            break;
        }
        check_task(spec, ix, task, &names, &mut errors);
    }
    if errors.0.is_empty()
        && let Some(cycle) = cycle(spec)
    {
        errors.0.push(cycle);
    }
    errors.0
}

struct Errors(Vec<PlanError>);

impl Errors {
    fn full(&self) -> bool {
        self.0.len() >= limits::PLAN_ERRORS
    }

    fn push(&mut self, error: PlanError) {
        if !self.full() {
            self.0.push(error);
        }
    }
}

fn indexed(spec: &RunSpec) -> impl Iterator<Item = (TaskIx, &TaskSpec)> {
    (0u32..).map(TaskIx).zip(&spec.tasks)
}

fn limit(task: Option<TaskIx>, limit: &'static str, max: u64) -> PlanError {
    PlanError::Limit { task, limit, max }
}

fn too_large(spec: &RunSpec) -> Option<PlanError> {
    if spec.tasks.len() > limits::TASKS_PER_RUN {
        return Some(limit(None, "tasks", limits::TASKS_PER_RUN as u64));
    }
    let mut edges = 0usize;
    let mut profiles = std::collections::BTreeSet::new();
    for (ix, task) in indexed(spec) {
        if task.depends_on.len() > limits::DEPENDENCIES_PER_TASK {
            let max = limits::DEPENDENCIES_PER_TASK as u64;
            return Some(limit(Some(ix), "dependencies of a task", max));
        }
        if task.paths.len() > limits::PATHS_PER_TASK {
            let max = limits::PATHS_PER_TASK as u64;
            return Some(limit(Some(ix), "paths of a task", max));
        }
        edges += task.depends_on.len();
        profiles.insert(&task.profile);
    }
    if edges > limits::EDGES_PER_RUN {
        return Some(limit(None, "dependencies", limits::EDGES_PER_RUN as u64));
    }
    if profiles.len() > limits::PROFILES_PER_RUN {
        let max = limits::PROFILES_PER_RUN as u64;
        return Some(limit(None, "different task settings", max));
    }
    let timeout = spec.integrate.as_ref().and_then(|i| i.verify.as_ref());
    if timeout.is_some_and(|verify| verify.timeout > limits::TASK_TIMEOUT_MAX) {
        let max = limits::TASK_TIMEOUT_MAX.ms() / 1000;
        return Some(limit(None, "seconds of the final verify", max));
    }
    None
}

/// Checks the names and gives each its place; two that differ only in case count as one.
fn names<'a>(spec: &'a RunSpec, errors: &mut Errors) -> BTreeMap<&'a str, TaskIx> {
    let mut folded: BTreeMap<String, TaskIx> = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (task, TaskSpec { name, .. }) in indexed(spec) {
        if let Some(reason) = unusable_name(name) {
            let name = shown(name);
            errors.push(PlanError::BadName { task, name, reason });
            continue;
        }
        if let Some(&first) = folded.get(&name.to_ascii_lowercase()) {
            let name = shown(name);
            errors.push(PlanError::DuplicateName { task, first, name });
            continue;
        }
        folded.insert(name.to_ascii_lowercase(), task);
        names.insert(&**name, task);
    }
    names
}

/// Tells why a name cannot be a part of a git ref; `None` when it can.
#[must_use]
pub fn unusable_name(name: &str) -> Option<&'static str> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > limits::TASK_NAME_BYTES {
        Some("it is longer than 100 bytes")
    } else if !name.chars().all(known) {
        Some("only letters, digits, '.', '_' and '-' are allowed")
    } else if name.starts_with(['.', '-']) {
        Some("it begins with '.' or '-'")
    } else if name.ends_with('.') {
        Some("it ends with '.'")
    } else if name.contains("..") {
        Some("it contains '..'")
    } else if name.to_ascii_lowercase().ends_with(".lock") {
        Some("it ends with '.lock'")
    } else {
        None
    }
}

/// Tells why a path cannot be claimed; `None` when it can.
#[must_use]
pub fn unusable_path(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        Some("it is empty; the whole repository is '.'")
    } else if path.len() > limits::PATH_BYTES {
        Some("it is too long")
    } else if path.starts_with('/') {
        Some("it is absolute")
    } else if path.contains('\0') {
        Some("it contains a NUL")
    } else if path.contains('\\') {
        Some("it contains a backslash")
    } else if path.contains('*') {
        Some("it is a pattern; claim a folder or a file")
    } else if path.split('/').any(|part| part == "..") {
        Some("it contains '..'")
    } else {
        None
    }
}

fn check_task(
    spec: &RunSpec,
    ix: TaskIx,
    task: &TaskSpec,
    names: &BTreeMap<&str, TaskIx>,
    errors: &mut Errors,
) {
    check_profile(ix, &task.profile, errors);
    for path in &task.paths {
        if let Some(reason) = unusable_path(path) {
            errors.push(PlanError::BadPath {
                task: ix,
                name: shown(&task.name),
                path: shown(path),
                reason,
            });
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for dependency in &task.depends_on {
        if errors.full() {
            return;
        }
        if !seen.insert(&**dependency) {
            errors.push(PlanError::DoubleDependency {
                task: ix,
                name: shown(&task.name),
                dependency: shown(dependency),
            });
        } else if !names.contains_key(&**dependency) {
            errors.push(PlanError::UnknownDependency {
                task: ix,
                name: shown(&task.name),
                dependency: shown(dependency),
                suggestion: suggest(dependency, spec),
            });
        }
    }
}

fn check_profile(ix: TaskIx, profile: &Profile, errors: &mut Errors) {
    if profile.retries > limits::RETRIES_MAX {
        let max = u64::from(limits::RETRIES_MAX);
        errors.push(limit(Some(ix), "retries of a task", max));
    }
    let verify = profile.verify.as_ref().map(|verify| verify.timeout);
    if profile.timeout.max(verify.unwrap_or_default()) > limits::TASK_TIMEOUT_MAX {
        let max = limits::TASK_TIMEOUT_MAX.ms() / 1000;
        errors.push(limit(Some(ix), "seconds of a task or its verify", max));
    }
}

/// Cuts a text that may be anything to what a message can show.
fn shown(text: &str) -> Box<str> {
    text.chars().take(limits::TASK_NAME_BYTES).collect()
}

/// Finds the name that was probably meant: at most two edits away, ignoring case.
fn suggest(wanted: &str, spec: &RunSpec) -> Option<Box<str>> {
    if wanted.len() > limits::TASK_NAME_BYTES {
        return None;
    }
    let wanted = wanted.to_ascii_lowercase();
    let candidates = spec.tasks.iter().take(limits::SUGGESTION_SCAN);
    let near = candidates.filter_map(|task| {
        let far = task.name.len().abs_diff(wanted.len()) > 2;
        let distance = if far {
            3
        } else {
            distance(wanted.as_bytes(), task.name.to_ascii_lowercase().as_bytes())
        };
        (distance <= 2 && distance < wanted.len()).then_some((distance, &task.name))
    });
    near.min().map(|(_, name)| shown(name))
}

/// Levenshtein distance by rows; gives up with 3 once every entry of a row is above 2.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        let mut least = left;
        for (entry, y) in row.iter_mut().skip(1).zip(b) {
            let cost = diagonal + usize::from(x != y);
            diagonal = *entry;
            left = cost.min(*entry + 1).min(left + 1);
            *entry = left;
            least = least.min(left);
        }
        if least > 2 {
            return 3;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// Finds a cycle: takes away all tasks that can ever begin, then walks back from one of the rest.
fn cycle(spec: &RunSpec) -> Option<PlanError> {
    let edges = edges(spec);
    let dependents = reversed(&edges);
    let mut unmet: Vec<usize> = edges.iter().map(Vec::len).collect();
    let mut next: Vec<usize> = (0..edges.len()).filter(|ix| unmet[*ix] == 0).collect();
    let mut begun = 0;
    while let Some(ix) = next.pop() {
        begun += 1;
        for dependent in dependents[ix].iter().map(|ix| place(*ix)) {
            unmet[dependent] -= 1;
            if unmet[dependent] == 0 {
                next.push(dependent);
            }
        }
    }
    if begun == edges.len() {
        return None;
    }
    // Each task that is left has a dependency that is left, so the walk meets itself.
    let mut step_of = vec![None; edges.len()];
    let mut walk: Vec<TaskIx> = vec![];
    let mut ix = (0..edges.len()).find(|ix| unmet[*ix] > 0)?;
    while step_of[ix].is_none() {
        step_of[ix] = Some(walk.len());
        walk.push(TaskIx(u32::try_from(ix).ok()?));
        let left = edges[ix].iter().map(|ix| place(*ix));
        ix = left.into_iter().find(|ix| unmet[*ix] > 0)?;
    }
    let tasks = walk.split_off(step_of[ix]?);
    let names = tasks
        .iter()
        .map(|ix| spec.tasks[place(*ix)].name.to_string());
    Some(PlanError::Cycle {
        names: names.collect(),
        tasks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::world::{plan, text};
    use crate::time::Span;

    fn said(spec: &RunSpec) -> Vec<String> {
        let errors = validate(spec).expect_err("the plan is refused");
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_must_be_usable_in_refs_and_differ_in_more_than_case() {
        for bad in [
            "", ".", "..", "a..b", "-x", ".x", "x.", "a.lock", "A.LOCK", "a/b", "ä", "a b",
        ] {
            assert!(unusable_name(bad).is_some(), "{bad:?}");
        }
        let long = "x".repeat(101);
        assert!(unusable_name(&long).is_some());
        for good in ["a", "a.b", "a-b_c.9", "lock", "x".repeat(100).as_str()] {
            assert_eq!(unusable_name(good), None);
        }
        assert_eq!(
            said(&plan(&["Build", "build"]).0),
            [r#"task name "build" is used twice; names must differ in more than case"#]
        );
    }

    #[test]
    fn an_unknown_dependency_comes_with_a_suggestion() {
        let spec = plan(&["schema", "api: Shcema", "x: something-else"]).0;
        let errors = validate(&spec).unwrap_err();
        let suggestions: Vec<_> = errors
            .iter()
            .map(|error| match error {
                PlanError::UnknownDependency { suggestion, .. } => suggestion.as_deref(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(suggestions, [Some("schema"), None]);
    }

    #[test]
    fn a_cycle_is_named_in_order() {
        let spec = plan(&["start", "a: c start", "b: a", "c: b", "after: c"]).0;
        let errors = validate(&spec).unwrap_err();
        let [PlanError::Cycle { names, tasks }] = &errors[..] else {
            panic!("{errors:?}");
        };
        assert_eq!(names, &["a", "c", "b"]);
        let place = tasks.iter().map(|ix| place(*ix)).collect::<Vec<_>>();
        assert_eq!(place, [1, 3, 2]);
        let alone = plan(&["me: me"]).0;
        assert_eq!(
            said(&alone),
            ["tasks depend on each other in a cycle: me → me"]
        );
    }

    #[test]
    fn several_errors_are_reported_at_once_and_not_more_than_the_bound() {
        let spec = plan(&["a: x x", "b: b c", "c"])
            .paths(2, &["/etc", "../x", "src/*", ""])
            .0;
        assert_eq!(validate(&spec).unwrap_err().len(), 6);
        let many: Vec<String> = (0..100).map(|n| format!("t{n}: missing")).collect();
        let many: Vec<&str> = many.iter().map(|line| &**line).collect();
        let errors = validate(&plan(&many).0).unwrap_err();
        assert_eq!(errors.len(), limits::PLAN_ERRORS);
    }

    #[test]
    fn limits_are_kept() {
        assert_eq!(said(&plan(&[]).0), ["a plan needs at least one task"]);
        let retries = plan(&["a"]).retries(101).0;
        assert_eq!(
            said(&retries),
            ["too many: retries of a task (at most 100)"]
        );
        let timeout = plan(&["a"])
            .each(|t| t.profile.timeout = Span::from_ms(u64::MAX))
            .0;
        assert_eq!(said(&timeout).len(), 1);
        let paths = vec!["x"; limits::PATHS_PER_TASK + 1];
        let paths = plan(&["a"]).paths(0, &paths).0;
        assert_eq!(said(&paths), ["too many: paths of a task (at most 256)"]);
    }

    #[test]
    fn a_chain_of_all_tasks_needs_no_stack() {
        let mut spec = plan(&["a"]).0;
        let first = spec.tasks[0].clone();
        spec.tasks = (0..limits::TASKS_PER_RUN)
            .map(|n| {
                let mut task = first.clone();
                task.name = text(&format!("t{n}"));
                if n > 0 {
                    task.depends_on = vec![text(&format!("t{}", n - 1))];
                }
                task
            })
            .collect();
        assert_eq!(validate(&spec), Ok(()));
        let run = crate::build::run(crate::RunId(1), &spec, crate::Timestamp::default());
        assert_eq!(run.tasks[0].height as usize, limits::TASKS_PER_RUN);
        spec.tasks[0].depends_on = vec![text(&format!("t{}", limits::TASKS_PER_RUN - 1))];
        let errors = validate(&spec).unwrap_err();
        assert!(matches!(&errors[..], [PlanError::Cycle { tasks, .. }]
            if tasks.len() == limits::TASKS_PER_RUN));
    }
}
