//! The graph as a picture for browsers: layers from left to right, in a file of its own.

use std::fmt::Write as _;

use super::Graph;
use super::layers;

/// Tasks and bends of a picture; a larger one helps nobody, and browsers choke on it.
const DOTS_MAX: usize = 20_000;
/// Width of a character of the font, in pixels; monospaced, so that boxes fit on every system.
const LETTER: f64 = 7.25;
const BOX_HEIGHT: f64 = 26.0;
/// From the middle of a task to that of the next in its layer.
const PITCH: f64 = 38.0;
/// Between layers, for edges to turn in.
const CHANNEL: f64 = 56.0;
const MARGIN: f64 = 20.0;
const TITLE_HEIGHT: f64 = 30.0;
/// Letters of a name; a longer one is cut, and whole in the tooltip.
const NAME_MAX: usize = 32;

/// A picture would have too many tasks and edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the graph has more than {DOTS_MAX} tasks and bends of edges, too many for a picture")]
pub struct TooLarge;

impl Graph<'_> {
    /// Draws the graph as an SVG file; the longest chain is bold.
    ///
    /// The same graph gives the same bytes.
    ///
    /// # Errors
    /// The picture would be too large to look at.
    pub fn svg(&self) -> Result<String, TooLarge> {
        let laid = layers::lay_out(&self.depends_on, &self.levels, DOTS_MAX).ok_or(TooLarge)?;
        let tasks = self.nodes.len();
        let columns = self.columns(&laid.layers);
        let middle = |dot: usize| {
            MARGIN
                + TITLE_HEIGHT
                + BOX_HEIGHT / 2.0
                + laid.down.get(dot).copied().unwrap_or_default() * PITCH
        };
        let mut place = vec![(0.0, 0.0); laid.down.len()];
        for (layer, column) in laid.layers.iter().zip(&columns) {
            for dot in layer {
                if let Some(slot) = place.get_mut(*dot) {
                    // A bend has no width of its own, but the edge goes through its column.
                    *slot = *column;
                }
            }
        }
        let width = columns.last().map_or(0.0, |(_, right)| *right) + MARGIN;
        let height =
            (0..laid.down.len()).map(middle).fold(0.0, f64::max) + BOX_HEIGHT / 2.0 + MARGIN;
        let title = format!(
            "{}: {}, {}",
            self.title,
            super::counted(tasks, "task"),
            super::counted(self.critical.len(), "level")
        );
        let width = width.max(MARGIN * 2.0 + title.chars().count() as f64 * LETTER * 1.2);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
             font-size=\"12\">\n"
        );
        let title = escaped(&title);
        let _ = writeln!(out, "<title>{title}</title>");
        let _ = writeln!(
            out,
            "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{MARGIN}\" y=\"{:.0}\" font-size=\"14\" font-weight=\"bold\" \
             fill=\"#1f2328\">{title}</text>",
            MARGIN + 8.0
        );
        out.push_str("<g fill=\"none\" stroke=\"#8c959f\" stroke-width=\"1.2\">\n");
        for path in &laid.paths {
            let chain = match (path.first(), path.last()) {
                (Some(from), Some(to)) => self.is_in_chain(*from, *to),
                _ => false,
            };
            let style = if chain {
                " stroke=\"#1f2328\" stroke-width=\"2.4\""
            } else {
                ""
            };
            let line = self.curve(path, &place, middle);
            let _ = writeln!(out, "<path d=\"{line}\"{style}/>");
        }
        out.push_str("</g>\n");
        for task in 0..tasks {
            let (left, right) = place.get(task).copied().unwrap_or_default();
            self.task(&mut out, task, left, right, middle(task));
        }
        out.push_str("</svg>\n");
        Ok(out)
    }

    /// Gives the left and right side of each layer.
    fn columns(&self, layers: &[Vec<usize>]) -> Vec<(f64, f64)> {
        let mut left = MARGIN;
        layers
            .iter()
            .map(|layer| {
                let letters = layer
                    .iter()
                    .filter(|dot| **dot < self.nodes.len())
                    .map(|task| self.label(*task).chars().count())
                    .max()
                    .unwrap_or(0);
                let right = left + letters as f64 * LETTER + 18.0;
                let column = (left, right);
                left = right + CHANNEL;
                column
            })
            .collect()
    }

    fn label(&self, task: usize) -> String {
        let name = console::truncate_str(self.name(task), NAME_MAX, "…");
        match self.nodes.get(task).and_then(|node| node.state) {
            Some(state) => format!("{} {name}", state.sign),
            None => name.into_owned(),
        }
    }

    fn task(&self, out: &mut String, task: usize, left: f64, right: f64, middle: f64) {
        let state = self.nodes.get(task).and_then(|node| node.state);
        let (fill, stroke) = colours(state.map(|state| state.word));
        let weight = if self.is_critical(task) { 2.4 } else { 1.2 };
        let top = middle - BOX_HEIGHT / 2.0;
        let mut tip = self.name(task).to_owned();
        if let Some(state) = state {
            tip = format!("{tip}: {}", state.word);
        }
        let _ = writeln!(
            out,
            "<g><title>{}</title><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" \
             height=\"{BOX_HEIGHT}\" rx=\"5\" fill=\"{fill}\" stroke=\"{stroke}\" \
             stroke-width=\"{weight}\"/><text x=\"{:.1}\" y=\"{:.1}\" fill=\"#1f2328\">{}</text></g>",
            escaped(&tip),
            right - left,
            left + 9.0,
            middle + 4.0,
            escaped(&self.label(task)),
        );
    }

    /// Gives the curve of an edge: level where it leaves a task, passes a layer and arrives.
    fn curve(&self, path: &[usize], place: &[(f64, f64)], middle: impl Fn(usize) -> f64) -> String {
        let side = |dot: usize| place.get(dot).copied().unwrap_or_default();
        let mut line = String::new();
        let mut at: Option<(f64, f64)> = None;
        for (step, &dot) in path.iter().enumerate() {
            let (left, right) = side(dot);
            let down = middle(dot);
            match at {
                None => {
                    let _ = write!(line, "M{right:.1} {down:.1}");
                }
                Some((x, y)) => {
                    let turn = f64::midpoint(x, left);
                    let _ = write!(
                        line,
                        " C{turn:.1} {y:.1} {turn:.1} {down:.1} {left:.1} {down:.1}"
                    );
                    if step + 1 < path.len() {
                        let _ = write!(line, " H{right:.1}");
                    }
                }
            }
            at = Some((right, down));
        }
        line
    }
}

/// Colours of a box and its border: GitHub's, which keep their contrast for the colour-blind. The
/// sign before the name says the same.
fn colours(state: Option<&str>) -> (&'static str, &'static str) {
    match state {
        None => ("#f6f8fa", "#57606a"),
        Some("succeeded") => ("#dafbe1", "#1a7f37"),
        Some("failed" | "aborted") => ("#ffebe9", "#cf222e"),
        Some("leased" | "running" | "starting" | "verifying" | "to verify") => {
            ("#ddf4ff", "#0969da")
        }
        Some("cancelled" | "skipped" | "parked") => ("#fff8c5", "#9a6700"),
        Some(_) => ("#ffffff", "#8c959f"),
    }
}

/// Writes foreign text so that it is text in XML, whatever it holds.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // XML has no way to write these.
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                safe.push(char::REPLACEMENT_CHARACTER);
            }
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_text_in_a_picture() {
        assert_eq!(
            escaped("<b onload=\"x\">&'\u{1b}\0</b>"),
            "&lt;b onload=&quot;x&quot;&gt;&amp;&#39;\u{fffd}\u{fffd}&lt;/b&gt;"
        );
    }
}
