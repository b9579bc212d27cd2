//! What is wrong with a plan file: every finding with its place and how to repair it.

use std::fmt;

/// Problems of one file that are kept; the rest are counted. More would scroll away the first.
pub const PROBLEMS_MAX: usize = 50;

/// Characters of a foreign text that a message quotes.
const QUOTE_CHARS: usize = 60;

/// A place in a file; both numbers count from 1, columns in characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// One finding.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    pub at: Position,
    pub message: String,
    /// How to repair it, or where else to look; one line each.
    pub hints: Vec<String>,
}

/// All findings of a file, in the order of its lines.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Problems {
    /// Name of the file, for messages.
    pub file: String,
    /// At most [`PROBLEMS_MAX`].
    pub list: Vec<Problem>,
    /// Findings beyond the bound.
    pub omitted: usize,
}

impl fmt::Display for Problem {
    /// Writes `LINE:COLUMN: message` and the hints, each in a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.at;
        write!(f, "{line}:{column}: {}", self.message)?;
        for hint in &self.hints {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl Problems {
    pub(crate) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            list: Vec::new(),
            omitted: 0,
        }
    }

    /// Notes a finding and gives it back for hints; `None` once the bound is reached.
    pub(crate) fn add(&mut self, at: Position, message: impl Into<String>) -> Option<&mut Problem> {
        if self.list.len() >= PROBLEMS_MAX {
            self.omitted += 1;
            return None;
        }
        self.list.push(Problem {
            at,
            message: message.into(),
            hints: Vec::new(),
        });
        self.list.last_mut()
    }

    /// Notes a finding with one hint.
    pub(crate) fn add_with(
        &mut self,
        at: Position,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if let Some(problem) = self.add(at, message) {
            problem.hints.push(hint.into());
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.list.len() + self.omitted
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Orders the findings by place; equal ones are kept once.
    pub(crate) fn settle(&mut self) {
        self.list.sort();
        self.list.dedup();
    }
}

impl fmt::Display for Problems {
    /// Writes `FILE:LINE:COLUMN: message` and the hints of each finding.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{problem}", self.file)?;
        }
        if self.omitted > 0 {
            write!(f, "\n{}: and {} more problems", self.file, self.omitted)?;
        }
        Ok(())
    }
}

/// Quotes a text of the file for a message: control characters escaped, the end cut.
pub(crate) fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTE_CHARS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// Finds the candidate that was most likely meant, if one is near.
pub(crate) fn nearest<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // A word this long is no typing error, and distances cost the product of the lengths.
    if text.len() > 100 {
        return None;
    }
    let lower = text.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, candidate), candidate))
        .filter(|(distance, candidate)| {
            let length = candidate.chars().count();
            *distance <= 1 + length.min(9) / 4 && *distance < length
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
