//! Places for a drawing in layers, after Sugiyama, Tagawa and Toda: each task in the layer of its
//! longest chain, edges cut into steps of one layer, each layer ordered so that few edges cross, and
//! each task as near as it can be to what it is tied to.

/// Sweeps over the layers that look for fewer crossings; more have rarely found any.
const SWEEPS: usize = 12;
/// Sweeps that straighten edges; further ones move a hundred tasks by less than a line's width.
const STRAIGHTENING: usize = 40;

/// Tasks and the bends of long edges, layer by layer.
pub(super) struct Layers {
    /// The dots of each layer, from top to bottom.
    pub(super) layers: Vec<Vec<usize>>,
    /// For each dot how far down it is; tasks come first, then bends.
    pub(super) down: Vec<f64>,
    /// For each edge the dots that it passes, from its first task to its last.
    pub(super) paths: Vec<Vec<usize>>,
    before: Vec<Vec<usize>>,
    behind: Vec<Vec<usize>>,
}

/// Lays out tasks by what they depend on. `levels` count from 1; `room` is what a dot needs: more
/// for the tasks, of which there are `depends_on.len()`, than for bends.
///
/// `None` if there would be more than `dots_max` dots.
pub(super) fn lay_out(
    depends_on: &[Vec<usize>],
    levels: &[usize],
    dots_max: usize,
) -> Option<Layers> {
    let level = |task: usize| levels.get(task).copied().unwrap_or(1);
    let bends: usize = depends_on
        .iter()
        .enumerate()
        .flat_map(|(to, dependencies)| dependencies.iter().map(move |from| (*from, to)))
        .map(|(from, to)| level(to).saturating_sub(level(from) + 1))
        .sum();
    if depends_on.len() + bends > dots_max {
        return None;
    }
    let mut layers = vec![Vec::new(); levels.iter().copied().max().unwrap_or(0)];
    let put = |layers: &mut Vec<Vec<usize>>, level: usize, dot: usize| {
        if let Some(layer) = level.checked_sub(1).and_then(|at| layers.get_mut(at)) {
            layer.push(dot);
        }
    };
    for task in 0..depends_on.len() {
        put(&mut layers, level(task), task);
    }
    let mut dots = depends_on.len();
    let mut paths = Vec::new();
    for (to, dependencies) in depends_on.iter().enumerate() {
        for &from in dependencies {
            let mut path = vec![from];
            for between in level(from) + 1..level(to) {
                put(&mut layers, between, dots);
                path.push(dots);
                dots += 1;
            }
            path.push(to);
            paths.push(path);
        }
    }
    let mut before = vec![Vec::new(); dots];
    let mut behind = vec![Vec::new(); dots];
    for step in paths.iter().flat_map(|path| path.windows(2)) {
        if let [from, to] = *step {
            if let Some(list) = behind.get_mut(from) {
                list.push(to);
            }
            if let Some(list) = before.get_mut(to) {
                list.push(from);
            }
        }
    }
    let mut laid = Layers {
        layers,
        down: vec![0.0; dots],
        paths,
        before,
        behind,
    };
    laid.uncross();
    laid.straighten(depends_on.len());
    Some(laid)
}

impl Layers {
    /// Orders the layers by the mean place of each dot's neighbours, forth and back, and keeps the
    /// best order that was seen.
    fn uncross(&mut self) {
        let mut best = self.layers.clone();
        let mut fewest = self.crossings();
        for sweep in 0..SWEEPS {
            if fewest == 0 {
                break;
            }
            let forth = sweep % 2 == 0;
            let places = self.layers.len();
            let order: Vec<usize> = if forth {
                (1..places).collect()
            } else {
                (0..places.saturating_sub(1)).rev().collect()
            };
            for at in order {
                let fixed = if forth { at - 1 } else { at + 1 };
                let place = self.places(fixed);
                let Some(mut layer) = self.layers.get(at).cloned() else {
                    continue;
                };
                let mut keyed: Vec<(f64, usize, usize)> = layer
                    .iter()
                    .enumerate()
                    .map(|(now, &dot)| {
                        let tied = if forth {
                            self.before.get(dot)
                        } else {
                            self.behind.get(dot)
                        };
                        let tied: Vec<f64> = tied
                            .into_iter()
                            .flatten()
                            .filter_map(|other| place.get(*other).copied().flatten())
                            .collect();
                        (mean(&tied).unwrap_or(now as f64), now, dot)
                    })
                    .collect();
                keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                layer.clear();
                layer.extend(keyed.into_iter().map(|(_, _, dot)| dot));
                if let Some(slot) = self.layers.get_mut(at) {
                    *slot = layer;
                }
            }
            let crossings = self.crossings();
            if crossings < fewest {
                fewest = crossings;
                best.clone_from(&self.layers);
            }
        }
        self.layers = best;
    }

    /// Gives for each dot of a layer its place in it.
    fn places(&self, layer: usize) -> Vec<Option<f64>> {
        let mut places = vec![None; self.down.len()];
        for (place, dot) in self.layers.get(layer).into_iter().flatten().enumerate() {
            if let Some(slot) = places.get_mut(*dot) {
                *slot = Some(place as f64);
            }
        }
        places
    }

    /// Counts the pairs of steps that cross, as inversions between neighbouring layers.
    fn crossings(&self) -> u64 {
        let mut crossings = 0;
        for layer in 1..self.layers.len() {
            let place = self.places(layer);
            let mut ends: Vec<usize> = Vec::new();
            for dot in self.layers.get(layer - 1).into_iter().flatten() {
                let mut of_dot: Vec<usize> = self
                    .behind
                    .get(*dot)
                    .into_iter()
                    .flatten()
                    .filter_map(|to| place.get(*to).copied().flatten())
                    .map(|place| place as usize)
                    .collect();
                of_dot.sort_unstable();
                ends.extend(of_dot);
            }
            crossings += inversions(&ends, self.layers.get(layer).map_or(0, Vec::len));
        }
        crossings
    }

