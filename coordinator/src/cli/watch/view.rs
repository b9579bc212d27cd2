//! Draws what the live table knows into a window of any size. Only what is seen is made.

use jiff::Timestamp;
use muster_proto::v1;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::text::{Line, Span};

use super::detail;
use super::model::{Focus, Model, Order};
use crate::cli::{show, usage};
use crate::output::{harmless, one_line};

const NAME_WIDTH_MIN: usize = 8;
const NAME_WIDTH_MAX: usize = 40;
/// Sign and word of the longest state.
const STATE_WIDTH: usize = 13;
const TRY_WIDTH: usize = 3;
const TIME_WIDTH: usize = 7;
const WORKER_WIDTH_MAX: usize = 16;
/// Below this a last line of output is not worth its column.
const SAID_WIDTH_MIN: usize = 12;
/// The last words are worth more than the place: it is named if they keep so much.
const SAID_WIDTH_BESIDE_WORKER: usize = 20;
/// Narrower windows get the shortest help.
const HELP_WIDTH: usize = 60;

/// Whether colours are shown. Words and signs say the same without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Theme {
    pub(crate) colours: bool,
}

impl Theme {
    pub(super) fn of_state(self, state: &str) -> Style {
        let colour = match state {
            "succeeded" | "integrated" => Color::Green,
            "failed" | "aborted" | "lost" | "conflict" => Color::Red,
            "cancelled" | "skipped" | "parked" | "asks you" => Color::Yellow,
            "leased" | "starting" | "running" | "verifying" | "to verify" | "active"
            | "integrating" | "merging" => Color::Cyan,
            _ => return self.dim(),
        };
        self.colour(colour)
    }

