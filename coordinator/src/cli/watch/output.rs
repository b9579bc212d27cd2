//! What agents have said lately: whole lines, harmless for a terminal, and never more than a bound.

use std::collections::{BTreeMap, VecDeque};

use muster_proto::v1;
use muster_proto::v1::agent_event::Kind;

use crate::cli::activity;
use crate::cli::watch::lost;
use crate::output::one_line;

/// Lines kept of one task: more than the tallest window shows.
const LINES_PER_TASK: usize = 400;
/// Lines kept of all tasks; those that were silent for longest are forgotten first, and read again
/// when someone looks at them.
const LINES: usize = 40_000;
/// Characters of a line that are kept: wider than any window.
const LINE_CHARS: usize = 600;
/// Bytes of a line that does not end; then it is taken for one.
const LINE_BYTES: usize = 8 * 1024;

/// The last lines of each task that has spoken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    tasks: BTreeMap<String, Lines>,
    lines: usize,
    /// Grows with each word, so that the longest silence is known.
    moment: u64,
}

#[derive(Clone, Debug, Default)]
struct Lines {
    whole: VecDeque<String>,
    /// The unfinished line of each stream.
    begun: [Vec<u8>; 2],
    /// What a model agent does.
    doing: activity::Lines,
    moment: u64,
    /// Something came before these lines that is not kept.
    cut: bool,
}

impl Said {
    /// Takes what an agent, or a verify, let happen.
    pub(crate) fn take(&mut self, task: &str, event: &v1::AgentEvent) {
        self.moment += 1;
        let lines = self.tasks.entry(task.to_owned()).or_default();
        lines.moment = self.moment;
        let before = lines.whole.len();
        lines.take(event);
        let after = lines.whole.len();
        self.lines = (self.lines + after).saturating_sub(before);
        if self.lines > LINES {
            self.forget_the_silent();
        }
    }

    /// Replaces what is known of a task with what was read anew.
    pub(crate) fn replace<'e>(
        &mut self,
        task: &str,
        events: impl IntoIterator<Item = &'e v1::AgentEvent>,
    ) {
        if let Some(old) = self.tasks.remove(task) {
            self.lines = self.lines.saturating_sub(old.whole.len());
        }
        self.tasks.insert(task.to_owned(), Lines::default());
        for event in events {
            self.take(task, event);
        }
    }

    /// Tells whether anything is known of a task.
    pub(crate) fn knows(&self, task: &str) -> bool {
        self.tasks.contains_key(task)
    }

    /// Gives the last line of a task.
    pub(crate) fn last(&self, task: &str) -> Option<String> {
        let lines = self.tasks.get(task)?;
        lines.begun().or_else(|| lines.whole.back().cloned())
    }

    /// Gives the last lines of a task, oldest first.
    pub(crate) fn lines(&self, task: &str) -> Vec<String> {
        let Some(lines) = self.tasks.get(task) else {
            return Vec::new();
        };
        let cut = lines.cut.then(|| "…".to_owned());
        let whole = lines.whole.iter().cloned();
        cut.into_iter().chain(whole).chain(lines.begun()).collect()
    }

    fn forget_the_silent(&mut self) {
        let mut by_silence: Vec<(u64, String)> = self
            .tasks
            .iter()
            .map(|(task, lines)| (lines.moment, task.clone()))
            .collect();
        by_silence.sort_unstable();
        // Many at once, so that it is rarely done; the one that speaks is the last of all.
        for (_, task) in by_silence {
            if self.lines <= LINES / 2 || self.tasks.len() == 1 {
                break;
            }
            if let Some(old) = self.tasks.remove(&task) {
                self.lines = self.lines.saturating_sub(old.whole.len());
            }
        }
    }
}

impl Lines {
    fn take(&mut self, event: &v1::AgentEvent) {
        let goes_on = matches!(
            event.kind,
            Some(Kind::Activity(_) | Kind::Capture(_)) | None
        );
        if !goes_on && let Some((_, line)) = self.doing.end() {
            self.push(line);
        }
        match &event.kind {
            Some(Kind::Output(output)) => {
                let stream = usize::from(output.stream() == v1::Stream::Stderr);
                self.output(stream, &output.data);
            }
            Some(Kind::OutputTruncated(cut)) => self.push(format!("· {}", lost(cut.bytes))),
            Some(Kind::Phase(phase)) => {
                let name = one_line(&phase.name);
                self.push(match one_line(&phase.detail) {
                    detail if detail.is_empty() => format!("· {name}"),
                    detail => format!("· {name}: {detail}"),
                });
            }
            Some(Kind::Note(note)) => self.push(format!("· {}", one_line(note))),
            Some(Kind::Activity(activity)) => {
                for (_, line) in self.doing.take(activity) {
                    self.push(line);
                }
            }
            Some(Kind::Capture(_)) | None => {}
        }
    }

