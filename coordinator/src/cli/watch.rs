//! `coordinator watch`: a live table on a terminal, else a line for each event.

mod detail;
mod keys;
mod live;
mod model;
mod output;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;

use super::arguments::Watch;
use super::context::{Context, Session};
use super::error::{CliError, Exit, Result};
use super::follow::{self, News, Wish};
use super::interrupt::Interrupts;
use super::{activity, find, json, logging, show, summary};
use crate::output::{Paint, harmless, one_line};

pub(crate) async fn watch(context: &Context, options: Watch) -> Result<Exit> {
    let is_table = wants_table(context, &options);
    if is_table {
        logging::silent();
    }
    let session = context.session().await?;
    let ended = watched(context, &session, &options, is_table).await;
    session.close().await;
    ended
}

/// Tells whether a person sits in front of a terminal that can be drawn on, and has not asked for
/// anything that only lines can show.
fn wants_table(context: &Context, options: &Watch) -> bool {
    let lines = options.plain
        || options.json
        || options.agent
        || options.after.is_some()
        || options.cursor.is_some();
    !lines && context.output.data_is_terminal && std::io::stdin().is_terminal()
}

async fn watched(
    context: &Context,
    session: &Session,
    options: &Watch,
    is_table: bool,
) -> Result<Exit> {
    let mut interrupts = Interrupts::listen()?;
    let mut client = session.client.clone();
    let run = find::run(&client, options.run.as_deref()).await?;
    if session.is_own() && (options.follow || !show::has_ended(&find::get(&client, &run).await?)) {
        return Err(CliError::connection(format!(
            "no coordinator runs on {}, so there is nothing to wait for",
            context.home.display()
        ))
        .hint(format!(
            "`{} run --resume {run}` goes on with it",
            context.program
        ))
        .hint(format!(
            "`{} status {run}` shows how it stands",
            context.program
        )));
    }
    if is_table {
        let run = find::get(&client, &run).await?;
        return Box::pin(live::watch(
            context,
            session,
            run,
            options.follow,
            interrupts,
        ))
        .await;
    }
    let wish = Wish {
        run: run.clone(),
        after_seq: options.after.unwrap_or_default(),
        cursor: options.cursor.clone().unwrap_or_default(),
        agent_events: options.agent,
        follow_after_end: options.follow,
    };
    let mut news = follow::start(client.clone(), context.whereabouts.clone(), wish);
    let mut talks = Talks::new();
    loop {
        let next = tokio::select! {
            next = news.recv() => next,
            _ = interrupts.next() => return Ok(Exit::Interrupted),
        };
        match next {
            None => break,
            Some(Err(error)) => return Err(error),
            Some(Ok(News::Away)) => context
                .output
                .say("the coordinator is away; waiting for it"),
            Some(Ok(News::Back(back))) => client = *back,
            Some(Ok(News::Item { seq, cursor, item })) if options.json => {
                context
                    .output
                    .json(&json::watched(&run, seq, &cursor, &item))?;
            }
            Some(Ok(News::Item { item, .. })) => {
                for line in lines(&item, context.output.data_paint, &mut talks) {
                    context.output.data(&line)?;
                }
            }
        }
    }
    for (task, mut talk) in talks {
        let last = talk.end().into_iter().map(|(_, line)| line);
        for line in of_task(&task, None, last.collect(), context.output.data_paint) {
            context.output.data(&line)?;
        }
    }
    let run = find::get(&client, &run).await?;
    Ok(summary::exit(&run))
}

/// What model agents are saying, by task.
type Talks = BTreeMap<String, activity::Lines>;

/// Writes an event for a person.
fn lines(item: &Item, paint: Paint, talks: &mut Talks) -> Vec<String> {
    match item {
        Item::Journal(event) => {
            let at = show::time(event.at.as_ref()).map(show::time_of_day);
            vec![format!(
                "{} {}{}",
                paint.dim(&at.unwrap_or_default()),
                subject(event, paint),
                one_line(&event.text)
            )]
        }
        Item::Agent(of) => {
            let Some(event) = &of.event else {
                return Vec::new();
            };
            let talk = talks.entry(of.task.clone()).or_default();
            let said = match &event.kind {
                Some(v1::agent_event::Kind::Activity(activity)) => {
                    let lines = talk.take(activity).into_iter();
                    lines.map(|(look, line)| look.paint(paint, &line)).collect()
                }
                Some(v1::agent_event::Kind::Capture(_)) | None => Vec::new(),
                Some(_) => {
                    let before = talk.end().map(|(_, line)| line);
                    before.into_iter().chain(agent_lines(event)).collect()
                }
            };
            of_task(&of.task, Some(event.at_ms), said, paint)
        }
    }
}

/// Puts time and task before each line.
fn of_task(task: &str, at_ms: Option<u64>, lines: Vec<String>, paint: Paint) -> Vec<String> {
    let at = at_ms
        .and_then(|at| i64::try_from(at).ok())
        .and_then(|at| jiff::Timestamp::from_millisecond(at).ok())
        .map(show::time_of_day);
    let start = format!(
        "{} {}",
        paint.dim(&at.unwrap_or_default()),
        paint.bold(&harmless(task))
    );
    lines
        .into_iter()
        .map(|line| format!("{start} {} {line}", paint.dim("│")))
        .collect()
}

/// Tells that output is missing; how much of it is not known of what a disk or a backup has lost.
pub(super) fn lost(bytes: u64) -> String {
    match bytes {
        0 => "some of what was said here is lost".to_owned(),
        _ => format!("{bytes} bytes of output were dropped here"),
    }
}

/// Names the task of an event, and its attempt, before what has happened.
pub(crate) fn subject(event: &v1::JournalEvent, paint: Paint) -> String {
    match (&event.task, event.attempt) {
        (Some(task), Some(attempt)) if !event.text.contains("attempt ") => {
            format!("{} (attempt {attempt}): ", paint.bold(&harmless(task)))
        }
        (Some(task), _) => format!("{}: ", paint.bold(&harmless(task))),
        (None, _) => String::new(),
    }
}

/// Writes what an agent let happen, line by line.
pub(crate) fn agent_lines(event: &v1::AgentEvent) -> Vec<String> {
    use v1::agent_event::Kind;
    match &event.kind {
        Some(Kind::Output(output)) => String::from_utf8_lossy(&output.data)
            .lines()
            .map(one_line)
            .filter(|line| !line.is_empty())
            .collect(),
        Some(Kind::Phase(phase)) if phase.detail.is_empty() => {
            vec![format!("· {}", one_line(&phase.name))]
        }
        Some(Kind::Phase(phase)) => {
            vec![format!(
                "· {}: {}",
                one_line(&phase.name),
                one_line(&phase.detail)
            )]
        }
        Some(Kind::OutputTruncated(cut)) => {
            vec![format!("· {}", lost(cut.bytes))]
        }
        Some(Kind::Note(note)) => vec![format!("· {}", one_line(note))],
        Some(Kind::Activity(activity)) => {
            let mut talk = activity::Lines::default();
            let mut lines = talk.take(activity);
            lines.extend(talk.end());
            lines.into_iter().map(|(_, line)| line).collect()
        }
        Some(Kind::Capture(_)) | None => Vec::new(),
    }
}