    fn colour(self, colour: Color) -> Style {
        if self.colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    pub(super) fn warning(self) -> Style {
        self.colour(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    pub(super) fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Draws everything.
pub(crate) fn draw(model: &Model, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut canvas = Canvas { area, buffer };
    let bottom = usize::from(area.height).saturating_sub(1);
    if model.help {
        help(model, theme, &mut canvas);
    } else {
        canvas.line(0, &headline(model, theme));
        canvas.line(1, &second_line(model, theme));
        let list = model.list_height();
        if list > 0 {
            tasks(model, theme, &mut canvas, 2, list);
        }
        if model.detail {
            let from = if list > 0 { 3 + list } else { 2 };
            let height = bottom.saturating_sub(from);
            let width = usize::from(area.width);
            for (row, line) in detail::lines(model, theme, width, height)
                .into_iter()
                .enumerate()
            {
                canvas.line(from + row, &line);
            }
        }
    }
    if area.height > 1 {
        canvas.line(bottom, &last_line(model, theme));
    }
}

/// A window to write lines into; what does not fit is left out.
struct Canvas<'b> {
    area: Rect,
    buffer: &'b mut Buffer,
}

impl Canvas<'_> {
    fn line(&mut self, row: usize, line: &Line<'_>) {
        if let Some(y) = self.row(row) {
            self.buffer.set_line(self.area.x, y, line, self.area.width);
        }
    }

    /// Writes to the end of a line, over what stands there.
    fn right(&mut self, row: usize, span: &Span<'_>) {
        let width = console::measure_text_width(&span.content);
        let width = u16::try_from(width).unwrap_or(u16::MAX);
        if let Some((y, start)) = self.row(row).zip(self.area.width.checked_sub(width)) {
            let x = self.area.x + start;
            self.buffer.set_span(x, y, span, width);
        }
    }

    /// Makes a whole line stand out.
    fn reverse(&mut self, row: usize) {
        if let Some(y) = self.row(row) {
            let area = Rect {
                y,
                height: 1,
                ..self.area
            };
            let style = Style::new().add_modifier(Modifier::REVERSED);
            self.buffer.set_style(area, style);
        }
    }

    fn row(&self, row: usize) -> Option<u16> {
        let row = u16::try_from(row)
            .ok()
            .filter(|row| *row < self.area.height)?;
        Some(self.area.y + row)
    }
}

fn headline(model: &Model, theme: Theme) -> Line<'_> {
    let run = &model.run;
    let submitted = show::time(run.submitted_at.as_ref()).unwrap_or(model.now);
    let until = show::time(run.ended_at.as_ref()).unwrap_or(model.now);
    let state = format!("{} {}", show::state_sign(&run.state), run.state);
    let mut spans = vec![
        Span::styled(harmless(&run.run), theme.bold()),
        Span::raw("  "),
        Span::styled(state, theme.of_state(&run.state)),
        Span::raw(format!(
            "  {}",
            show::duration(show::between(submitted, until))
        )),
    ];
    if let Some(used) = usage::brief(run.usage.as_ref()) {
        spans.push(Span::styled(format!("  {used}"), theme.dim()));
    }
    if show::has_ended(run)
        && let Some(integration) = &run.integration
        && !matches!(integration.state.as_str(), "none" | "pending")
    {
        let state = format!(
            "  {} {}",
            show::state_sign(&integration.state),
            integration.state
        );
        spans.push(Span::styled(state, theme.of_state(&integration.state)));
    }
    Line::from(spans)
}

/// Counts, unless there is something more important to say.
fn second_line(model: &Model, theme: Theme) -> Line<'_> {
    let run = &model.run;
    if let Some(since) = model.away_since {
        let away = show::duration(show::between(since, model.now));
        let text = if show::has_ended(run) {
            format!("! the coordinator has gone ({away}); the run had ended")
        } else {
            format!("! the coordinator is away for {away}; trying again")
        };
        return Line::styled(text, theme.warning());
    }
    let done: usize = model
        .counts
        .iter()
        .filter(|(state, _)| show::is_final(state))
        .map(|(_, count)| count)
        .sum();
    let mut spans = vec![Span::raw(format!("{done} of {} done", run.tasks.len()))];
    for (state, count) in &model.counts {
        if state != "succeeded" {
            let word = if state == "leased" { "running" } else { state };
            spans.push(Span::raw(" · "));
            spans.push(Span::styled(
                format!("{count} {word}"),
                theme.of_state(word),
            ));
        }
    }
    Line::from(spans)
}

fn last_line(model: &Model, theme: Theme) -> Line<'_> {
    if model.focus == Focus::Filter {
        return Line::from(vec![
            Span::styled("filter: ", theme.bold()),
            Span::raw(harmless(&model.filter)),
            Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)),
            Span::styled("  Enter keep · Esc clear", theme.dim()),
        ]);
    }
    let keys = match (model.help, model.focus, model.detail) {
        (true, ..) => "any key: back",
        _ if usize::from(model.size.0) < HELP_WIDTH => "q quit · Enter details · ? help",
        (_, Focus::Detail, _) => "q quit · ↑↓ scroll · Tab list · Esc close · ? help",
        (_, _, true) => "q quit · ↑↓ task · Tab scroll it · Esc close · ? help",
        _ => "q quit · ↑↓ move · Enter details · / filter · ? help · o order",
    };
    let mut spans = vec![Span::styled(keys, theme.dim())];
    if show::has_ended(&model.run) {
        spans.insert(0, Span::styled("ended  ", theme.bold()));
    }
    Line::from(spans)
}

/// The columns that a window has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    name: usize,
    tries: bool,
    time: bool,
    worker: usize,
    said: usize,
}

