//! The graph as text: a row for each task, below all that it depends on, and a lane for what others
//! still wait for.
//!
//! Tasks that the same others wait for share one lane, into which each row turns; so a hundred
//! parallel tasks are one lane and not a hundred. What comes from the left, or from above, a task
//! depends on; where a row turns to the right, or goes on below, is where others wait for it. There
//! are only so many lanes as leave room for names. What finds none is told in words, which every row
//! has as far as they fit. A task that no lane leads to is hollow, so that one below another is not
//! taken for a chain.

use std::collections::{BTreeMap, BTreeSet};

use super::Graph;

/// Lanes beside each other; each takes two columns.
const LANES_MAX: usize = 20;
/// Columns of a name at the most, unless there is nothing else to say.
const NAME_WIDTH_MAX: usize = 32;

/// What several rows run into and others come out of.
#[derive(Clone, Debug)]
struct Lane {
    column: usize,
    /// Rows that are still to come out of it.
    left: usize,
}

/// How one row is drawn.
#[derive(Clone, Debug, Default)]
struct Row {
    task: usize,
    column: usize,
    /// Columns of the lanes that the task comes out of, and whether each ends here.
    from: BTreeMap<usize, bool>,
    /// The lane that it turns into, and whether that begins here.
    into: Option<(usize, bool)>,
    /// Columns of all lanes that are there.
    lanes: BTreeSet<usize>,
}

#[derive(Clone)]
struct Drawing<'g, 'p> {
    graph: &'g Graph<'p>,
    dependents: Vec<Vec<usize>>,
    /// Tasks of each set of dependents, and the lane that they share.
    groups: BTreeMap<Vec<usize>, (usize, Option<usize>)>,
    lanes: Vec<Lane>,
    /// The lane that each drawn task went into.
    lane_of: Vec<Option<usize>>,
    /// Which lane has a column.
    columns: Vec<Option<usize>>,
    /// The column of the row before, if nothing goes on below it although it might seem so.
    ended: Option<usize>,
}

/// What is worse in a drawing: edges that are told in words alone, then width.
fn cost(drawn: &[(Row, Vec<usize>)]) -> (usize, usize) {
    let in_words = drawn.iter().map(|(_, in_words)| in_words.len()).sum();
    let width = drawn
        .iter()
        .map(|(row, _)| row.column + row.lanes.len())
        .sum();
    (in_words, width)
}

/// Draws the rows, each at most `width` columns wide.
pub(super) fn rows(graph: &Graph<'_>, width: usize) -> Vec<String> {
    let drawing = Drawing::new(graph);
    let orders = [drawing.order_by_chains(), drawing.order_by_levels()];
    let drawn = orders
        .into_iter()
        .map(|order| drawing.clone().draw(order))
        .min_by_key(|drawn| cost(drawn))
        .unwrap_or_default();
    let lanes: Vec<String> = drawn.iter().map(|(row, _)| picture(graph, row)).collect();
    let gutter = lanes.iter().map(|lane| wide(lane)).max().unwrap_or(0);
    let name_width = graph
        .nodes
        .iter()
        .map(|node| wide(node.name))
        .max()
        .unwrap_or(0);
    let name_width = name_width.min(NAME_WIDTH_MAX.max(width.saturating_sub(gutter + 40)));
    let state_width = graph
        .nodes
        .iter()
        .filter_map(|node| node.state)
        .map(|state| wide(state.word) + 2)
        .max();
    drawn
        .iter()
        .zip(lanes)
        .map(|((row, in_words), lane)| {
            let mut line = pad(&lane, gutter);
            line.push_str("  ");
            let name = console::truncate_str(graph.name(row.task), name_width, "…");
            line.push_str(&pad(&name, name_width));
            if let Some(width) = state_width {
                let state = graph.nodes.get(row.task).and_then(|node| node.state);
                line.push_str("  ");
                let state = state.map(|state| format!("{} {}", state.sign, state.word));
                line.push_str(&pad(&state.unwrap_or_default(), width));
            }
            let room = width.saturating_sub(wide(&line) + 2);
            let after = after(graph, row.task, in_words, room);
            if !after.is_empty() {
                line.push_str("  ");
                line.push_str(&after);
            }
            console::truncate_str(line.trim_end(), width, "…").into_owned()
        })
        .collect()
}

impl<'g, 'p> Drawing<'g, 'p> {
    fn new(graph: &'g Graph<'p>) -> Self {
        let dependents = super::dependents(&graph.depends_on);
        let mut groups: BTreeMap<Vec<usize>, (usize, Option<usize>)> = BTreeMap::new();
        for dependents in dependents
            .iter()
            .filter(|dependents| !dependents.is_empty())
        {
            groups.entry(dependents.clone()).or_default().0 += 1;
        }
        Self {
            graph,
            lane_of: vec![None; dependents.len()],
            dependents,
            groups,
            lanes: Vec::new(),
            columns: vec![None; LANES_MAX],
            ended: None,
        }
    }

