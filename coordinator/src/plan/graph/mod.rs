//! The tasks of a plan or run and their edges as pictures: text, DOT, Mermaid, SVG.

mod lanes;
mod layers;
mod svg;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::Plan;

pub use svg::TooLarge;

/// Columns that text may have unless the caller knows better.
pub const WIDTH_DEFAULT: usize = 80;
/// Tasks that are drawn with lanes; of more the levels are listed, which costs less and says more.
const LANES_TASKS_MAX: usize = 1_000;

/// A task as it is drawn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node<'p> {
    /// The task's name.
    pub name: &'p str,
    /// Names of the tasks it depends on; unknown ones are left out.
    pub depends_on: Vec<&'p str>,
    /// How it stands, if it is of a run.
    pub state: Option<NodeState<'p>>,
}

/// How a task stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeState<'p> {
    /// Its state in a word.
    pub word: &'p str,
    /// Its state in a character.
    pub sign: &'static str,
}

/// The tasks of a plan with their edges, levels and longest chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Graph<'p> {
    title: &'p str,
    nodes: Vec<Node<'p>>,
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
        let nodes = plan
            .document
            .tasks
            .iter()
            .map(|task| Node {
                name: &task.name,
                depends_on: task.depends_on.iter().map(String::as_str).collect(),
                state: None,
            })
            .collect();
        Self::new(plan.name(), nodes)
    }

    /// Makes the graph of tasks, in the order of their plan. Edges of a circle are no chain, so
    /// tasks on one may stand anywhere; a checked plan has none.
    #[must_use]
    pub fn new(title: &'p str, nodes: Vec<Node<'p>>) -> Self {
        let places: HashMap<&str, usize> = nodes.iter().map(|node| node.name).zip(0..).collect();
        let depends_on: Vec<Vec<usize>> = nodes
            .iter()
            .map(|node| {
                let mut known: Vec<usize> = node
                    .depends_on
                    .iter()
                    .filter_map(|name| places.get(name).copied())
                    .collect();
                let mut seen = HashSet::new();
                known.retain(|on| seen.insert(*on));
                known
            })
            .collect();
        let levels = levels(&depends_on);
        let critical = critical(&depends_on, &levels);
        Self {
            title,
            nodes,
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

    /// Draws the graph as text of at most `width` columns: a row for each task, below all that it
    /// depends on, with lanes for the edges. Of very many tasks the levels are listed instead.
    #[must_use]
    pub fn text(&self, width: usize) -> String {
        let mut counts = vec![0_usize; self.critical.len()];
        for level in &self.levels {
            if let Some(count) = level.checked_sub(1).and_then(|level| counts.get_mut(level)) {
                *count += 1;
            }
        }
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{}: {}, {}, the widest of {}",
            self.title,
            counted(self.nodes.len(), "task"),
            counted(self.critical.len(), "level"),
            counts.iter().max().unwrap_or(&0),
        );
        let _ = writeln!(out, "longest chain (◆): {}\n", self.chain(width));
        let rows = if self.nodes.len() > LANES_TASKS_MAX {
            self.level_rows(width)
        } else {
            lanes::rows(self, width)
        };
        for row in rows {
            let _ = writeln!(out, "{row}");
        }
        out
    }

    /// Lists the tasks level by level: those of one can run at the same time.
    fn level_rows(&self, width: usize) -> Vec<String> {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|task| self.levels.get(*task).copied());
        let gutter = self.critical.len().to_string().len();
        let mut last = 0;
        order
            .into_iter()
            .map(|task| {
                let level = self.levels.get(task).copied().unwrap_or_default();
                let number = if level == last {
                    String::new()
                } else {
                    level.to_string()
                };
                last = level;
                let state = self.nodes.get(task).and_then(|node| node.state);
                let sign = match state {
                    Some(state) => state.sign,
                    None if self.is_critical(task) => "◆",
                    None => "●",
                };
                let name = self.name(task);
                let line = format!("{number:>gutter$} {sign} {name}  {}", self.after(task));
                console::truncate_str(line.trim_end(), width, "…").into_owned()
            })
            .collect()
    }

    /// Writes the graph in Graphviz' language; the longest chain is bold.
    #[must_use]
    pub fn dot(&self) -> String {
        let chain: HashSet<usize> = self.critical.iter().copied().collect();
        let mut out = String::from("digraph plan {\n  rankdir=LR;\n  node [shape=box];\n");
        for (task, node) in self.nodes.iter().enumerate() {
            let style = if chain.contains(&task) {
                ", style=bold"
            } else {
                ""
            };
            let label = self.label_with_state(node, '"', "\\\"");
            let _ = writeln!(out, "  t{task} [label=\"{label}\"{style}];");
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
        for (task, node) in self.nodes.iter().enumerate() {
            let label = self.label_with_state(node, '"', "#quot;");
            let _ = writeln!(out, "  t{task}[\"{label}\"]");
        }
        self.edges(|from, to, chain| {
            let arrow = if chain { "==>" } else { "-->" };
            let _ = writeln!(out, "  t{from} {arrow} t{to}");
        });
        out
    }

    /// Gives a task's name, and its state if it has one, with the language's quote made harmless.
    fn label_with_state(&self, node: &Node<'_>, quote: char, instead: &str) -> String {
        let name = node.name.replace(quote, instead);
        match node.state {
            Some(state) => format!("{} {name} ({})", state.sign, state.word),
            None => name,
        }
    }

    fn edges(&self, mut draw: impl FnMut(usize, usize, bool)) {
        for (to, dependencies) in self.depends_on.iter().enumerate() {
            for from in dependencies {
                draw(*from, to, self.is_in_chain(*from, to));
            }
        }
    }

    /// Tells whether an edge is one of the longest chain: its tasks are on it, one level apart.
    fn is_in_chain(&self, from: usize, to: usize) -> bool {
        let step = |task: usize| {
            let level = self.levels.get(task)?.checked_sub(1)?;
            (self.critical.get(level) == Some(&task)).then_some(level)
        };
        step(from)
            .zip(step(to))
            .is_some_and(|(from, to)| from + 1 == to)
    }

    /// Gives the longest chain in one line, with as much of its middle left out as does not fit.
    fn chain(&self, width: usize) -> String {
        let chain = self.critical_path();
        let room = width.saturating_sub("longest chain (◆): ".chars().count());
        let whole = chain.join(" → ");
        if console::measure_text_width(&whole) <= room {
            return whole;
        }
        let longest_end = (chain.len().saturating_sub(1) / 2).max(1);
        for ends in (1..=longest_end).rev() {
            let (head, tail) = (chain.get(..ends), chain.get(chain.len() - ends..));
            let (head, tail) = (head.unwrap_or_default(), tail.unwrap_or_default());
            let between = chain.len().saturating_sub(2 * ends);
            let text = format!(
                "{} → ({between} more) → {}",
                head.join(" → "),
                tail.join(" → ")
            );
            if console::measure_text_width(&text) <= room {
                return text;
            }
        }
        counted(chain.len(), "task")
    }

    /// Tells whether a task is on the longest chain.
    fn is_critical(&self, task: usize) -> bool {
        let level = self.levels.get(task).and_then(|level| level.checked_sub(1));
        level.is_some_and(|level| self.critical.get(level) == Some(&task))
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
        self.nodes.get(task).map_or("", |node| node.name)
    }
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Gives each task those that depend on it, in the order of the plan.
fn dependents(depends_on: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); depends_on.len()];
    for (task, dependencies) in depends_on.iter().enumerate() {
        for dependency in dependencies {
            if let Some(list) = dependents.get_mut(*dependency) {
                list.push(task);
            }
        }
    }
    dependents
}

/// Gives each task the length of the longest chain that ends with it.
fn levels(depends_on: &[Vec<usize>]) -> Vec<usize> {
    let dependents = dependents(depends_on);
    let mut unmet: Vec<usize> = depends_on.iter().map(Vec::len).collect();
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
