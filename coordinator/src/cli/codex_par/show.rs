//! The board of `status --dir`, and the lines of `tail`. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::layout::{Meta, Status};
use super::stream::Seen;
use crate::cli::show;
use crate::output::{Paint, one_line};

/// Draws the board: a header with counts, then the tasks of each wave.
pub(crate) fn board(tasks: &[Meta], now: Timestamp, paint: Paint) -> String {
    let counts = [
        Status::Done,
        Status::Running,
        Status::Pending,
        Status::Failed,
        Status::Cancelled,
    ]
    .map(|status| {
        (
            status,
            tasks.iter().filter(|task| task.status == status).count(),
        )
    });
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(status, count)| format!("{count} {}", status.as_str()))
        .collect();
    let mut text = format!(
        "{}: {}",
        show::counted(tasks.len(), "task"),
        counts.join(", ")
    );
    let width = tasks
        .iter()
        .map(|task| one_line(&task.name).chars().count())
        .max()
        .unwrap_or(0)
        .min(30);
    let mut wave = None;
    for task in tasks {
        if wave != Some(task.wave) {
            wave = Some(task.wave);
            let title = paint.bold(&format!("wave {}", task.wave));
            let _ = write!(text, "\n\n{title}");
        }
        let _ = write!(text, "\n{}", line(task, width, now, paint));
    }
    text
}

fn line(task: &Meta, width: usize, now: Timestamp, paint: Paint) -> String {
    let (icon, word) = match task.status {
        Status::Pending => ("·", paint.dim("pending  ")),
        Status::Running => ("▶", "running  ".to_owned()),
        Status::Done => ("✓", "done     ".to_owned()),
        Status::Failed => ("✗", paint.bold("failed   ")),
        Status::Cancelled => ("–", paint.dim("cancelled")),
    };
    let mut line = format!("  {icon} {:width$}  {word}", one_line(&task.name));
    if let Some(took) = took(task, now) {
        let _ = write!(line, "  {:>7}", show::duration(took));
    }
    if task.events_count > 0 {
        let _ = write!(
            line,
            "  {} events  {:.1}K in {:.1}K out  {} read  {} run",
            task.events_count,
            thousands(task.input_tokens),
            thousands(task.output_tokens),
            task.files_read,
            task.commands_run,
        );
    }
    line.truncate(line.trim_end().len());
    let said = task.error.as_ref().or(task.last_action.as_ref());
    if let Some(said) = said {
        let _ = write!(line, "\n      {}", paint.dim(&one_line(said)));
    }
    line
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn thousands(count: u64) -> f64 {
    count as f64 / 1_000.0
}

fn took(task: &Meta, now: Timestamp) -> Option<Duration> {
    let parse = |time: &Option<String>| time.as_ref()?.parse::<Timestamp>().ok();
    let start = parse(&task.start_time)?;
    Some(show::between(start, parse(&task.end_time).unwrap_or(now)))
}

/// Writes a line of `tail`.
pub(crate) fn tail_line(seen: &Seen) -> String {
    match seen {
        Seen::Session(id) => format!("SESSION {id}"),
        Seen::Read(command) => format!("READ    {command}"),
        Seen::Exec(command) => format!("EXEC    {command}"),
        Seen::Message(text) => format!("SAYS    {text}"),
        Seen::Tokens { input, output } => format!("TOKENS  {input} in, {output} out"),
        Seen::Error(message) => format!("ERROR   {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_shows_each_wave_with_what_its_tasks_did() {
        let meta = |name: &str, wave, status| Meta {
            name: name.into(),
            wave,
            status,
            ..Meta::default()
        };
        let tasks = [
            Meta {
                start_time: Some("2026-01-01T00:00:00Z".into()),
                end_time: Some("2026-01-01T00:01:05Z".into()),
                events_count: 9,
                input_tokens: 3_000,
                output_tokens: 50,
                files_read: 1,
                commands_run: 2,
                last_action: Some("Done: \u{1b}[31mwrote".into()),
                ..meta("analyse", 0, Status::Done)
            },
            Meta {
                start_time: Some("2026-01-01T00:01:05Z".into()),
                ..meta("build", 1, Status::Running)
            },
            Meta {
                error: Some("codex ended with exit code 3 (agent_failed)".into()),
                ..meta("check", 1, Status::Failed)
            },
            meta("ship", 2, Status::Cancelled),
        ];
        let now = "2026-01-01T00:01:07Z".parse().unwrap();
        insta::assert_snapshot!(board(&tasks, now, Paint::new(false)));
    }
}
