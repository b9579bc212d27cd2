//! The core's check of a run, until it is called there.

use std::collections::{BTreeMap, BTreeSet};

use coordinator_core::command::PlanError;
use coordinator_core::ids::TaskIx;
use coordinator_core::limits;
use coordinator_core::plan::RunSpec;

use super::problem::nearest;

pub(super) fn validate(spec: &RunSpec) -> Result<(), Vec<PlanError>> {
    let mut errors = Vec::new();
    if spec.tasks.is_empty() {
        errors.push(PlanError::Empty);
    }
    if spec.tasks.len() > limits::TASKS_PER_RUN {
        errors.push(PlanError::Limit {
            task: None,
            limit: "tasks",
            max: limits::TASKS_PER_RUN as u64,
        });
        return Err(errors);
    }
    let mut exact: BTreeMap<&str, u32> = BTreeMap::new();
    let mut folded: BTreeMap<String, u32> = BTreeMap::new();
    for (task, ix) in spec.tasks.iter().zip(0..) {
        if let Some(reason) = bad_name(&task.name) {
            errors.push(PlanError::BadName {
                task: TaskIx(ix),
                name: (&*task.name).into(),
                reason,
            });
        }
        match folded.entry(task.name.to_lowercase()) {
            std::collections::btree_map::Entry::Occupied(first) => {
                errors.push(PlanError::DuplicateName {
                    task: TaskIx(ix),
                    first: TaskIx(*first.get()),
                    name: (&*task.name).into(),
                });
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(ix);
                exact.insert(&task.name, ix);
            }
        }
    }
    let mut edges: Vec<Vec<u32>> = Vec::new();
    for (task, ix) in spec.tasks.iter().zip(0..) {
        let mut seen = BTreeSet::new();
        let mut known = Vec::new();
        for dependency in &task.depends_on {
            let (name, dependency_name) = ((&*task.name).into(), (&**dependency).into());
            if !seen.insert(dependency) {
                errors.push(PlanError::DoubleDependency {
                    task: TaskIx(ix),
                    name,
                    dependency: dependency_name,
                });
            } else if let Some(place) = exact.get(&**dependency) {
                known.push(*place);
            } else {
                errors.push(PlanError::UnknownDependency {
                    task: TaskIx(ix),
                    name,
                    dependency: dependency_name,
                    suggestion: nearest(dependency, exact.keys().copied()).map(Into::into),
                });
            }
        }
        edges.push(known);
        for path in &task.paths {
            if let Some(reason) = bad_path(path) {
                errors.push(PlanError::BadPath {
                    task: TaskIx(ix),
                    name: (&*task.name).into(),
                    path: (&**path).into(),
                    reason,
                });
            }
        }
    }
    if let Some(tasks) = cycle(&edges) {
        let name = |task: &TaskIx| spec.tasks.get(task.0 as usize).map(|t| t.name.to_string());
        let names = tasks.iter().filter_map(name).collect();
        errors.push(PlanError::Cycle { tasks, names });
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn bad_name(name: &str) -> Option<&'static str> {
    if name.len() > limits::TASK_NAME_BYTES {
        return Some("it is longer than 100 bytes");
    }
    if !super::decode::is_plain_name(name) {
        return Some("only letters, digits, `.`, `_` and `-` are allowed");
    }
    if name.starts_with(['.', '-']) || name.ends_with('.') {
        return Some("it starts with `.` or `-`, or ends with `.`");
    }
    (name.contains("..") || name.to_lowercase().ends_with(".lock"))
        .then_some("git allows neither `..` nor an ending `.lock`")
}

fn bad_path(path: &str) -> Option<&'static str> {
    if path.starts_with('/') {
        return Some("it is not relative to the repository's root");
    }
    path.split('/')
        .any(|part| part == ".." || part.eq_ignore_ascii_case(".git"))
        .then_some("it leaves the repository's files")
}

/// Finds a cycle: each task depends on the next, the last on the first.
fn cycle(edges: &[Vec<u32>]) -> Option<Vec<TaskIx>> {
    let mut state = vec![0_u8; edges.len()];
    for start in 0..edges.len() {
        if state.get(start) != Some(&0) {
            continue;
        }
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        if let Some(mark) = state.get_mut(start) {
            *mark = 1;
        }
        while let Some((task, next)) = path.last_mut() {
            let edge = edges.get(*task).and_then(|edges| edges.get(*next)).copied();
            *next += 1;
            let Some(to) = edge.map(|to| to as usize) else {
                if let Some(mark) = state.get_mut(*task) {
                    *mark = 2;
                }
                path.pop();
                continue;
            };
            match state.get_mut(to) {
                Some(mark @ 0) => {
                    *mark = 1;
                    path.push((to, 0));
                }
                Some(1) => {
                    let ring = path.iter().map(|(task, _)| *task).skip_while(|t| *t != to);
                    return Some(
                        ring.filter_map(|t| u32::try_from(t).ok().map(TaskIx))
                            .collect(),
                    );
                }
                _ => {}
            }
        }
    }
    None
}