    fn draw(mut self, order: Vec<usize>) -> Vec<(Row, Vec<usize>)> {
        order.into_iter().map(|task| self.row(task)).collect()
    }

    /// Puts level below level, in each those together that the same tasks wait for. That suits plans
    /// in which whole levels wait for each other.
    fn order_by_levels(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.dependents.len()).collect();
        order.sort_by_key(|task| (self.graph.levels.get(*task), self.dependents.get(*task)));
        order
    }

    /// Puts each task below its dependencies, and otherwise so that lanes are short: what ends most
    /// lanes first, then the siblings of what was drawn, then what follows from the newest.
    fn order_by_chains(&self) -> Vec<usize> {
        let mut unmet: Vec<usize> = self.graph.depends_on.iter().map(Vec::len).collect();
        let mut waiting: Vec<usize> = self.dependents.iter().map(Vec::len).collect();
        let mut begun: BTreeSet<&[usize]> = BTreeSet::new();
        let mut drawn_at: Vec<usize> = vec![0; unmet.len()];
        let mut ready: BTreeSet<usize> = (0..unmet.len())
            .filter(|task| unmet.get(*task) == Some(&0))
            .collect();
        let mut order = Vec::with_capacity(unmet.len());
        while let Some(&task) = ready.iter().max_by_key(|task| {
            let dependencies = self
                .graph
                .depends_on
                .get(**task)
                .map_or(&[][..], Vec::as_slice);
            let ends = dependencies
                .iter()
                .filter(|on| waiting.get(**on) == Some(&1))
                .count();
            let siblings = self
                .dependents
                .get(**task)
                .is_some_and(|of| begun.contains(of.as_slice()));
            let newest = dependencies
                .iter()
                .filter_map(|on| drawn_at.get(*on))
                .max()
                .copied();
            (ends, siblings, newest, std::cmp::Reverse(**task))
        }) {
            ready.remove(&task);
            order.push(task);
            if let Some(at) = drawn_at.get_mut(task) {
                *at = order.len();
            }
            for on in self.graph.depends_on.get(task).into_iter().flatten() {
                if let Some(count) = waiting.get_mut(*on) {
                    *count -= 1;
                }
            }
            let Some(dependents) = self.dependents.get(task) else {
                continue;
            };
            if !dependents.is_empty() {
                begun.insert(dependents);
            }
            for dependent in dependents {
                if let Some(count) = unmet.get_mut(*dependent) {
                    *count -= 1;
                    if *count == 0 {
                        ready.insert(*dependent);
                    }
                }
            }
        }
        order
    }

    /// Lays out the next row. Gives with it the dependencies that no lane shows.
    fn row(&mut self, task: usize) -> (Row, Vec<usize>) {
        let dependencies = self
            .graph
            .depends_on
            .get(task)
            .map_or(&[][..], Vec::as_slice);
        let lane_of = |on: &usize| self.lane_of.get(*on).copied().flatten();
        let in_words: Vec<usize> = dependencies
            .iter()
            .copied()
            .filter(|on| lane_of(on).is_none())
            .collect();
        let lanes: BTreeSet<usize> = dependencies.iter().filter_map(lane_of).collect();
        let mut row = Row {
            task,
            lanes: self.taken(),
            ..Row::default()
        };
        for lane in lanes {
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.left -= 1;
                row.from.insert(lane.column, lane.left == 0);
            }
        }
        self.place(task, &mut row);
        for (column, ends) in &row.from {
            let stays = row.into.is_none() && *column == row.column && self.goes_on(task);
            if *ends
                && !stays
                && let Some(slot) = self.columns.get_mut(*column)
            {
                *slot = None;
            }
        }
        // A row that turns to the right is seen to end there.
        let seems_to_go_on = row.into.is_none() && !self.goes_on(task);
        self.ended = seems_to_go_on.then_some(row.column);
        (row, in_words)
    }

    /// Finds the row's column, and a lane for those that wait for its task.
    fn place(&mut self, task: usize, row: &mut Row) {
        let dependents = self.dependents.get(task).cloned().unwrap_or_default();
        let shared = self.groups.get(&dependents).copied();
        if let Some((members, lane)) = shared.filter(|(members, _)| *members > 1)
            && self.turn_into(row, lane)
        {
            let lane = match (lane, row.into) {
                (Some(lane), _) => lane,
                (None, Some((column, _))) => self.begin(column, dependents.len()),
                (None, None) => return,
            };
            self.groups.insert(dependents, (members, Some(lane)));
            if let Some(slot) = self.lane_of.get_mut(task) {
                *slot = Some(lane);
            }
            return;
        }
        let column = self.right_of(row, LANES_MAX);
        row.column = column.unwrap_or(if self.ended == Some(LANES_MAX) {
            LANES_MAX + 1
        } else {
            LANES_MAX
        });
        if let Some(column) = column.filter(|_| !dependents.is_empty()) {
            let lane = self.begin(column, dependents.len());
            if let Some(slot) = self.lane_of.get_mut(task) {
                *slot = Some(lane);
            }
        }
    }

    /// Places the row left of a lane that it shares, and right of all that it comes from. Gives
    /// false, and changes nothing, if there is no such place.
    fn turn_into(&self, row: &mut Row, lane: Option<usize>) -> bool {
        let known = lane
            .and_then(|lane| self.lanes.get(lane))
            .map(|lane| lane.column);
        let column = self.right_of(row, known.unwrap_or(LANES_MAX));
        let Some(column) = column else { return false };
        let Some(into) = known.or_else(|| self.free(column + 1, LANES_MAX)) else {
            return false;
        };
        row.column = column;
        row.into = Some((into, known.is_none()));
        true
    }

    /// Finds a column for a row, right of the lanes that it comes from or on the last of them.
    fn right_of(&self, row: &Row, until: usize) -> Option<usize> {
        match row.from.last_key_value() {
            Some((column, true)) if *column < until => Some(*column),
            // Not right below a task that it has nothing to do with.
            Some((column, _)) => self
                .free(column + 1, until)
                .filter(|free| Some(*free) != self.ended)
                .or_else(|| self.free(self.ended?.max(*column) + 1, until)),
            // This one will be hollow.
            None => self.free(0, until),
        }
    }

    fn begin(&mut self, column: usize, left: usize) -> usize {
        let lane = self.lanes.len();
        self.lanes.push(Lane { column, left });
        if let Some(slot) = self.columns.get_mut(column) {
            *slot = Some(lane);
        }
        lane
    }

    fn goes_on(&self, task: usize) -> bool {
        self.lane_of.get(task).copied().flatten().is_some()
    }

    fn free(&self, from: usize, until: usize) -> Option<usize> {
        (from..until.min(LANES_MAX)).find(|column| self.columns.get(*column) == Some(&None))
    }

    fn taken(&self) -> BTreeSet<usize> {
        (0..LANES_MAX)
            .filter(|column| self.columns.get(*column).is_some_and(Option::is_some))
            .collect()
    }
}