    fn output(&mut self, stream: usize, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let Some(begun) = self.begun.get_mut(stream) else {
                return;
            };
            let room = LINE_BYTES.saturating_sub(begun.len());
            begun.extend(piece.iter().take(room));
            if piece.ends_with(b"\n") || begun.len() >= LINE_BYTES {
                let line = std::mem::take(begun);
                self.push(one_line(&String::from_utf8_lossy(&line)));
            }
        }
    }

    fn push(&mut self, line: String) {
        if line.is_empty() {
            return;
        }
        self.whole.push_back(clipped(line));
        if self.whole.len() > LINES_PER_TASK {
            self.whole.pop_front();
            self.cut = true;
        }
    }

    /// Gives the unfinished line, which may be a prompt or a counter.
    fn begun(&self) -> Option<String> {
        self.begun
            .iter()
            .map(|bytes| clipped(one_line(&String::from_utf8_lossy(bytes))))
            .find(|line| !line.is_empty())
            .or_else(|| self.doing.line().map(|(_, line)| clipped(line)))
    }
}

fn clipped(line: String) -> String {
    match line.char_indices().nth(LINE_CHARS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(data: &[u8]) -> v1::AgentEvent {
        v1::AgentEvent {
            kind: Some(Kind::Output(v1::Output {
                stream: v1::Stream::Stdout.into(),
                data: data.to_vec(),
            })),
            ..v1::AgentEvent::default()
        }
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one_line() {
        let mut said = Said::default();
        said.take("a", &printed(b"com"));
        assert_eq!(said.last("a").as_deref(), Some("com"));
        said.take("a", &printed(b"piling gr\xc3"));
        said.take("a", &printed(b"\xbcn\nnext"));
        assert_eq!(said.lines("a"), ["compiling grün", "next"]);
        assert_eq!(said.last("a").as_deref(), Some("next"));
    }

    fn says(text: &str) -> v1::AgentEvent {
        v1::AgentEvent {
            kind: Some(Kind::Activity(v1::Activity {
                turn: 1,
                kind: Some(v1::activity::Kind::Message(v1::TextDelta {
                    item: "m".to_owned(),
                    text: text.to_owned(),
                })),
            })),
            ..v1::AgentEvent::default()
        }
    }

    #[test]
    fn what_a_model_agent_says_flows_into_lines() {
        let mut said = Said::default();
        for text in ["I wi", "ll look\nat", " it"] {
            said.take("a", &says(text));
        }
        assert_eq!(said.last("a").as_deref(), Some("at it"));
        assert_eq!(said.lines("a"), ["I will look", "at it"]);
        said.take("a", &printed(b"printed\n"));
        said.take("a", &says("on"));
        assert_eq!(said.lines("a"), ["I will look", "at it", "printed", "on"]);
    }

    #[test]
    fn what_programs_print_has_no_power_over_the_terminal() {
        let mut said = Said::default();
        said.take(
            "a",
            &printed(b"\x1b[2J\x1b]0;owned\x07\x1b[31mred\x1b[0m \xff\n"),
        );
        said.take("a", &printed(b"10%\r20%\r100%\n"));
        assert_eq!(said.lines("a"), ["red \u{fffd}", "100%"]);
    }

    #[test]
    fn a_line_without_an_end_takes_bounded_room() {
        let mut said = Said::default();
        for _ in 0..1_000 {
            said.take("a", &printed(&[b'x'; 1024]));
        }
        let lines = said.lines("a");
        assert!(lines.len() <= LINES_PER_TASK + 2, "{}", lines.len());
        assert!(
            lines
                .iter()
                .all(|line| line.chars().count() <= LINE_CHARS + 1)
        );
    }

    #[test]
    fn those_that_were_silent_for_longest_are_forgotten_first() {
        let mut said = Said::default();
        let tasks = LINES / LINES_PER_TASK + 1;
        for task in 0..tasks {
            for _ in 0..LINES_PER_TASK {
                said.take(&format!("task-{task}"), &printed(b"line\n"));
            }
        }
        assert!(!said.knows("task-0"));
        assert!(said.knows(&format!("task-{}", tasks - 1)));
        assert!(said.lines <= LINES);
    }
}
