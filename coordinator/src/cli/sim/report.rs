//! How the worlds of a sweep are told to people and programs.

use std::fmt::Write as _;
use std::time::Duration;

use coordinator_sim::coverage::{Row, Table};
use coordinator_sim::runner::{Failing, Story, Tally};
use coordinator_sim::{Scenario, Violation};
use serde_json::{Map, Value, json};

use crate::cli::show::counted;
use crate::output::Paint;

/// Lines of a story that are shown under a violation; the file of the scenario tells all of them.
const LINES_SHOWN: usize = 120;

/// The shortest world that was found to break the rule.
pub(super) struct Shortest {
    pub(super) scenario: Scenario,
    pub(super) violation: Violation,
    pub(super) story: Story,
    /// Parts of the world that failed.
    pub(super) of: usize,
    pub(super) tries: u32,
    pub(super) smallest: bool,
}

/// A world that was not as it must be.
pub(super) struct Broken {
    pub(super) failing: Failing,
    /// Another seed has broken the same rule and is told instead; or it is told elsewhere.
    pub(super) shortest: Option<Shortest>,
    /// What repeats it.
    pub(super) again: String,
}

impl Broken {
    pub(super) fn text(&self, paint: Paint) -> String {
        let Failing {
            seed, rule, what, ..
        } = &self.failing;
        let mut text = String::new();
        let label = paint.red("violation:");
        let _ = writeln!(text, "{label} {}", paint.bold(rule));
        let at = seconds(self.failing.at_ms);
        let _ = writeln!(text, "  seed {seed} at {at}: {what}");
        if let Some(shortest) = &self.shortest {
            let _ = writeln!(
                text,
                "  shortest story found: {} of {} parts, after {} worlds{}",
                shortest.scenario.parts(),
                shortest.of,
                shortest.tries,
                if shortest.smallest {
                    ""
                } else {
                    " (not all were tried)"
                }
            );
            let scenario = serde_json::to_string(&shortest.scenario).unwrap_or_default();
            let _ = writeln!(text, "  its scenario, for `--scenario FILE`:\n{scenario}");
            let lines = shortest.story.lines();
            let left_out = lines.len().saturating_sub(LINES_SHOWN);
            if left_out > 0 {
                let _ = writeln!(text, "  … {left_out} lines before");
            }
            for line in lines.iter().skip(left_out) {
                let _ = writeln!(text, "  {line}");
            }
            let Violation { at_ms, what, .. } = &shortest.violation;
            let _ = writeln!(
                text,
                "  {} at {}: {what}",
                paint.red("then"),
                seconds(*at_ms)
            );
        }
        let _ = write!(text, "  again: {}", self.again);
        text
    }

    pub(super) fn json(&self) -> Value {
        let shortest = self.shortest.as_ref().map(|shortest| {
            json!({
                "parts": shortest.scenario.parts(),
                "of": shortest.of,
                "tries": shortest.tries,
                "smallest": shortest.smallest,
                "at_ms": shortest.violation.at_ms,
                "what": shortest.violation.what,
                "scenario": shortest.scenario,
                "story": shortest.story.lines(),
            })
        });
        json!({
            "seed": self.failing.seed,
            "rule": self.failing.rule,
            "at_ms": self.failing.at_ms,
            "what": self.failing.what,
            "again": self.again,
            "shortest": shortest,
        })
    }
}

/// What a sweep has cost and seen.
pub(super) struct Figures {
    pub(super) tally: Tally,
    pub(super) took: Duration,
    pub(super) threads: usize,
}

impl Figures {
    pub(super) fn per_second(&self) -> f64 {
        let seconds = self.took.as_secs_f64();
        if seconds > 0.0 {
            self.tally.worlds as f64 / seconds
        } else {
            0.0
        }
    }

    pub(super) fn text(&self) -> String {
        let Tally {
            worlds,
            steps,
            simulated_ms,
            digest,
            ..
        } = &self.tally;
        let counts = self.tally.counts.iter();
        let counts: Vec<String> = counts
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        if *worlds == 0 {
            return "all of these seeds were run before".to_owned();
        }
        format!(
            "{worlds} worlds in {:.1} s: {:.0} worlds/s, {}\n\
             {steps} steps in {} of simulated time\n\
             {}\n\
             digest of all traces {digest:016x}",
            self.took.as_secs_f64(),
            self.per_second(),
            counted(self.threads, "thread"),
            span(*simulated_ms),
            counts.join(", "),
        )
    }

    pub(super) fn json(&self, into: &mut Map<String, Value>) {
        let Tally {
            worlds,
            failed,
            steps,
            simulated_ms,
            digest,
            counts,
        } = &self.tally;
        let per_second = (self.per_second() * 10.0).round() / 10.0;
        let figures = [
            ("worlds", json!(worlds)),
            ("failed", json!(failed)),
            ("seconds", json!(self.took.as_secs_f64())),
            ("worlds_per_second", json!(per_second)),
            ("threads", json!(self.threads)),
            ("steps", json!(steps)),
            ("simulated_ms", json!(simulated_ms)),
            ("digest", json!(format!("{digest:016x}"))),
            ("counts", json!(counts)),
        ];
        into.extend(figures.map(|(name, value)| (name.to_owned(), value)));
    }
}

