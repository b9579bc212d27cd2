//! What is shown of a log: output as it was, remarks beside it, and of several tasks each line with
//! the name of its task.

use std::collections::{BTreeMap, VecDeque};

use muster_proto::v1;
use muster_proto::v1::agent_event::Kind;

use crate::cli::activity::{self, Flow, Look, Of, Shown};
use crate::output::{Paint, harmless};

/// Columns of a task's name before its lines.
const NAME_WIDTH_MAX: usize = 24;
/// Characters of a line that has not ended, after which it is shown all the same.
const LINE_CHARS_MAX: usize = 8 * 1024;

/// Characters of one train of thought that are shown unless all of it is wanted.
const REASONING_CHARS: usize = 400;

/// Something to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Output, with its line breaks.
    Data(String),
    /// A remark, on a line of its own.
    Talk(String),
}

/// Turns events into what is printed.
#[derive(Debug)]
pub(super) struct Printer {
    /// Columns of names, if lines have names.
    names: Option<usize>,
    paint: Paint,
    /// Shows all that agents think, however long.
    all_reasoning: bool,
    texts: BTreeMap<String, Text>,
}

/// The output of one task.
#[derive(Debug, Default)]
struct Text {
    /// Bytes that are a character only together with those of the next event.
    incomplete: Vec<u8>,
    /// A line that has not ended; kept back only if lines have names.
    begun: String,
    in_line: bool,
    /// What an agent is saying.
    flow: Option<Flow>,
    /// The train of thought that is shown, and how much of it was.
    reasoned: (String, usize),
}

impl Printer {
    /// Prints the log of one task, character by character as it comes.
    pub(super) fn of_one(paint: Paint) -> Self {
        Self {
            names: None,
            paint,
            all_reasoning: false,
            texts: BTreeMap::new(),
        }
    }