    /// Moves each dot towards the mean of its neighbours as far as its layer's order allows.
    fn straighten(&mut self, tasks: usize) {
        for layer in &self.layers {
            let mut down = 0.0;
            for dot in layer {
                if let Some(slot) = self.down.get_mut(*dot) {
                    *slot = down;
                }
                down += if *dot < tasks { 1.0 } else { 0.5 };
            }
        }
        for sweep in 0..STRAIGHTENING {
            let forth = sweep % 2 == 0;
            let order: Vec<usize> = if forth {
                (0..self.layers.len()).collect()
            } else {
                (0..self.layers.len()).rev().collect()
            };
            for at in order {
                let Some(layer) = self.layers.get(at) else {
                    continue;
                };
                let wished: Vec<f64> = layer
                    .iter()
                    .map(|dot| {
                        let tied = [self.before.get(*dot), self.behind.get(*dot)];
                        let tied: Vec<f64> = tied
                            .into_iter()
                            .flatten()
                            .flatten()
                            .filter_map(|other| self.down.get(*other).copied())
                            .collect();
                        let now = self.down.get(*dot).copied().unwrap_or_default();
                        mean(&tied).unwrap_or(now)
                    })
                    .collect();
                let gaps: Vec<f64> = layer
                    .windows(2)
                    .map(|pair| {
                        if pair.iter().all(|dot| *dot >= tasks) {
                            0.5
                        } else {
                            1.0
                        }
                    })
                    .collect();
                for (dot, down) in layer.iter().zip(apart(&wished, &gaps)) {
                    if let Some(slot) = self.down.get_mut(*dot) {
                        *slot = down;
                    }
                }
            }
        }
        let least = self.down.iter().copied().fold(f64::INFINITY, f64::min);
        if least.is_finite() {
            self.down.iter_mut().for_each(|down| *down -= least);
        }
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Gives the places nearest to what is wished, by least squares, in this order and with these gaps:
/// neighbours that come too near become a block around the mean of their wishes.
fn apart(wished: &[f64], gaps: &[f64]) -> Vec<f64> {
    // Without the gaps the places need only not decrease.
    let mut offset = 0.0;
    let offsets: Vec<f64> = std::iter::once(0.0)
        .chain(gaps.iter().map(|gap| {
            offset += gap;
            offset
        }))
        .collect();
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for (wish, offset) in wished.iter().zip(&offsets) {
        blocks.push((wish - offset, 1));
        while let [.., (before, many), (last, few)] = blocks.as_slice() {
            if before <= last {
                break;
            }
            let count = many + few;
            let mean = (before * *many as f64 + last * *few as f64) / count as f64;
            blocks.truncate(blocks.len() - 2);
            blocks.push((mean, count));
        }
    }
    blocks
        .iter()
        .flat_map(|(place, count)| std::iter::repeat_n(*place, *count))
        .zip(&offsets)
        .map(|(place, offset)| place + offset)
        .collect()
}

/// Counts pairs that stand in the wrong order, with a tree of counts (Fenwick).
fn inversions(values: &[usize], size: usize) -> u64 {
    let mut tree = vec![0_u64; size + 1];
    let mut found = 0;
    for (seen, value) in values.iter().enumerate() {
        let mut not_greater = 0;
        let mut at = value + 1;
        while at > 0 {
            not_greater += tree.get(at).copied().unwrap_or(0);
            at &= at - 1;
        }
        found += seen as u64 - not_greater;
        let mut at = value + 1;
        while let Some(slot) = tree.get_mut(at) {
            *slot += 1;
            at += at & at.wrapping_neg();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inversions_are_counted_as_by_looking_at_each_pair() {
        let values = [3, 1, 4, 1, 5, 0, 2, 5, 3];
        let mut pairs = 0;
        for (at, first) in values.iter().enumerate() {
            pairs += values[at..].iter().filter(|later| *later < first).count() as u64;
        }
        assert_eq!(inversions(&values, 6), pairs);
    }

    #[test]
    fn what_comes_too_near_moves_apart_by_as_little_as_possible() {
        assert_eq!(apart(&[0.0, 5.0], &[1.0]), [0.0, 5.0]);
        assert_eq!(apart(&[2.0, 2.0], &[1.0]), [1.5, 2.5]);
        assert_eq!(apart(&[4.0, 0.0, 9.0], &[1.0, 1.0]), [1.5, 2.5, 9.0]);
        assert_eq!(apart(&[], &[]), [0.0; 0]);
    }

    #[test]
    fn edges_that_need_not_cross_do_not() {
        // a → d, b → c: in the order of the plan they cross.
        let depends_on = [vec![], vec![], vec![1], vec![0]];
        let laid = lay_out(&depends_on, &[1, 1, 2, 2], 100).unwrap();
        assert_eq!(laid.crossings(), 0);
        for path in &laid.paths {
            let downs: Vec<f64> = path.iter().map(|dot| laid.down[*dot]).collect();
            assert!((downs[0] - downs[1]).abs() < 1e-9, "{downs:?}");
        }
    }

    #[test]
    fn a_graph_with_too_many_bends_is_refused() {
        let depends_on = [vec![], vec![0], vec![1], vec![2, 0]];
        let levels = [1, 2, 3, 4];
        assert!(lay_out(&depends_on, &levels, 5).is_none());
        let laid = lay_out(&depends_on, &levels, 6).unwrap();
        assert_eq!(laid.paths.last().map(Vec::len), Some(4));
    }
}