/// Tells which commands have met which states.
pub(super) fn coverage_text(table: &Table, paint: Paint) -> String {
    let mut text = String::new();
    let mut last = None;
    for row in &table.rows {
        if last.replace(row.came) != Some(row.came) {
            let _ = writeln!(text, "{}", paint.bold(row.came.name()));
        }
        let count = match (row.count, row.reason) {
            (0, Some(reason)) => paint.dim(&format!("{:>10}  ({reason})", "-")),
            (0, None) => paint.red(&format!("{:>10}  never", 0)),
            (count, Some(reason)) => paint.red(&format!("{count:>10}  although: {reason}")),
            (count, None) => format!("{count:>10}"),
        };
        let _ = writeln!(text, "  {:<30}{count}", row.met.name());
    }
    let excused = table.rows.iter().filter(|row| row.reason.is_some()).count();
    let _ = write!(
        text,
        "{} of {} pairs reached, {excused} have a reason",
        table.reached(),
        table.rows.len()
    );
    for (what, pairs) in [
        ("never reached, without a reason", names(table.unreached())),
        (
            "reached although a reason says that they cannot be",
            names(table.refuted()),
        ),
        (
            "reached although the table does not have them",
            unknown(table),
        ),
    ] {
        if !pairs.is_empty() {
            let _ = write!(text, "\n{} {what}:", paint.red(&pairs.len().to_string()));
            for (met, came) in pairs {
                let _ = write!(text, "\n  {met} × {came}");
            }
        }
    }
    text
}

pub(super) fn coverage_json(table: &Table) -> Value {
    let mut counts: Map<String, Value> = Map::new();
    for row in table.rows.iter().filter(|row| row.count > 0) {
        let of_command = counts.entry(row.came.name()).or_insert_with(|| json!({}));
        if let Some(states) = of_command.as_object_mut() {
            states.insert(row.met.name().to_owned(), json!(row.count));
        }
    }
    json!({
        "pairs": table.rows.len(),
        "reached": table.reached(),
        "excused": table.rows.iter().filter(|row| row.reason.is_some()).count(),
        "unreached": names(table.unreached()),
        "refuted": names(table.refuted()),
        "unknown": unknown(table),
        "counts": counts,
    })
}

fn names<'r>(rows: impl Iterator<Item = &'r Row>) -> Vec<(&'static str, &'static str)> {
    rows.map(|row| (row.met.name(), row.came.name())).collect()
}

fn unknown(table: &Table) -> Vec<(&'static str, &'static str)> {
    table.unknown.clone()
}

/// Writes a moment of simulated time.
pub(super) fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1_000, ms % 1_000)
}

/// Writes how long something took in simulated time.
fn span(ms: u64) -> String {
    let hours = ms / 3_600_000;
    if hours >= 48 {
        format!("{} days", hours / 24)
    } else if hours >= 2 {
        format!("{hours} hours")
    } else {
        format!("{} s", ms / 1_000)
    }
}

#[cfg(test)]
mod tests {
    use coordinator_sim::Watch as _;
    use coordinator_sim::coverage::Reached;

    use super::*;

    fn broken(shortest: bool) -> Broken {
        let mut story = Story::default();
        story.line(0, format_args!("the coordinator starts"));
        story.line(61_250, format_args!("worker 1 is killed"));
        let scenario = Scenario::generate(7).without(0..usize::MAX);
        Broken {
            failing: Failing {
                seed: 7,
                at_ms: 90_000,
                rule: "one winner".to_owned(),
                what: "task 3 was won twice".to_owned(),
            },
            shortest: shortest.then(|| Shortest {
                scenario,
                violation: Violation {
                    at_ms: 61_250,
                    rule: "one winner",
                    what: "task 0 was won twice".to_owned(),
                },
                story,
                of: 41,
                tries: 230,
                smallest: false,
            }),
            again: "coordinator sim --seed 7 --story".to_owned(),
        }
    }

    #[test]
    fn a_violation_is_told_with_its_shortest_story_and_what_repeats_it() {
        let text = broken(true).text(Paint::new(false));
        let scenario = text.lines().find(|line| line.starts_with('{')).unwrap();
        assert!(serde_json::from_str::<Scenario>(scenario).is_ok());
        insta::assert_snapshot!(text.replace(scenario, "{…}"));
        let json = broken(true).json();
        assert_eq!(json["shortest"]["story"].as_array().unwrap().len(), 2);
        assert!(serde_json::from_value::<Scenario>(json["shortest"]["scenario"].clone()).is_ok());
        assert_eq!(broken(false).json()["shortest"], Value::Null);
    }

    #[test]
    fn a_table_lists_what_was_never_reached_and_what_it_does_not_know() {
        let mut reached = Reached::default();
        reached.met("run not live", "submit");
        reached.met("run not live", "eat");
        let text = coverage_text(&reached.table(), Paint::new(false));
        assert!(
            text.contains("  run not live                           1\n"),
            "{text}"
        );
        assert!(text.contains("\n  run not live × eat"), "{text}");
        assert!(text.contains("\n  worker not known × drain\n"), "{text}");
    }

    #[test]
    fn simulated_time_is_written_in_what_people_count_in() {
        assert_eq!(span(5_999), "5 s");
        assert_eq!(span(7_200_000), "2 hours");
        assert_eq!(span(30 * 86_400_000), "30 days");
    }
}