    /// Prints logs of tasks with these names, line by line.
    pub(super) fn of_several<'n>(names: impl IntoIterator<Item = &'n str>, paint: Paint) -> Self {
        let widest = names.into_iter().map(console::measure_text_width).max();
        Self {
            names: Some(widest.unwrap_or(0).min(NAME_WIDTH_MAX)),
            ..Self::of_one(paint)
        }
    }

    /// Shows all that agents think, or only how it begins.
    pub(super) fn with_reasoning(self, all: bool) -> Self {
        Self {
            all_reasoning: all,
            ..self
        }
    }

    pub(super) fn event(&mut self, task: &str, event: &v1::AgentEvent) -> Vec<Piece> {
        match &event.kind {
            Some(Kind::Output(output)) => {
                let mut pieces = self.begin(task, None);
                pieces.extend(self.output(task, &output.data));
                pieces
            }
            Some(Kind::OutputTruncated(cut)) => {
                let lost = crate::cli::watch::lost(cut.bytes);
                self.talk(task, &lost)
            }
            Some(Kind::Phase(phase)) => {
                let text = format!("{} {}", phase.name, phase.detail);
                self.talk(task, text.trim_end())
            }
            Some(Kind::Note(note)) => self.talk(task, note),
            Some(Kind::Activity(activity)) => {
                let shown = activity::shown(activity).into_iter();
                shown.flat_map(|shown| self.shown(task, shown)).collect()
            }
            Some(Kind::Capture(_)) | None => Vec::new(),
        }
    }

    /// Gives what is still kept back, and ends the line.
    pub(super) fn end(&mut self) -> Vec<Piece> {
        let tasks: Vec<String> = self.texts.keys().cloned().collect();
        tasks.iter().flat_map(|task| self.end_line(task)).collect()
    }

    fn shown(&mut self, task: &str, shown: Shown) -> Vec<Piece> {
        match shown {
            Shown::Line(look, text) => {
                let mut pieces = self.end_line(task);
                let text = look.paint(self.paint, &text);
                pieces.push(match self.names {
                    Some(_) => self.line(task, &text),
                    None => Piece::Data(format!("{text}\n")),
                });
                pieces
            }
            Shown::Flow(flow, text) => {
                let is_thought = flow.of == Of::Reasoning;
                let item = flow.item.clone();
                let mut pieces = self.begin(task, Some(flow));
                if is_thought && !self.all_reasoning {
                    let text = self.beginning(task, &item, &text);
                    pieces.extend(self.output(task, text.as_bytes()));
                } else {
                    pieces.extend(self.output(task, &text));
                }
                pieces
            }
        }
    }

    /// Begins a text, unless it goes on; another one begins on a line of its own.
    fn begin(&mut self, task: &str, flow: Option<Flow>) -> Vec<Piece> {
        if self.texts.entry(task.to_owned()).or_default().flow == flow {
            return Vec::new();
        }
        let pieces = self.end_line(task);
        if let Some(text) = self.texts.get_mut(task) {
            // Half a character of another text.
            text.incomplete.clear();
            text.flow = flow;
        }
        pieces
    }

    /// Gives what is still to be shown of a train of thought, and once that there is more.
    fn beginning(&mut self, task: &str, item: &str, thought: &[u8]) -> String {
        let text = self.texts.entry(task.to_owned()).or_default();
        if text.reasoned.0 != item {
            text.reasoned = (item.to_owned(), 0);
        }
        let room = REASONING_CHARS.saturating_sub(text.reasoned.1);
        let thought = String::from_utf8_lossy(thought);
        let shown: String = thought.chars().take(room).collect();
        let count = thought.chars().count();
        text.reasoned.1 = text.reasoned.1.saturating_add(count);
        if count > room && room > 0 {
            format!("{shown}… (`--reasoning` shows all of it)\n")
        } else {
            shown
        }
    }

    fn output(&mut self, task: &str, data: &[u8]) -> Vec<Piece> {
        let text = self.texts.entry(task.to_owned()).or_default();
        let shown = text.take(data);
        if self.names.is_none() {
            if shown.is_empty() {
                return Vec::new();
            }
            text.in_line = !shown.ends_with('\n');
            let look = text.look();
            return vec![Piece::Data(look.paint(self.paint, &shown))];
        }
        text.begun.push_str(&shown);
        let mut pieces = Vec::new();
        while let Some(end) = self.texts.get(task).and_then(|text| text.begun.find('\n')) {
            let Some(text) = self.texts.get_mut(task) else {
                break;
            };
            let line: String = text.begun.drain(..=end).collect();
            let look = text.look();
            let line = look.paint(self.paint, line.trim_end_matches('\n'));
            pieces.push(self.line(task, &line));
        }
        if let Some(text) = self.texts.get_mut(task)
            && text.begun.len() > LINE_CHARS_MAX
        {
            let line = std::mem::take(&mut text.begun);
            let line = text.look().paint(self.paint, &line);
            pieces.push(self.line(task, &line));
        }
        pieces
    }

    fn talk(&mut self, task: &str, text: &str) -> Vec<Piece> {
        let mut pieces = self.end_line(task);
        let name = match self.names {
            Some(_) if task.is_empty() => "final verify: ".to_owned(),
            Some(_) => format!("{}: ", harmless(task)),
            None => String::new(),
        };
        pieces.push(Piece::Talk(format!("[{name}{}]", harmless(text))));
        pieces
    }

    fn end_line(&mut self, task: &str) -> Vec<Piece> {
        let Some(text) = self.texts.get_mut(task) else {
            return Vec::new();
        };
        let begun = std::mem::take(&mut text.begun);
        let look = text.look();
        text.flow = None;
        if !begun.is_empty() {
            let line = look.paint(self.paint, &begun);
            return vec![self.line(task, &line)];
        }
        if std::mem::take(&mut text.in_line) {
            return vec![Piece::Data("\n".to_owned())];
        }
        Vec::new()
    }

    fn line(&self, task: &str, line: &str) -> Piece {
        let width = self.names.unwrap_or(0);
        let name = if task.is_empty() {
            "final verify"
        } else {
            task
        };
        let name = harmless(name);
        let name = console::truncate_str(&name, width.max(8), "…");
        let gap = " ".repeat(width.saturating_sub(console::measure_text_width(&name)));
        let (name, bar) = (self.paint.bold(&name), self.paint.dim("│"));
        Piece::Data(format!("{name}{gap} {bar} {line}\n"))
    }
}

impl Text {
    fn look(&self) -> Look {
        match &self.flow {
            Some(flow) if flow.of == Of::Reasoning => Look::Dim,
            _ => Look::Plain,
        }
    }

