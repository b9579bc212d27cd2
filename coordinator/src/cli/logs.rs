//! `coordinator logs`.

mod print;
mod raw;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;
use muster_proto::v1::work;
use serde_json::Value;

use super::arguments::Logs;
use super::client::Client;
use super::context::{Context, Session};
use super::error::{CliError, Exit, Result};
use super::follow::{self, News, Patience, Wish};
use super::interrupt::Interrupts;
use super::{find, json};
use crate::plan::Duration;
use print::{Piece, Printer, Tail};
use raw::Raw;

pub(crate) async fn logs(context: &Context, options: Logs) -> Result<Exit> {
    let since = since(options.since.as_deref(), Timestamp::now())?;
    let session = context.session().await?;
    let ended = Box::pin(read(context, &session, &options, since)).await;
    session.close().await;
    ended
}

/// Reads `--since`: a time, or how long ago it was. Gives milliseconds since 1970.
pub(super) fn since(text: Option<&str>, now: Timestamp) -> Result<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    let ago = Duration::parse(text).and_then(|ago| {
        let ago = SignedDuration::from_millis(i64::try_from(ago.0.ms()).ok()?);
        now.checked_sub(ago).ok()
    });
    let at = ago.or_else(|| text.parse::<Timestamp>().ok());
    let at = at.ok_or_else(|| {
        CliError::user(format!(
            "`--since {text}` is neither a time nor a length of time"
        ))
        .hint("write it as `10m`, `1h30m` or `2026-11-21T09:00:00Z`")
    })?;
    Ok(Some(u64::try_from(at.as_millisecond()).unwrap_or_default()))
}

async fn read(
    context: &Context,
    session: &Session,
    options: &Logs,
    since: Option<u64>,
) -> Result<Exit> {
    let run = find::run(&session.client, Some(&options.run)).await?;
    let mut reader = Reader {
        context,
        client: session.client.clone(),
        interrupts: Interrupts::listen()?,
        run,
        options,
        since,
        // Without a coordinator nothing more will come.
        follow: options.follow && !session.is_own(),
        printer: Printer::of_one(context.output.data_paint).with_reasoning(options.reasoning),
        raw: options
            .raw
            .map(|which| Raw::new(which, context.output.data_is_terminal)),
        seen: BTreeMap::new(),
        newest: BTreeMap::new(),
    };
    let ended = if options.all || options.tasks.len() > 1 {
        reader.several().await?
    } else {
        let task = options.tasks.first().cloned().unwrap_or_default();
        let ended = reader.one(&task).await?;
        if reader.seen.is_empty() {
            context.output.say(&silence(&task, options.verify));
        }
        ended
    };
    let rest = reader.printer.end();
    reader.print(&rest)?;
    Ok(ended)
}

/// Says that there is nothing to show, and what there may be.
fn silence(task: &str, verify: bool) -> String {
    match (task, verify) {
        ("", _) => {
            "the integrated result has no verify that printed anything; name a task, or all \
                    with `--all`"
                .to_owned()
        }
        (task, true) => format!("no verify of task {task} has printed anything"),
        (task, false) => format!("task {task} has printed nothing"),
    }
}

struct Reader<'c> {
    context: &'c Context,
    client: Client,
    interrupts: Interrupts,
    run: String,
    options: &'c Logs,
    since: Option<u64>,
    follow: bool,
    printer: Printer,
    /// Writes the lines of the agent's protocol instead.
    raw: Option<Raw>,
    /// The last event that was taken of each lease.
    seen: BTreeMap<u64, u64>,
    /// The last lease of each task that anything was taken of.
    newest: BTreeMap<String, u64>,
}

/// How reading a log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Whole,
    Interrupted,
}

