//! Worlds that failed once.

use crate::runner::{self, Story};
use crate::{Ended, Scenario, Unwatched, Violation};

/// The list in the repository.
const LIST: &str = include_str!("../regressions.txt");

/// A world that failed once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Regression {
    /// Line of the list, from 1.
    pub line: usize,
    /// The rule it broke.
    pub rule: String,
    /// What was wrong with Muster.
    pub defect: String,
    pub scenario: Scenario,
}

/// A line of the list that says nothing.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the list of regressions: {reason}")]
pub struct Error {
    pub line: usize,
    pub reason: String,
}

/// Gives the list.
///
/// # Errors
/// A line has another form than the head of the list says.
pub fn all() -> Result<Vec<Regression>, Error> {
    parse(LIST)
}

fn parse(list: &str) -> Result<Vec<Regression>, Error> {
    let lines = (1..).zip(list.lines());
    let lines = lines.filter(|(_, text)| !text.trim().is_empty() && !text.starts_with('#'));
    lines.map(|(line, text)| one(line, text)).collect()
}

fn one(line: usize, text: &str) -> Result<Regression, Error> {
    let wrong = |reason: &str| Error {
        line,
        reason: reason.to_owned(),
    };
    let mut fields = text.splitn(3, '|').map(str::trim);
    let (Some(rule), Some(defect), Some(world)) = (fields.next(), fields.next(), fields.next())
    else {
        return Err(wrong(
            "it needs a rule, what was wrong, and a world, with `|` between",
        ));
    };
    if rule.is_empty() || defect.is_empty() {
        return Err(wrong("the rule and what was wrong must be said"));
    }
    let scenario = if let Some(seed) = world.strip_prefix("seed ") {
        let seed = seed.trim().parse();
        Scenario::generate(seed.map_err(|_| wrong("the seed is no number"))?)
    } else {
        serde_json::from_str(world).map_err(|error| {
            wrong(&format!(
                "it is neither `seed N` nor a scenario of this version ({error})"
            ))
        })?
    };
    Ok(Regression {
        line,
        rule: rule.to_owned(),
        defect: defect.to_owned(),
        scenario,
    })
}

impl Regression {
    /// Lets the world happen again.
    ///
    /// # Errors
    /// It fails, again or in another way.
    pub fn run(&self) -> Result<Ended, Violation> {
        runner::scenario(&self.scenario, &mut Unwatched)
    }

    /// Lets the world happen again and tells it.
    #[must_use]
    pub fn story(&self) -> Story {
        let mut story = Story::default();
        // Whoever asks for the story has seen how it ends.
        drop(runner::scenario(&self.scenario, &mut story));
        story
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_once_does_not_fail_again() {
        for regression in all().unwrap() {
            let Regression { line, defect, .. } = &regression;
            if let Err(violation) = regression.run() {
                panic!("line {line}, {defect}: {violation}\n{}", regression.story());
            }
        }
    }

    #[test]
    fn a_line_names_a_seed_or_holds_a_scenario() {
        let scenario = Scenario::generate(3);
        let json = serde_json::to_string(&scenario).unwrap();
        let list = format!("# head\n\none winner | it was won twice | seed 3\na | b | {json}\n");
        let parsed = parse(&list).unwrap();
        assert_eq!(parsed.len(), 2);
        assert_eq!((parsed[0].line, &*parsed[0].rule), (3, "one winner"));
        assert!(
            parsed
                .iter()
                .all(|regression| regression.scenario == scenario)
        );
    }

    #[test]
    fn a_line_that_says_nothing_is_named() {
        for (line, part) in [
            ("a | b", "`|` between"),
            ("a | b | seed x", "no number"),
            ("a |  | seed 1", "must be said"),
            ("a | b | {\"seed\":1}", "neither"),
        ] {
            let error = parse(&format!("# x\n{line}")).unwrap_err();
            assert_eq!(error.line, 2);
            assert!(error.reason.contains(part), "{error}");
        }
    }
}
