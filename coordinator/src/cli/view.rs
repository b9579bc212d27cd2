//! The live view of a run: lines of text from what is known, and a painter that redraws them in
//! place.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use console::Term;
use jiff::Timestamp;
use muster_proto::v1;

use super::show;
use super::table::Table;
use crate::output::{Output, Paint, harmless};

/// Below this the window has no room for a table.
const ROWS_MIN: usize = 3;
/// Width of a window that does not tell.
const WIDTH_DEFAULT: usize = 80;
const HEIGHT_DEFAULT: usize = 24;
const NAME_WIDTH_MAX: usize = 32;
const WORKER_WIDTH_MAX: usize = 24;

/// What is known of a run at a moment.
#[derive(Debug)]
pub(crate) struct Picture<'a> {
    pub(crate) run: &'a v1::Run,
    /// The last line that each task's agent or verify has printed.
    pub(crate) said: &'a BTreeMap<String, String>,
    pub(crate) now: Timestamp,
    /// What the person should know before all else.
    pub(crate) notice: Option<&'a str>,
}

impl Picture<'_> {
    /// Writes the view into a window: at most `height` lines of at most `width` columns.
    pub(crate) fn lines(&self, width: usize, height: usize, paint: Paint) -> Vec<String> {
        let mut lines = vec![self.headline(paint), self.counts(paint)];
        if let Some(notice) = self.notice {
            lines.extend(notice.lines().map(|line| paint.yellow(line)));
        }
        // A blank line, the heading, and perhaps a line for what is left out.
        let room = height.saturating_sub(lines.len() + 3);
        if room >= ROWS_MIN {
            lines.push(String::new());
            lines.extend(self.table(room, width, paint));
        }
        lines
            .into_iter()
            .take(height)
            .map(|line| console::truncate_str(&line, width, "…").into_owned())
            .collect()
    }

    fn headline(&self, paint: Paint) -> String {
        let run = self.run;
        let submitted = show::time(run.submitted_at.as_ref()).unwrap_or(self.now);
        let until = show::time(run.ended_at.as_ref()).unwrap_or(self.now);
        format!(
            "{}  {}  {}",
            paint.bold(&harmless(&run.run)),
            show::state(paint, &run.state),
            show::duration(show::between(submitted, until))
        )
    }

    fn counts(&self, paint: Paint) -> String {
        let run = self.run;
        let done = run
            .tasks
            .iter()
            .filter(|task| show::is_final(&task.state))
            .count();
        let mut parts = vec![format!("{done} of {} done", run.tasks.len())];
        for (state, count) in show::counts(&run.tasks) {
            if state != "succeeded" {
                let name = if state == "leased" { "running" } else { state };
                parts.push(format!("{count} {}", show::state(paint, name)));
            }
        }
        let path = run.critical_path.len();
        if path > 1 && !show::has_ended(run) {
            let left = show::longest_chain_left(&run.tasks);
            parts.push(format!("longest chain: {left} of {path} left"));
        }
        parts.join(" · ")
    }

    fn table(&self, room: usize, width: usize, paint: Paint) -> Vec<String> {
        let tasks = &self.run.tasks;
        let shown = if tasks.len() <= room {
            (0..tasks.len()).collect()
        } else {
            self.choose(room)
        };
        let mut table = Table::new(
            &["TASK", "STATE", "TRY", "TIME", "WORKER", ""].map(|heading| paint.dim(heading)),
        );
        for task in shown.iter().filter_map(|place| tasks.get(*place)) {
            table.row(self.row(task, paint));
        }
        let mut lines = table.lines(Some(width));
        if table.len() < tasks.len() {
            let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
            for (place, task) in tasks.iter().enumerate() {
                if shown.binary_search(&place).is_err() {
                    *left_out.entry(&task.state).or_default() += 1;
                }
            }
            let left_out: Vec<String> = left_out
                .into_iter()
                .map(|(state, count)| format!("{count} {state}"))
                .collect();
            lines.push(paint.dim(&format!("… and {}", left_out.join(", "))));
        }
        lines
    }

    /// Chooses the tasks that are worth the room: what runs, what failed, what comes next, and of
    /// what is done the newest. Gives their places in the order of the plan.
    fn choose(&self, room: usize) -> Vec<usize> {
        let rank = |task: &v1::Task| match task.state.as_str() {
            "leased" | "verifying" | "parked" => 0,
            "failed" | "aborted" => 1,
            "ready" | "basing" => 2,
            "succeeded" => 3,
            "cancelled" => 4,
            "blocked" => 5,
            _ => 6,
        };
        let mut places: Vec<usize> = (0..self.run.tasks.len()).collect();
        places.sort_by_key(|place| {
            self.run.tasks.get(*place).map(|task| {
                let ended = task
                    .attempts
                    .last()
                    .and_then(|attempt| show::time(attempt.ended_at.as_ref()));
                (rank(task), std::cmp::Reverse(ended), *place)
            })
        });
        places.truncate(room);
        places.sort_unstable();
        places
    }

    fn row(&self, task: &v1::Task, paint: Paint) -> Vec<String> {
        let last = task.attempts.last();
        let works = matches!(task.state.as_str(), "leased" | "verifying");
        let state = show::state_word(task);
        let time = last.and_then(|attempt| {
            let granted = show::time(attempt.granted_at.as_ref())?;
            let until = show::time(attempt.ended_at.as_ref()).filter(|_| !works);
            Some(show::duration(show::between(
                granted,
                until.unwrap_or(self.now),
            )))
        });
        let said = match task.state.as_str() {
            "failed" => task
                .failure
                .as_ref()
                .map(|failure| crate::output::one_line(&failure.message)),
            "skipped" | "cancelled" | "aborted" => Some(crate::output::one_line(&task.reason)),
            _ if !task.asks.is_empty() => Some(crate::output::one_line(&task.asks)),
            _ if works => self.said.get(&task.name).cloned(),
            // It is to be tried again.
            "ready" => last
                .and_then(|attempt| attempt.failure.as_ref())
                .map(|failure| crate::output::one_line(&failure.message)),
            _ => None,
        };
        let worker = last
            .filter(|_| works)
            .map(|attempt| attempt.worker.as_str());
        vec![
            cut(&task.name, NAME_WIDTH_MAX),
            show::state(paint, state),
            last.map(|attempt| attempt.number.to_string())
                .unwrap_or_default(),
            time.unwrap_or_default(),
            cut(worker.unwrap_or_default(), WORKER_WIDTH_MAX),
            paint.dim(&said.unwrap_or_default()),
        ]
    }
}