impl Columns {
    /// Gives each column its width: name and state always, then as many others as fit.
    fn fit(width: usize, longest_name: usize, longest_worker: usize) -> Self {
        let wanted = longest_name.clamp(NAME_WIDTH_MIN, NAME_WIDTH_MAX);
        let needed = STATE_WIDTH + 1;
        let name = wanted.min(width.saturating_sub(needed).max(NAME_WIDTH_MIN));
        let mut left = width.saturating_sub(name + needed);
        let mut take = |column: usize| {
            let fits = left > column;
            left -= if fits { column + 1 } else { 0 };
            fits
        };
        let time = take(TIME_WIDTH);
        let tries = take(TRY_WIDTH);
        let mut worker = longest_worker.clamp("WORKER".len(), WORKER_WIDTH_MAX);
        if left > worker + 1 + SAID_WIDTH_BESIDE_WORKER {
            left -= worker + 1;
        } else {
            worker = 0;
        }
        let said = if left > SAID_WIDTH_MIN { left - 1 } else { 0 };
        Self {
            name,
            tries,
            time,
            worker,
            said,
        }
    }

    fn line<'a>(&self, cells: [(String, Style); 6]) -> Line<'a> {
        let [name, state, tries, time, worker, said] = cells;
        let mut spans = Vec::with_capacity(12);
        let mut put = |(text, style): (String, Style), width: usize| {
            let text = console::truncate_str(&text, width, "…").into_owned();
            let used = console::measure_text_width(&text);
            spans.push(Span::styled(text, style));
            spans.push(Span::raw(" ".repeat(width.saturating_sub(used) + 1)));
        };
        put(name, self.name);
        put(state, STATE_WIDTH);
        if self.tries {
            put(tries, TRY_WIDTH);
        }
        if self.time {
            put(time, TIME_WIDTH);
        }
        if self.worker > 0 {
            put(worker, self.worker);
        }
        if self.said > 0 {
            put(said, self.said);
        }
        Line::from(spans)
    }
}

fn tasks(model: &Model, theme: Theme, canvas: &mut Canvas<'_>, from: usize, height: usize) {
    let shown = model.listed.iter().skip(model.top).take(height);
    let shown: Vec<&v1::Task> = shown
        .filter_map(|place| model.run.tasks.get(*place))
        .collect();
    // Of the whole run, so that columns stand still while it scrolls; counting is cheap.
    let longest = model.run.tasks.iter().map(|task| task.name.len()).max();
    let workers = model
        .run
        .tasks
        .iter()
        .filter_map(|task| task.attempts.last());
    let worker = workers.map(|attempt| attempt.worker.len()).max();
    let columns = Columns::fit(
        usize::from(canvas.area.width),
        longest.unwrap_or_default(),
        worker.unwrap_or_default(),
    );
    let heading = |text: &str| (text.to_owned(), theme.dim());
    canvas.line(
        from,
        &columns.line([
            heading("TASK"),
            heading("STATE"),
            heading("TRY"),
            heading("TIME"),
            heading("WORKER"),
            heading("LAST WORDS"),
        ]),
    );
    canvas.right(from, &Span::styled(position(model, height), theme.dim()));
    if shown.is_empty() {
        let nothing = if model.filter.is_empty() {
            "the run has no tasks".to_owned()
        } else {
            format!("no task fits {:?}; Esc clears the filter", model.filter)
        };
        canvas.line(from + 1, &Line::styled(nothing, theme.dim()));
    }
    for (row, task) in shown.into_iter().enumerate() {
        canvas.line(from + 1 + row, &columns.line(cells(model, task, theme)));
        if model.top + row == model.at && model.focus != Focus::Filter {
            canvas.reverse(from + 1 + row);
        }
    }
}

/// Says what part of the tasks is seen, unless it is all in the usual order.
fn position(model: &Model, height: usize) -> String {
    let (listed, all) = (model.listed.len(), model.run.tasks.len());
    let mut parts = Vec::new();
    if listed < all {
        parts.push(format!("{listed} of {all} fit {:?}", model.filter));
    }
    if listed > height {
        parts.push(format!("{}/{listed}", model.at + 1));
    }
    if model.order == Order::Plan {
        parts.push("as in the plan".to_owned());
    }
    if parts.is_empty() {
        return String::new();
    }
    format!("  {}", parts.join(" · "))
}

