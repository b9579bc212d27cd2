//! What a program drew in a terminal, as a picture that any browser shows.

use std::fmt::Write as _;

/// Marks around what `run` draws anew: a terminal shows all of it at once.
const DRAWN_FROM: &str = "\u{1b}[?2026h";
const DRAWN_TO: &str = "\u{1b}[?2026l";
/// Begins a row that continues the line above it.
const GOES_ON: &str = "<text class=\"on\"";
const CELL_WIDTH: f64 = 8.4;
const CELL_HEIGHT: f64 = 19.0;
const MARGIN: f64 = 14.0;

/// A line of a terminal: pieces of text, each with its style.
#[derive(Clone, Debug)]
pub struct Line(Vec<(&'static str, String)>);

impl Line {
    /// A line without colours.
    #[must_use]
    pub fn plain(text: &str) -> Self {
        Self(vec![("", text.to_owned())])
    }

    /// Reads text with its colours; other commands to the terminal are left out.
    fn read(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut style = "";
        for (index, piece) in text.split("\u{1b}[").enumerate() {
            let mut shown = piece;
            if index > 0 {
                let end = piece.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(0);
                let (code, rest) = piece.split_at(end);
                if rest.starts_with('m') {
                    style = style_of(code);
                }
                shown = rest.get(1..).unwrap_or_default();
            }
            if !shown.is_empty() {
                pieces.push((style, shown.to_owned()));
            }
        }
        Self(pieces)
    }
}

fn style_of(code: &str) -> &'static str {
    match code.rsplit(';').next().unwrap_or_default() {
        "1" => "bold",
        "2" => "dim",
        "31" => "red",
        "32" => "green",
        "33" => "yellow",
        "36" => "cyan",
        _ => "",
    }
}

/// Takes two things from the record of a run in a terminal: the moment at which most tasks ran, and
/// what stood there at its end. `None` if it drew nothing.
#[must_use]
pub fn moments(record: &str) -> Option<(Vec<Line>, Vec<Line>)> {
    let lines = |text: &str| -> Vec<Line> {
        let lines = text
            .lines()
            .map(|line| Line::read(line.trim_end_matches('\r')));
        lines.collect()
    };
    let drawn = record.split(DRAWN_FROM).skip(1);
    let drawn: Vec<&str> = drawn
        .filter_map(|text| text.split(DRAWN_TO).next())
        .collect();
    let seen = |text: &str, word: &str| text.matches(word).count();
    let busy = |text: &&&str| (seen(text, "mrunning"), seen(text, "msucceeded"));
    let moment = drawn.iter().max_by_key(busy)?;
    let (_, end) = record.rsplit_once(DRAWN_TO)?;
    let (end, _) = end.split_once("\nScript done").unwrap_or((end, ""));
    Some((lines(moment.trim_end()), lines(end.trim_end())))
}

/// Where text of one style begins in its row, the style, and the text.
type Part<'a> = (usize, &'a str, String);

/// Draws lines as SVG; those that are longer than `columns` go on below, as in a terminal.
#[must_use]
pub fn svg(lines: &[Line], columns: usize) -> String {
    let mut rows: Vec<(&str, Vec<Part<'_>>)> = Vec::new();
    for Line(pieces) in lines {
        let mut row = Vec::new();
        let mut begin = "<text";
        let mut column = 0;
        for (style, text) in pieces {
            let mut part = String::new();
            let mut from = column;
            for character in text.chars() {
                if column == columns {
                    row.push((from, *style, std::mem::take(&mut part)));
                    rows.push((begin, std::mem::take(&mut row)));
                    begin = GOES_ON;
                    (column, from) = (0, 0);
                }
                part.push(character);
                column += 1;
            }
            row.push((from, *style, part));
        }
        rows.push((begin, row));
    }
    let width = CELL_WIDTH * f64::from(u32::try_from(columns).unwrap_or(0)) + 2.0 * MARGIN;
    let mut y = MARGIN;
    let mut text = String::new();
    for (begin, row) in rows {
        y += CELL_HEIGHT;
        let _ = write!(text, "{begin} y=\"{:.0}\">", y - 4.0);
        for (column, style, part) in row.into_iter().filter(|(_, _, part)| !part.is_empty()) {
            let x = MARGIN + CELL_WIDTH * f64::from(u32::try_from(column).unwrap_or(0));
            let part = part.replace('&', "&amp;").replace('<', "&lt;");
            let _ = write!(text, "<tspan x=\"{x:.1}\" class=\"{style}\">{part}</tspan>");
        }
        text += "</text>\n";
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\">\n<style>text {{ font: 14px ui-monospace, Menlo, Consolas, monospace; \
         fill: #d8dee9; white-space: pre }} .bold {{ font-weight: bold; fill: #fff }} .dim {{ fill: \
         #7b8494 }} .red {{ fill: #ff7b72 }} .green {{ fill: #7ee787 }} .yellow {{ fill: #e3b341 }} \
         .cyan {{ fill: #76e3ea }}</style>\n<rect width=\"100%\" height=\"100%\" rx=\"8\" \
         fill=\"#161b22\"/>\n{text}</svg>\n",
        height = y + MARGIN,
    )
}

/// Gives the lines of text of a picture that [`svg`] has drawn, each as it was before it was broken.
#[must_use]
pub fn texts(svg: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for row in svg.lines().filter(|row| row.starts_with("<text")) {
        let pieces = row.split('<').filter_map(|piece| piece.split_once('>'));
        let text: String = pieces.map(|(_, text)| text).collect();
        let text = text.replace("&lt;", "<").replace("&amp;", "&");
        match lines.last_mut() {
            Some(above) if row.starts_with(GOES_ON) => above.push_str(&text),
            _ => lines.push(text),
        }
    }
    lines
}

/// Takes out of a line what differs from run to run: times, commits, and the run's own suffix.
#[must_use]
pub fn without_figures(line: &str) -> String {
    let word = |word: &str| -> Option<String> {
        let hex = word.len() >= 7 && word.chars().all(|c| c.is_ascii_hexdigit());
        let bare = word.trim_end_matches(':').trim_end_matches('s');
        let time = bare.parse::<f64>().is_ok() && word.contains('.');
        (!hex && !time).then(|| match word.find("first-") {
            Some(at) => format!("{}first-…", &word[..at]),
            None => word.to_owned(),
        })
    };
    let words: Vec<_> = line.split_whitespace().filter_map(word).collect();
    words.join(" ")
}