fn cut(text: &str, width: usize) -> String {
    console::truncate_str(&harmless(text), width, "…").into_owned()
}

/// Redraws lines in place on standard error.
#[derive(Debug)]
pub(crate) struct Painter {
    output: Output,
    term: Term,
    drawn: usize,
}

impl Painter {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            term: Term::stderr(),
            drawn: 0,
        }
    }

    /// Gives the columns and lines that may be used.
    pub(crate) fn room(&self) -> (usize, usize) {
        let (height, width) = self
            .term
            .size_checked()
            .map_or((HEIGHT_DEFAULT, WIDTH_DEFAULT), |(height, width)| {
                (usize::from(height), usize::from(width))
            });
        // A full last column wraps on some terminals, a full last line scrolls on all.
        (
            width.saturating_sub(1).max(1),
            height.saturating_sub(1).max(1),
        )
    }

    /// Replaces what was drawn before, in one write and, where the terminal can, in one frame.
    pub(crate) fn draw(&mut self, lines: &[String]) {
        self.output.talk(&frame(self.drawn, lines));
        self.drawn = lines.len();
    }

    /// Takes away what was drawn.
    pub(crate) fn clear(&mut self) {
        if self.drawn > 0 {
            self.draw(&[]);
        }
    }
}

fn frame(drawn: usize, lines: &[String]) -> String {
    let mut frame = String::from("\x1b[?2026h\r");
    if drawn > 0 {
        let _ = write!(frame, "\x1b[{drawn}A");
    }
    for line in lines {
        let _ = write!(frame, "{line}\x1b[K\r\n");
    }
    frame.push_str("\x1b[J\x1b[?2026l");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    fn drawn(run: &v1::Run, width: usize, height: usize) -> String {
        let said = BTreeMap::from([
            (
                "api".to_owned(),
                "editing src/api.rs, then running the tests again".to_owned(),
            ),
            ("docs".to_owned(), "checking links".to_owned()),
        ]);
        let picture = Picture {
            run,
            said: &said,
            now: canned::at(20),
            notice: None,
        };
        picture.lines(width, height, Paint::new(false)).join("\n")
    }

    fn many() -> v1::Run {
        let mut run = canned::live();
        run.tasks = (0..300)
            .map(|number| {
                let name = format!("part-{number:03}");
                match number {
                    0..200 => v1::Task {
                        attempts: vec![canned::attempt(1, "succeeded", number, Some(number + 1))],
                        ..canned::task(&name, "succeeded")
                    },
                    200..203 => v1::Task {
                        attempts: vec![canned::attempt(1, "running", 10, None)],
                        ..canned::task(&name, "leased")
                    },
                    203 => v1::Task {
                        attempts: vec![canned::attempt(1, "failed", 10, Some(11))],
                        ..canned::task(&name, "failed")
                    },
                    _ => canned::task(&name, "blocked"),
                }
            })
            .collect();
        run
    }

    #[test]
    fn a_live_run_shows_each_task_with_its_attempt_and_its_last_line() {
        insta::assert_snapshot!(drawn(&canned::live(), 100, 24));
    }

    #[test]
    fn of_hundreds_of_tasks_those_that_matter_are_shown() {
        insta::assert_snapshot!(drawn(&many(), 80, 14));
    }

    #[test]
    fn the_picture_fits_any_window() {
        let run = many();
        for (width, height) in [(1, 1), (10, 2), (20, 5), (33, 8), (200, 100)] {
            let text = drawn(&run, width, height);
            assert!(text.lines().count() <= height, "{width}x{height}: {text}");
            for line in text.lines() {
                assert!(
                    console::measure_text_width(line) <= width,
                    "{width}x{height}: {line}"
                );
            }
        }
    }

    #[test]
    fn a_frame_goes_back_over_the_one_before_and_leaves_nothing_of_it() {
        let frame = frame(2, &["a".to_owned()]);
        assert_eq!(frame, "\x1b[?2026h\r\x1b[2Aa\x1b[K\r\n\x1b[J\x1b[?2026l");
    }
}