impl Reader<'_> {
    /// Shows the log of one attempt or verify, to its end if it is to be followed.
    async fn one(&mut self, task: &str) -> Result<Exit> {
        if let Some(lines) = self.options.tail {
            if self.tail(task, lines).await? == Read::Interrupted {
                return Ok(Exit::Interrupted);
            }
            if !self.follow {
                return Ok(Exit::Success);
            }
        }
        let follow = self.follow;
        match self.events(task, follow, &mut None).await? {
            Read::Whole => Ok(Exit::Success),
            Read::Interrupted => Ok(Exit::Interrupted),
        }
    }

    /// Shows the logs of several tasks, each line with its task; then, if they are to be followed,
    /// what is added until the run ends.
    async fn several(&mut self) -> Result<Exit> {
        if self.options.attempt.is_some() {
            return Err(CliError::user("`--attempt` needs one task"));
        }
        let run = find::get(&self.client, &self.run).await?;
        let known = run.tasks.iter().map(|task| task.name.as_str());
        let wanted: BTreeSet<&str> = if self.options.all {
            known.chain([""]).collect()
        } else {
            self.options.tasks.iter().map(String::as_str).collect()
        };
        if let Some(unknown) = wanted
            .iter()
            .find(|name| !name.is_empty() && !run.tasks.iter().any(|task| task.name == **name))
        {
            return Err(self.missing(CliError::user(format!(
                "no task {unknown:?} in run {}",
                run.run
            ))));
        }
        let paint = self.context.output.data_paint;
        self.printer = Printer::of_several(wanted.iter().copied(), paint)
            .with_reasoning(self.options.reasoning);
        for task in &run.tasks {
            let has_spoken = !task.attempts.is_empty() && wanted.contains(task.name.as_str());
            if has_spoken && self.past(&task.name).await? == Read::Interrupted {
                return Ok(Exit::Interrupted);
            }
        }
        if self.options.all && self.past("").await? == Read::Interrupted {
            return Ok(Exit::Interrupted);
        }
        if !self.follow {
            return Ok(Exit::Success);
        }
        self.follow(&wanted, run.last_seq).await
    }

    /// Shows what a task of several has said so far.
    async fn past(&mut self, task: &str) -> Result<Read> {
        match self.options.tail {
            Some(lines) => self.tail(task, lines).await,
            None => self.events(task, false, &mut None).await,
        }
    }

    /// Shows what tasks say from now on, until the run ends.
    async fn follow(&mut self, wanted: &BTreeSet<&str>, after_seq: u64) -> Result<Exit> {
        let wish = Wish {
            after_seq,
            ..Wish::whole(&self.run, true)
        };
        // Leases only grow: one before that whose log was shown is of an earlier attempt.
        let shown = self.newest.clone();
        let mut news = follow::start(self.client.clone(), self.context.whereabouts.clone(), wish);
        loop {
            let next = tokio::select! {
                next = news.recv() => next,
                _ = self.interrupts.next() => return Ok(Exit::Interrupted),
            };
            let of = match next {
                None => return Ok(Exit::Success),
                Some(Err(error)) => return Err(error),
                Some(Ok(News::Away)) => {
                    self.away();
                    continue;
                }
                Some(Ok(News::Back(_))) => continue,
                Some(Ok(News::Item { item, .. })) => match *item {
                    Item::Journal(_) => continue,
                    Item::Agent(of) => of,
                },
            };
            let kind = of.work.as_ref().and_then(|work| work.kind.as_ref());
            let is_verify = matches!(kind, Some(work::Kind::Verify(_)));
            let is_asked = wanted.contains(of.task.as_str())
                && (of.task.is_empty() || is_verify == self.options.verify);
            let Some(event) = of.event.filter(|_| is_asked) else {
                continue;
            };
            if shown.get(&of.task).is_some_and(|newest| of.lease < *newest) {
                continue;
            }
            self.take(&of.task, of.lease, event, &mut None)?;
        }
    }

    /// Shows the end of what a log holds now.
    async fn tail(&mut self, task: &str, lines: usize) -> Result<Read> {
        let mut kept = Some(Tail::new(lines));
        let read = self.events(task, false, &mut kept).await?;
        for event in kept.map(Tail::events).unwrap_or_default() {
            self.show(task, &event)?;
        }
        Ok(read)
    }

    /// Takes the events of a log, through broken connections, each once.
    async fn events(&mut self, task: &str, follow: bool, kept: &mut Option<Tail>) -> Result<Read> {
        let mut request = v1::ReadLogRequest {
            run: self.run.clone(),
            task: task.to_owned(),
            attempt: self.options.attempt.unwrap_or_default(),
            // What belongs to no task is the verify of the whole.
            verify: self.options.verify || task.is_empty(),
            after: 0,
            follow,
            after_lease: 0,
        };
        let mut patience = Patience::new();
        loop {
            let newest = self.newest.get(task).copied().unwrap_or_default();
            request.after_lease = newest;
            request.after = self.seen.get(&newest).copied().unwrap_or_default();
            let error = match self.once(task, &request, kept, &mut patience).await {
                Ok(read) => return Ok(read),
                // One of several tasks may not have been verified.
                Err(error)
                    if error.status() == Some(tonic::Code::NotFound)
                        && (self.options.all || self.options.tasks.len() > 1) =>
                {
                    return Ok(Read::Whole);
                }
                Err(error) if error.status() == Some(tonic::Code::NotFound) => {
                    return Err(self.missing(error));
                }
                Err(error) => error,
            };
            if follow::may_pass(&error) && patience.is_first() {
                self.away();
            }
            let client = tokio::select! {
                client = patience.reconnect(error, &self.context.whereabouts) => client?,
                _ = self.interrupts.next() => return Ok(Read::Interrupted),
            };
            self.client = client;
        }
    }

    async fn once(
        &mut self,
        task: &str,
        request: &v1::ReadLogRequest,
        kept: &mut Option<Tail>,
        patience: &mut Patience,
    ) -> Result<Read> {
        let response = self.client.operator().read_log(request.clone()).await?;
        let mut stream = response.into_inner();
        loop {
            let next = tokio::select! {
                next = stream.message() => next?,
                _ = self.interrupts.next() => return Ok(Read::Interrupted),
            };
            let Some(response) = next else {
                return Ok(Read::Whole);
            };
            patience.restore();
            for event in response.events {
                self.take(task, response.lease, event, kept)?;
            }
        }
    }

    /// Takes an event unless it was taken before.
    fn take(
        &mut self,
        task: &str,
        lease: u64,
        event: v1::AgentEvent,
        kept: &mut Option<Tail>,
    ) -> Result<()> {
        let newest = self.newest.entry(task.to_owned()).or_default();
        *newest = lease.max(*newest);
        let seen = self.seen.entry(lease).or_default();
        if event.number <= *seen {
            return Ok(());
        }
        *seen = event.number;
        if self.since.is_some_and(|since| event.at_ms < since) {
            return Ok(());
        }
        match kept {
            Some(tail) => tail.push(event),
            None => self.show(task, &event)?,
        }
        Ok(())
    }

    fn show(&mut self, task: &str, event: &v1::AgentEvent) -> Result<()> {
        if let Some(raw) = &mut self.raw {
            let output = self.context.output;
            if let Some(trouble) = raw.event(event, |bytes| output.bytes(bytes))? {
                output.complain(&trouble);
            }
            return Ok(());
        }
        if self.options.json {
            let mut value = json::agent_event(event);
            if let Value::Object(value) = &mut value {
                value.insert("task".to_owned(), (!task.is_empty()).then_some(task).into());
            }
            return Ok(self.context.output.json(&value)?);
        }
        let pieces = self.printer.event(task, event);
        self.print(&pieces)
    }

    fn print(&self, pieces: &[Piece]) -> Result<()> {
        let output = self.context.output;
        for piece in pieces {
            match piece {
                Piece::Data(text) => output.bytes(text.as_bytes())?,
                Piece::Talk(text) => output.say(&output.talk_paint.dim(text)),
            }
        }
        Ok(())
    }

    fn away(&self) {
        self.context
            .output
            .say("the coordinator is away; waiting for it");
    }

    fn missing(&self, error: CliError) -> CliError {
        error.hint(format!(
            "`{} status {}` lists its tasks and attempts",
            self.context.program, self.run
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_log_says_of_what_it_is() {
        assert_eq!(silence("", true), silence("", false));
        assert!(silence("", false).contains("--all"));
        assert!(silence("lint", true).contains("no verify of task lint"));
    }

    #[test]
    fn since_is_a_time_or_how_long_ago_it_was() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let at = |text: &str| since(Some(text), now).map(Option::unwrap_or_default);
        let nine = u64::try_from(now.as_millisecond() - 3_600_000).unwrap();
        assert_eq!(at("1h").unwrap(), nine);
        assert_eq!(at("2026-11-21T09:00:00Z").unwrap(), nine);
        assert_eq!(at("2026-11-21T10:00:00+01:00").unwrap(), nine);
        assert!(since(None, now).unwrap().is_none());
        assert!(at("yesterday").unwrap_err().to_string().contains("10m"));
    }
}