    /// Adds output and gives what is whole, harmless for a terminal.
    fn take(&mut self, data: &[u8]) -> String {
        self.incomplete.extend_from_slice(data);
        let whole = match std::str::from_utf8(&self.incomplete) {
            Ok(text) => text.len(),
            // Only an unfinished character at the end is kept back.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.incomplete.len(),
        };
        let rest = self.incomplete.split_off(whole);
        let bytes = std::mem::replace(&mut self.incomplete, rest);
        let text = String::from_utf8_lossy(&bytes);
        let text = console::strip_ansi_codes(&text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        harmless(&text).into_owned()
    }
}

/// Keeps the last lines of output, and the remarks among them.
#[derive(Debug)]
pub(super) struct Tail {
    lines_max: usize,
    lines: usize,
    events: VecDeque<v1::AgentEvent>,
}

impl Tail {
    pub(super) fn new(lines_max: usize) -> Self {
        Self {
            lines_max,
            lines: 0,
            events: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, event: v1::AgentEvent) {
        self.lines += breaks(&event);
        self.events.push_back(event);
        while let Some(first) = self.events.front() {
            let of_first = breaks(first);
            // A line that was begun in the first event may go on in the next.
            if self.lines - of_first <= self.lines_max {
                break;
            }
            self.lines -= of_first;
            self.events.pop_front();
        }
    }

    /// Gives the events, the first of them without the lines that are too many.
    pub(super) fn events(mut self) -> Vec<v1::AgentEvent> {
        let ends_in_line = self
            .events
            .iter()
            .rev()
            .find_map(data)
            .is_some_and(|data| !data.ends_with(b"\n"));
        let mut surplus = (self.lines + usize::from(ends_in_line)).saturating_sub(self.lines_max);
        while surplus > 0 {
            let Some(mut first) = self.events.pop_front() else {
                break;
            };
            let lines = if data(&first).is_some() {
                0
            } else {
                breaks(&first)
            };
            surplus = surplus.saturating_sub(lines);
            let Some(Kind::Output(output)) = &mut first.kind else {
                continue;
            };
            while surplus > 0
                && let Some(end) = output.data.iter().position(|byte| *byte == b'\n')
            {
                output.data.drain(..=end);
                surplus -= 1;
            }
            if surplus == 0 {
                self.events.push_front(first);
            }
        }
        self.events.into()
    }
}

fn data(event: &v1::AgentEvent) -> Option<&[u8]> {
    match &event.kind {
        Some(Kind::Output(output)) => Some(&output.data),
        _ => None,
    }
}

/// Counts the lines that end in an event.
fn breaks(event: &v1::AgentEvent) -> usize {
    let of = |data: &[u8]| data.iter().filter(|byte| **byte == b'\n').count();
    match &event.kind {
        Some(Kind::Output(output)) => of(&output.data),
        Some(Kind::Activity(activity)) => {
            let shown = activity::shown(activity).into_iter();
            let lines = shown.map(|shown| match shown {
                Shown::Line(..) => 1,
                Shown::Flow(_, text) => of(&text),
            });
            lines.sum()
        }
        _ => 0,
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

    fn shown(printer: &mut Printer, task: &str, data: &[u8]) -> String {
        text(&printer.event(task, &printed(data)))
    }

    fn text(pieces: &[Piece]) -> String {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Data(text) => text.clone(),
                Piece::Talk(text) => format!("{text}\n"),
            })
            .collect()
    }

    #[test]
    fn a_character_that_comes_in_two_pieces_is_shown_once_it_is_whole() {
        let mut printer = Printer::of_one(Paint::new(false));
        let (first, second) = "grün".as_bytes().split_at(3);
        assert_eq!(shown(&mut printer, "a", first), "gr");
        assert_eq!(shown(&mut printer, "a", second), "ün");
        assert_eq!(shown(&mut printer, "a", b"a\xffb\n"), "a\u{fffd}b\n");
    }

    #[test]
    fn output_loses_its_power_over_the_terminal() {
        let mut printer = Printer::of_one(Paint::new(false));
        assert_eq!(
            shown(&mut printer, "a", b"\x1b[31mred\x1b[0m\r\n10%\r20%\x07\n"),
            "red\n10%\n20%␇\n"
        );
    }

    #[test]
    fn a_remark_stands_on_a_line_of_its_own() {
        let mut printer = Printer::of_one(Paint::new(false));
        let phase = v1::AgentEvent {
            kind: Some(Kind::Phase(v1::Phase {
                name: "publishing".to_owned(),
                detail: String::new(),
            })),
            ..v1::AgentEvent::default()
        };
        assert_eq!(shown(&mut printer, "a", b"no end"), "no end");
        assert_eq!(text(&printer.event("a", &phase)), "\n[publishing]\n");
        assert_eq!(text(&printer.end()), "");
    }

    #[test]
    fn lines_of_several_tasks_never_mix_and_name_their_task() {
        let mut printer = Printer::of_several(["api", "docs"], Paint::new(false));
        assert_eq!(shown(&mut printer, "api", b"compi"), "");
        assert_eq!(
            shown(&mut printer, "docs", b"one\ntwo\n"),
            "docs │ one\ndocs │ two\n"
        );
        assert_eq!(
            shown(&mut printer, "api", b"ling\nand"),
            "api  │ compiling\n"
        );
        assert_eq!(text(&printer.end()), "api  │ and\n");
    }

    fn doing(kind: v1::activity::Kind) -> v1::AgentEvent {
        v1::AgentEvent {
            kind: Some(Kind::Activity(v1::Activity {
                turn: 1,
                kind: Some(kind),
            })),
            ..v1::AgentEvent::default()
        }
    }

    fn thought(item: &str, text: &str) -> v1::AgentEvent {
        doing(v1::activity::Kind::Reasoning(v1::TextDelta {
            item: item.to_owned(),
            text: text.to_owned(),
        }))
    }

