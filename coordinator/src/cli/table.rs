//! Plain tables of text.

use console::{Alignment, measure_text_width, pad_str};

/// Columns of text under a heading; cells may be coloured.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    columns: usize,
}

impl Table {
    pub(crate) fn new(heading: &[String]) -> Self {
        Self {
            columns: heading.len(),
            rows: vec![heading.to_vec()],
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len() - 1
    }

    /// Writes the rows, two spaces between columns, cut at `width` if there is one.
    pub(crate) fn lines(&self, width: Option<usize>) -> Vec<String> {
        let widths: Vec<usize> = (0..self.columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| measure_text_width(cell))
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        self.rows
            .iter()
            .map(|row| {
                let cells: Vec<String> = row
                    .iter()
                    .zip(&widths)
                    .map(|(cell, width)| pad_str(cell, *width, Alignment::Left, None).into_owned())
                    .collect();
                let line = cells.join("  ");
                let line = line.trim_end();
                match width {
                    Some(width) => console::truncate_str(line, width, "…").into_owned(),
                    None => line.to_owned(),
                }
            })
            .collect()
    }

    pub(crate) fn text(&self) -> String {
        self.lines(None).join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Paint;

    #[test]
    fn columns_are_as_wide_as_what_is_seen() {
        let paint = Paint::new(true);
        let mut table = Table::new(&["A".to_owned(), "B".to_owned()]);
        table.row(vec![paint.red("wide"), "1".to_owned()]);
        table.row(vec!["日本".to_owned(), "2".to_owned()]);
        let seen = console::strip_ansi_codes(&table.text()).into_owned();
        assert_eq!(seen, "A     B\nwide  1\n日本  2");
        let cut = table.lines(Some(5));
        assert!(
            cut.iter().all(|line| measure_text_width(line) <= 5),
            "{cut:?}"
        );
    }
}