fn cells(model: &Model, task: &v1::Task, theme: Theme) -> [(String, Style); 6] {
    let last = task.attempts.last();
    let works = matches!(task.state.as_str(), "leased" | "verifying");
    let word = show::state_word(task);
    let time = last.and_then(|attempt| time_of(attempt, works, model.now));
    let worker = last
        .map(|attempt| one_line(&attempt.worker))
        .unwrap_or_default();
    [
        (one_line(&task.name), Style::new()),
        (
            format!("{} {word}", show::state_sign(word)),
            theme.of_state(word),
        ),
        (
            last.map(|attempt| attempt.number.to_string())
                .unwrap_or_default(),
            Style::new(),
        ),
        (time.unwrap_or_default(), Style::new()),
        (worker, theme.dim()),
        (words(model, task, works), theme.dim()),
    ]
}

/// Gives how long an attempt took, or has taken so far.
pub(super) fn time_of(attempt: &v1::Attempt, works: bool, now: Timestamp) -> Option<String> {
    let granted = show::time(attempt.granted_at.as_ref())?;
    let until = show::time(attempt.ended_at.as_ref()).filter(|_| !works);
    Some(show::duration(show::between(granted, until.unwrap_or(now))))
}

/// Gives the one line that tells most about a task.
fn words(model: &Model, task: &v1::Task, works: bool) -> String {
    let failure = |failure: &v1::Failure| one_line(&failure.message);
    let last = task.attempts.last();
    let said = match task.state.as_str() {
        "failed" | "aborted" => task.failure.as_ref().map(failure),
        "succeeded" if task.no_change => Some("no change".to_owned()),
        "succeeded" => task
            .commit
            .as_deref()
            .map(|commit| show::short(commit).to_owned()),
        // It is to be tried again.
        "ready" => last
            .and_then(|attempt| attempt.failure.as_ref())
            .map(failure),
        _ if !task.asks.is_empty() => Some(one_line(&task.asks)),
        _ if works => model.said.last(&task.name),
        _ => None,
    };
    said.unwrap_or_else(|| one_line(&task.reason))
}

fn help(model: &Model, theme: Theme, canvas: &mut Canvas<'_>) {
    let keys = [
        ("↑ ↓  k j", "one task up or down"),
        ("PgUp PgDn", "a window up or down"),
        ("Home End  g G", "to the first, to the last"),
        ("Enter", "details of the task: why, attempts, output"),
        ("Tab", "scroll the details, or back to the list"),
        ("/", "only tasks whose name or state holds a text"),
        ("o", "order: what needs a look first, or the plan's"),
        ("Esc", "close the details, then take the filter back"),
        ("q  Ctrl-C", "leave; the run goes on"),
    ];
    canvas.line(0, &Line::styled("Keys", theme.bold()));
    for (row, (key, what)) in keys.into_iter().enumerate() {
        let line = Line::from(vec![
            Span::styled(format!("  {key:<15}"), theme.bold()),
            Span::raw(what),
        ]);
        canvas.line(row + 1, &line);
    }
    let signs = [
        "failed",
        "running",
        "starting",
        "verifying",
        "ready",
        "blocked",
        "basing",
        "succeeded",
        "skipped",
        "cancelled",
        "aborted",
        "parked",
    ];
    canvas.line(keys.len() + 2, &Line::styled("Signs", theme.bold()));
    let per_row = (usize::from(model.size.0) / 16).max(1);
    for (row, signs) in signs.chunks(per_row).enumerate() {
        let mut spans = vec![Span::raw("  ")];
        for state in signs {
            let text = format!("{} {state:<13}", show::state_sign(state));
            spans.push(Span::styled(text, theme.of_state(state)));
        }
        canvas.line(keys.len() + 3 + row, &Line::from(spans));
    }
}