    fn message(text: &str) -> v1::AgentEvent {
        doing(v1::activity::Kind::Message(v1::TextDelta {
            item: "m".to_owned(),
            text: text.to_owned(),
        }))
    }

    fn conversation() -> Vec<v1::AgentEvent> {
        use v1::activity::Kind as Doing;
        vec![
            thought("r", "I have to "),
            thought("r", "look."),
            message("Loo"),
            message("king\nnow"),
            doing(Doing::CommandStarted(v1::CommandStarted {
                item: "c".to_owned(),
                command: "ls".to_owned(),
                folder: String::new(),
            })),
            doing(Doing::CommandOutput(v1::CommandOutput {
                item: "c".to_owned(),
                data: b"a.rs\nb.rs".to_vec(),
            })),
            doing(Doing::CommandEnded(v1::CommandEnded {
                item: "c".to_owned(),
                exit_code: Some(0),
                declined: false,
            })),
            message("Done"),
        ]
    }

    #[test]
    fn a_conversation_reads_as_text_with_what_was_done() {
        let mut printer = Printer::of_one(Paint::new(false));
        let mut shown = String::new();
        for event in conversation() {
            shown.push_str(&text(&printer.event("a", &event)));
        }
        shown.push_str(&text(&printer.end()));
        assert_eq!(
            shown,
            "I have to look.\nLooking\nnow\n$ ls\na.rs\nb.rs\n· exit code 0\nDone\n"
        );
        let mut printer = Printer::of_several(["a", "b"], Paint::new(false));
        let mut shown = String::new();
        for event in conversation() {
            shown.push_str(&text(&printer.event("a", &event)));
            shown.push_str(&text(&printer.event("b", &message("."))));
        }
        shown.push_str(&text(&printer.end()));
        let of = |name: &str| -> Vec<String> {
            let lines = shown.lines().filter(|line| line.starts_with(name));
            lines
                .map(|line| line.split("│ ").nth(1).unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            of("a "),
            [
                "I have to look.",
                "Looking",
                "now",
                "$ ls",
                "a.rs",
                "b.rs",
                "· exit code 0",
                "Done"
            ]
        );
        assert_eq!(of("b "), ["........"]);
    }

    #[test]
    fn a_long_thought_is_cut_unless_all_of_it_is_wanted() {
        let long = "thinking ".repeat(100);
        let events = [
            thought("r", &long),
            thought("r", &long),
            thought("s", "next"),
        ];
        let show = |printer: Printer| {
            let mut printer = printer;
            let mut shown = String::new();
            for event in &events {
                shown.push_str(&text(&printer.event("a", event)));
            }
            shown + &text(&printer.end())
        };
        let plain = || Printer::of_one(Paint::new(false));
        let cut = show(plain());
        assert_eq!(cut.matches("--reasoning").count(), 1, "{cut}");
        assert!(cut.ends_with("\nnext\n") && cut.len() < 500, "{cut}");
        assert_eq!(
            show(plain().with_reasoning(true)).len(),
            2 * 900 + "\nnext\n".len()
        );
        let painted = show(Printer::of_one(Paint::new(true)));
        assert!(painted.starts_with("\x1b[2m"), "{painted:?}");
    }

    #[test]
    fn the_tail_of_a_conversation_has_so_many_lines() {
        let mut tail = Tail::new(3);
        for event in conversation() {
            tail.push(event);
        }
        let mut printer = Printer::of_one(Paint::new(false));
        let events = tail.events();
        let shown: String = events
            .iter()
            .map(|event| text(&printer.event("a", event)))
            .collect();
        assert_eq!(shown, "$ ls\na.rs\nb.rs\n· exit code 0\nDone");
    }

    #[test]
    fn the_tail_has_so_many_lines() {
        let chunks: [&[u8]; 5] = [b"1\n2\n3", b"\n4\n", b"5\n", b"6", b"6\n7\n"];
        for (lines, wanted) in [
            (0, ""),
            (1, "7\n"),
            (2, "66\n7\n"),
            (4, "4\n5\n66\n7\n"),
            (6, "2\n3\n4\n5\n66\n7\n"),
            (100, "1\n2\n3\n4\n5\n66\n7\n"),
        ] {
            let mut tail = Tail::new(lines);
            chunks.iter().for_each(|chunk| tail.push(printed(chunk)));
            let kept: Vec<u8> = tail
                .events()
                .iter()
                .filter_map(data)
                .flatten()
                .copied()
                .collect();
            assert_eq!(String::from_utf8(kept).unwrap(), wanted, "{lines}");
        }
        let mut tail = Tail::new(1);
        tail.push(printed(b"1\n2"));
        let kept: Vec<u8> = tail
            .events()
            .iter()
            .filter_map(data)
            .flatten()
            .copied()
            .collect();
        assert_eq!(kept, b"2");
    }
}
