//! From a submitted plan to a run: names become places, and each task learns its dependents and
//! how long the chain is that waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::{RunId, TaskIx};
use crate::plan::{Profile, RunSpec};
use crate::state::{Run, RunPhase, Task, TaskState};
use crate::time::Timestamp;

/// Makes the run of a plan. Total: what [`crate::validate`] would refuse is left out.
pub(crate) fn run(id: RunId, spec: &RunSpec, at: Timestamp) -> Run {
    let edges = edges(spec);
    let dependents = reversed(&edges);
    let heights = heights(&edges, &dependents);
    let mut profiles = Profiles::default();
    let mut tasks = Vec::with_capacity(spec.tasks.len());
    let parts = edges.into_iter().zip(dependents).zip(heights);
    for (task, ((dependencies, dependents), height)) in spec.tasks.iter().zip(parts) {
        let unmet = u32::try_from(dependencies.len()).unwrap_or(u32::MAX);
        tasks.push(Task {
            name: Arc::clone(&task.name),
            dependencies: dependencies.into(),
            dependents: dependents.into(),
            height,
            priority: task.priority,
            profile: profiles.intern(&task.profile),
            paths: task.paths.iter().map(|path| claimed(path)).collect(),
            state: TaskState::Blocked { unmet },
            generation: 1,
            history: None,
        });
    }
    let integrate = spec.integrate.clone().filter(|_| spec.source.is_some());
    Run {
        id,
        name: Arc::clone(&spec.name),
        plan: Arc::clone(&spec.plan),
        source: spec.source.clone(),
        integrate,
        max_parallel: spec.max_parallel,
        submitted_by: Arc::clone(&spec.submitted_by),
        submitted_at: at,
        key: None,
        digest: "".into(),
        profiles: profiles.list,
        tasks,
        phase: RunPhase::Active,
        generation: 1,
        last_seq: 0,
        cancel: None,
        conflict: None,
    }
}

/// Gives the dependencies of each task by place, doubles and unknown names left out.
pub(crate) fn edges(spec: &RunSpec) -> Vec<Vec<TaskIx>> {
    let names: BTreeMap<&str, TaskIx> = (0u32..)
        .zip(&spec.tasks)
        .map(|(ix, task)| (&*task.name, TaskIx(ix)))
        .collect();
    let edges = spec.tasks.iter().map(|task| {
        let known = task.depends_on.iter().map(|name| names.get(&**name));
        let mut edges: Vec<TaskIx> = known.flatten().copied().collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    });
    edges.collect()
}

pub(crate) fn reversed(edges: &[Vec<TaskIx>]) -> Vec<Vec<TaskIx>> {
    let mut reversed = vec![Vec::new(); edges.len()];
    for (ix, dependencies) in (0u32..).zip(edges) {
        for dependency in dependencies {
            if let Some(list) = reversed.get_mut(place(*dependency)) {
                list.push(TaskIx(ix));
            }
        }
    }
    reversed
}

/// Gives the length of the longest chain that starts at each task, itself included.
fn heights(edges: &[Vec<TaskIx>], dependents: &[Vec<TaskIx>]) -> Vec<u32> {
    let mut heights = vec![1u32; edges.len()];
    let mut waiting: Vec<usize> = dependents.iter().map(Vec::len).collect();
    let mut done: Vec<usize> = (0..edges.len()).filter(|ix| waiting[*ix] == 0).collect();
    while let Some(ix) = done.pop() {
        let height = heights[ix].saturating_add(1);
        for dependency in edges[ix].iter().map(|ix| place(*ix)) {
            heights[dependency] = heights[dependency].max(height);
            waiting[dependency] -= 1;
            if waiting[dependency] == 0 {
                done.push(dependency);
            }
        }
    }
    heights
}

/// Gives a claimed path in its one form: no empty or `.` components; the whole repository is "".
pub(crate) fn claimed(path: &str) -> Arc<str> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    parts.join("/").into()
}

pub(crate) fn place(ix: TaskIx) -> usize {
    usize::try_from(ix.0).unwrap_or(usize::MAX)
}

#[derive(Default)]
struct Profiles<'a> {
    known: BTreeMap<&'a Profile, u16>,
    list: Vec<Profile>,
}

impl<'a> Profiles<'a> {
    fn intern(&mut self, profile: &'a Profile) -> u16 {
        if let Some(&known) = self.known.get(profile) {
            return known;
        }
        let Ok(number) = u16::try_from(self.list.len()) else {
            return u16::MAX;
        };
        self.known.insert(profile, number);
        self.list.push(profile.clone());
        number
    }
}