fn picture(graph: &Graph<'_>, row: &Row) -> String {
    let ends = row.from.keys().copied().chain([row.column]);
    let ends = ends.chain(row.into.map(|(column, _)| column));
    let (left, right) = ends.fold((row.column, row.column), |(left, right), column| {
        (left.min(column), right.max(column))
    });
    let last = row.lanes.last().copied().unwrap_or(0).max(right);
    let mut picture = String::new();
    for column in 0..=last {
        let sign = if column == row.column {
            match (row.from.is_empty(), graph.is_critical(row.task)) {
                (true, true) => "◇",
                (true, false) => "○",
                (false, true) => "◆",
                (false, false) => "●",
            }
        } else if let Some((_, begins)) = row.into.filter(|(into, _)| *into == column) {
            if begins { "╮" } else { "┤" }
        } else {
            match (row.from.get(&column), column == left) {
                (Some(true), true) => "╰",
                (Some(true), false) => "┴",
                (Some(false), true) => "├",
                (Some(false), false) => "┼",
                (None, _) if row.lanes.contains(&column) => "│",
                (None, _) if left < column && column < right => "─",
                (None, _) => " ",
            }
        };
        picture.push_str(sign);
        if column < last {
            picture.push(if left <= column && column < right {
                '─'
            } else {
                ' '
            });
        }
    }
    picture
}

/// Names what a task depends on, as far as there is room; first what no lane shows.
fn after(graph: &Graph<'_>, task: usize, in_words: &[usize], room: usize) -> String {
    let dependencies = graph.depends_on.get(task).map_or(&[][..], Vec::as_slice);
    let others = dependencies.iter().filter(|on| !in_words.contains(on));
    let names: Vec<&str> = in_words
        .iter()
        .chain(others)
        .map(|on| graph.name(*on))
        .collect();
    for shown in (1..=names.len()).rev() {
        let mut text = format!(
            "after {}",
            names.get(..shown).unwrap_or_default().join(", ")
        );
        if shown < names.len() {
            text = format!("{text} and {} more", names.len() - shown);
        }
        if wide(&text) <= room {
            return text;
        }
    }
    match names.len() {
        0 => String::new(),
        count => format!("after {}", super::counted(count, "task")),
    }
}

fn wide(text: &str) -> usize {
    console::measure_text_width(text)
}

fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(wide(text));
    format!("{text}{}", " ".repeat(missing))
}
