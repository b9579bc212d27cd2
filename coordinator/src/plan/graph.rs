//! A plan's tasks and edges as pictures: levels for a terminal, DOT, Mermaid.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::Plan;

/// The tasks of a plan with their edges, levels and longest chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Graph<'p> {
    title: &'p str,
    names: Vec<&'p str>,
    /// For each task the places of its dependencies, in the order of the file.
    depends_on: Vec<Vec<usize>>,
    /// For each task the length of the longest chain that ends with it, from 1.
    levels: Vec<usize>,
    critical: Vec<usize>,
}

impl<'p> Graph<'p> {
    /// Makes the graph of a checked plan.
    #[must_use]
    pub fn of(plan: &'p Plan) -> Self {
        let tasks = &plan.document.tasks;
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        let places: HashMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let depends_on: Vec<Vec<usize>> = tasks
            .iter()
            .map(|task| {
                let known = |name: &String| places.get(name.as_str()).copied();
                task.depends_on.iter().filter_map(known).collect()
            })
            .collect();
        let levels = levels(&depends_on);
        let critical = critical(&depends_on, &levels);
        Self {
            title: plan.name(),
            names,
            depends_on,
            levels,
            critical,
        }
    }

    /// Gives the longest chain of tasks, in the order in which they run; among equals the one
    /// that comes first in the plan.
    #[must_use]
    pub fn critical_path(&self) -> Vec<&'p str> {
        self.critical.iter().map(|task| self.name(*task)).collect()
    }

    /// Draws the levels as text: tasks of one level can run at the same time.
    #[must_use]
    pub fn text(&self) -> String {
        let depth = self.critical.len();
        let mut rows: Vec<Vec<usize>> = vec![Vec::new(); depth];
        for (task, level) in self.levels.iter().enumerate() {
            if let Some(row) = level.checked_sub(1).and_then(|level| rows.get_mut(level)) {
                row.push(task);
            }
        }
        let widest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = self
            .names
            .iter()
            .map(|name| name.len())
            .max()
            .unwrap_or(0)
            .min(40);
        let gutter = depth.to_string().len();
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{}: {}, {}, the widest of {widest}",
            self.title,
            counted(self.names.len(), "task"),
            counted(depth, "level"),
        );
        let _ = writeln!(out, "longest chain: {}\n", self.chain());
        for (level, row) in rows.iter().enumerate() {
            for (i, task) in row.iter().enumerate() {
                let number = if i == 0 {
                    (level + 1).to_string()
                } else {
                    String::new()
                };
                let branch = match (row.len(), i) {
                    (1, _) => "──",
                    (_, 0) => "┬─",
                    (rows, i) if i + 1 == rows => "└─",
                    _ => "├─",
                };
                let name = self.name(*task);
                let after = self.after(*task);
                let line = format!("{number:>gutter$} {branch} {name:width$}  {after}");
                let _ = writeln!(out, "{}", line.trim_end());
            }
        }
        out
    }

    /// Writes the graph in Graphviz' language; the longest chain is bold.
    #[must_use]
    pub fn dot(&self) -> String {
        let chain: HashSet<usize> = self.critical.iter().copied().collect();
        let mut out = String::from("digraph plan {\n  rankdir=LR;\n  node [shape=box];\n");
        for (task, name) in self.names.iter().enumerate() {
            let style = if chain.contains(&task) {
                ", style=bold"
            } else {
                ""
            };
            let _ = writeln!(out, "  t{task} [label=\"{name}\"{style}];");
        }
        self.edges(|from, to, chain| {
            let style = if chain { " [style=bold]" } else { "" };
            let _ = writeln!(out, "  t{from} -> t{to}{style};");
        });
        out.push_str("}\n");
        out
    }

    /// Writes the graph in Mermaid's language; the longest chain has thick arrows.
    #[must_use]
    pub fn mermaid(&self) -> String {
        let mut out = String::from("flowchart LR\n");
        for (task, name) in self.names.iter().enumerate() {
            let _ = writeln!(out, "  t{task}[\"{name}\"]");
        }
        self.edges(|from, to, chain| {
            let arrow = if chain { "==>" } else { "-->" };
            let _ = writeln!(out, "  t{from} {arrow} t{to}");
        });
        out
    }

    fn edges(&self, mut draw: impl FnMut(usize, usize, bool)) {
        let next: HashMap<usize, usize> = self
            .critical
            .iter()
            .copied()
            .zip(self.critical.iter().skip(1).copied())
            .collect();
        for (to, dependencies) in self.depends_on.iter().enumerate() {
            for from in dependencies {
                draw(*from, to, next.get(from) == Some(&to));
            }
        }
    }

    /// Gives the longest chain in one line, its middle left out if it is very long.
    fn chain(&self) -> String {
        const ENDS: usize = 8;
        let chain = self.critical_path();
        match (
            chain.get(..ENDS),
            chain.get(chain.len().saturating_sub(ENDS)..),
        ) {
            (Some(head), Some(tail)) if chain.len() > 2 * ENDS + 1 => {
                let between = chain.len() - 2 * ENDS;
                let (head, tail) = (head.join(" → "), tail.join(" → "));
                format!("{head} → ({between} more) → {tail}")
            }
            _ => chain.join(" → "),
        }
    }

    fn after(&self, task: usize) -> String {
        let names: Vec<&str> = self
            .depends_on
            .get(task)
            .into_iter()
            .flatten()
            .map(|dependency| self.name(*dependency))
            .collect();
        match names.as_slice() {
            [] => String::new(),
            [first, second, third, rest @ ..] if rest.len() > 1 => {
                format!("after {first}, {second}, {third} and {} more", rest.len())
            }
            names => format!("after {}", names.join(", ")),
        }
    }

    fn name(&self, task: usize) -> &'p str {
        self.names.get(task).copied().unwrap_or_default()
    }
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Gives each task the length of the longest chain that ends with it.
fn levels(depends_on: &[Vec<usize>]) -> Vec<usize> {
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); depends_on.len()];
    let mut unmet: Vec<usize> = depends_on.iter().map(Vec::len).collect();
    for (task, dependencies) in depends_on.iter().enumerate() {
        for dependency in dependencies {
            if let Some(list) = dependents.get_mut(*dependency) {
                list.push(task);
            }
        }
    }
    let mut levels = vec![1; depends_on.len()];
    let mut ready: Vec<usize> = (0..unmet.len())
        .filter(|task| unmet.get(*task) == Some(&0))
        .collect();
    while let Some(task) = ready.pop() {
        let level = levels.get(task).copied().unwrap_or(1);
        for dependent in dependents.get(task).into_iter().flatten() {
            if let Some(slot) = levels.get_mut(*dependent) {
                *slot = (*slot).max(level + 1);
            }
            if let Some(count) = unmet.get_mut(*dependent) {
                *count -= 1;
                if *count == 0 {
                    ready.push(*dependent);
                }
            }
        }
    }
    levels
}

/// Walks back from the first task of the last level.
fn critical(depends_on: &[Vec<usize>], levels: &[usize]) -> Vec<usize> {
    let level_of = |task: usize| levels.get(task).copied().unwrap_or(0);
    let deepest = levels.iter().copied().max();
    let mut chain: Vec<usize> = levels
        .iter()
        .position(|level| Some(*level) == deepest)
        .into_iter()
        .collect();
    while let Some(task) = chain.last().copied() {
        let dependencies = depends_on.get(task).map(Vec::as_slice).unwrap_or_default();
        let before = dependencies
            .iter()
            .copied()
            .filter(|dependency| level_of(*dependency) + 1 == level_of(task))
            .min();
        match before {
            Some(before) => chain.push(before),
            None => break,
        }
    }
    chain.reverse();
    chain
}
