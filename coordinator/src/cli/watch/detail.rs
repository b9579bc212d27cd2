//! The pane with everything about one task.

use muster_proto::v1;
use ratatui_core::style::Style;
use ratatui_core::text::{Line, Span};

use super::model::{Focus, Model};
use super::view::{Theme, time_of};
use crate::cli::show;
use crate::output::one_line;

/// Attempts that are listed; a task rarely has more.
const ATTEMPTS_MAX: usize = 20;
/// Dependencies that are named.
const DEPENDENCIES_MAX: usize = 12;

/// Gives the pane: a heading, and below it as much as fits, the end first.
pub(super) fn lines(
    model: &Model,
    theme: Theme,
    width: usize,
    height: usize,
) -> Vec<Line<'static>> {
    let Some(task) = model.selected() else {
        return Vec::new();
    };
    let room = height.saturating_sub(1);
    let facts = facts(model, task, theme, width);
    let said = model.said.lines(&task.name);
    // Facts stay in sight and output fills the rest, unless the person scrolls.
    let mut all = facts;
    let facts = all.len();
    if !said.is_empty() {
        all.push(Line::styled("output", theme.bold()));
    }
    all.extend(
        said.into_iter()
            .map(|line| Line::from(vec![Span::styled("│ ", theme.dim()), Span::raw(line)])),
    );
    let end_top = all.len().saturating_sub(room);
    let back = model.back.min(end_top);
    let shown: Vec<Line<'static>> = if back == 0 && end_top > 0 {
        // One line of output at least, below its heading; if even that does not fit, facts alone.
        let tail = room.saturating_sub(facts + 1);
        let said = all.split_off(all.len() - tail);
        all.truncate(room - tail);
        all.extend(said);
        all
    } else {
        all.into_iter().skip(end_top - back).take(room).collect()
    };
    let mut lines = vec![heading(model, task, theme, width, back)];
    lines.extend(shown);
    lines.truncate(height);
    lines
}

fn heading(
    model: &Model,
    task: &v1::Task,
    theme: Theme,
    width: usize,
    back: usize,
) -> Line<'static> {
    let word = show::state_word(task);
    let rule = if model.focus == Focus::Detail {
        "═"
    } else {
        "─"
    };
    let name = format!(" {} ", one_line(&task.name));
    let state = format!("{} {word} ", show::state_sign(word));
    let scrolled = if back > 0 {
        format!(" {back} lines below ")
    } else {
        String::new()
    };
    let used = 2 + [&name, &state, &scrolled]
        .iter()
        .map(|text| console::measure_text_width(text))
        .sum::<usize>();
    Line::from(vec![
        Span::styled(rule.repeat(2), theme.dim()),
        Span::styled(name, theme.bold()),
        Span::styled(state, theme.of_state(word)),
        Span::styled(rule.repeat(width.saturating_sub(used)), theme.dim()),
        Span::styled(scrolled, theme.warning()),
    ])
}

fn facts(model: &Model, task: &v1::Task, theme: Theme, width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let mut add = |label: &str, text: &str, style: Style| {
        for (number, piece) in wrapped(text, width.saturating_sub(11))
            .into_iter()
            .enumerate()
        {
            let label = if number == 0 { label } else { "" };
            lines.push(Line::from(vec![
                Span::styled(format!("{label:<10} "), theme.dim()),
                Span::styled(piece, style),
            ]));
        }
    };
    if let Some((_, said)) = model
        .explained
        .as_ref()
        .filter(|(name, _)| *name == task.name)
    {
        for reason in &said.reasons {
            add("why", &one_line(reason), Style::new());
        }
        for remedy in &said.remedies {
            add("would help", &one_line(remedy), Style::new());
        }
    }
    let explained = model.explained.as_ref().map(|(_, said)| &said.reasons);
    let is_told = |failure: &v1::Failure| {
        explained.is_some_and(|why| why.iter().any(|why| why.contains(&failure.message)))
    };
    if let Some(failure) = task.failure.as_ref().filter(|failure| !is_told(failure)) {
        let text = format!("{}: {}", failure.class, one_line(&failure.message));
        add("failure", &text, theme.of_state("failed"));
    }
    let mut names: Vec<String> = task
        .depends_on
        .iter()
        .take(DEPENDENCIES_MAX)
        .map(|name| one_line(name))
        .collect();
    if task.depends_on.len() > DEPENDENCIES_MAX {
        names.push(format!("{} more", task.depends_on.len() - DEPENDENCIES_MAX));
    }
    if !names.is_empty() {
        add("after", &names.join(", "), Style::new());
    }
    match &task.commit {
        Some(_) if task.no_change => add("commit", "no change", Style::new()),
        Some(commit) => add("commit", commit, Style::new()),
        None => {}
    }
    if !task.agent.is_empty() {
        add("agent", &one_line(&task.agent), Style::new());
    }
    let earlier = task.attempts.len().saturating_sub(ATTEMPTS_MAX);
    for (number, attempt) in task.attempts.iter().skip(earlier).enumerate() {
        let works = attempt.ended_at.is_none();
        let mut text = format!(
            "{} {} {}",
            attempt.number,
            show::state_sign(&attempt.state),
            attempt.state.replace('_', " ")
        );
        if let Some(time) = time_of(attempt, works, model.now) {
            text = format!("{text}  {time}");
        }
        if !attempt.worker.is_empty() {
            text = format!("{text}  on {}", one_line(&attempt.worker));
        }
        if let Some(granted) = show::time(attempt.granted_at.as_ref()) {
            text = format!("{text}  at {}", show::time_of_day(granted));
        }
        if let Some(failure) = &attempt.failure {
            text = format!("{text}  {}", one_line(&failure.message));
        }
        let label = if number == 0 { "attempts" } else { "" };
        add(label, &text, theme.of_state(&attempt.state));
    }
    lines
}

/// Breaks a text into lines of a width, between words where it can.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(10);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let mut word = word.to_owned();
        loop {
            let wide = console::measure_text_width(&word);
            let gap = usize::from(used > 0);
            if used + gap + wide <= width {
                if gap > 0 {
                    line.push(' ');
                }
                line.push_str(&word);
                used += gap + wide;
                break;
            }
            if used > 0 {
                lines.push(std::mem::take(&mut line));
                used = 0;
                continue;
            }
            // A word that is wider than the line is cut.
            let head = console::truncate_str(&word, width, "").into_owned();
            if head.is_empty() {
                break;
            }
            word.drain(..head.len());
            lines.push(head);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_whole_where_they_fit() {
        assert_eq!(wrapped("one two three four", 10), ["one two", "three four"]);
        assert_eq!(wrapped("", 10), [""]);
        assert_eq!(wrapped("0123456789abc de", 10), ["0123456789", "abc de"]);
        assert_eq!(wrapped("日本語日本語", 10), ["日本語日本", "語"]);
    }
}
