//! What `run` shows while it waits: a live table on a terminal, else one line for each event.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;

use crate::cli::client::Client;
use crate::cli::view::{Painter, Picture};
use crate::cli::{activity, find, show, watch};
use crate::output::{Output, one_line};

/// The run is asked for again at most this often, and less often the longer the answer takes.
const REFRESH_PAUSE: Duration = Duration::from_millis(150);
/// Asking takes at most a tenth of the time.
const REFRESH_SHARE: u32 = 10;

/// A run that stands still for so long is explained.
const STANDSTILL: Duration = Duration::from_secs(3);
/// Reasons that are told of a standstill, and remedies.
const REASONS_MAX: usize = 3;

/// What is shown of a run.
pub(crate) struct Progress {
    output: Output,
    client: Client,
    run: v1::Run,
    said: BTreeMap<String, String>,
    /// What model agents are saying, by task.
    talks: BTreeMap<String, activity::Lines>,
    notice: Option<String>,
    /// Why nothing runs, and since when that is so.
    standstill: Option<String>,
    still_since: Option<Instant>,
    painter: Option<Painter>,
    /// Something has happened since the run was asked for.
    stale: bool,
    refresh_after: Instant,
}

impl Progress {
    pub(crate) fn new(output: Output, client: Client, run: v1::Run, live: bool) -> Self {
        Self {
            output,
            client,
            run,
            said: BTreeMap::new(),
            talks: BTreeMap::new(),
            notice: None,
            standstill: None,
            still_since: None,
            painter: live.then(|| Painter::new(output)),
            stale: true,
            refresh_after: Instant::now(),
        }
    }

    /// Takes note of something that has happened; says it unless it is drawn, or `silent`.
    pub(crate) fn take(&mut self, item: &Item, silent: bool) {
        match item {
            Item::Journal(event) => {
                self.stale = true;
                // Book-keeping: the result was said just before.
                let dull = matches!(event.kind.as_str(), "lease_closed" | "run_archived");
                if self.painter.is_none() && !silent && !dull {
                    let submitted = show::time(self.run.submitted_at.as_ref());
                    let elapsed = show::time(event.at.as_ref())
                        .zip(submitted)
                        .map(|(at, submitted)| show::duration(show::between(submitted, at)));
                    let paint = self.output.talk_paint;
                    self.output.say(&format!(
                        "{:>7}  {}{}",
                        elapsed.unwrap_or_default(),
                        watch::subject(event, paint),
                        one_line(&event.text)
                    ));
                }
            }
            Item::Agent(event) => {
                use v1::agent_event::Kind;
                let last = event.event.as_ref().and_then(|said| match &said.kind {
                    Some(Kind::Activity(activity)) => {
                        // What an agent says comes in pieces of a line.
                        let talk = self.talks.entry(event.task.clone()).or_default();
                        let whole = talk.take(activity).pop();
                        talk.line().or(whole).map(|(_, line)| line)
                    }
                    _ => watch::agent_lines(said).pop(),
                });
                if let Some(last) = last {
                    self.said.insert(event.task.clone(), last);
                }
            }
        }
    }

    /// Tells the person something important; `None` takes it back.
    pub(crate) fn notice(&mut self, text: Option<&str>) {
        if self.painter.is_some() {
            self.notice = text.map(str::to_owned);
        } else if let Some(text) = text {
            self.output.complain(text);
        }
    }

    /// Goes on with another connection, since the coordinator is back.
    pub(crate) fn take_client(&mut self, client: Client) {
        self.client = client;
        self.stale = true;
        self.notice(None);
    }

    /// Asks for the run again if something has happened and the last time is long enough ago.
    /// Tells whether it is another.
    pub(crate) async fn refresh(&mut self) -> bool {
        let began = Instant::now();
        if !self.stale || began < self.refresh_after {
            return false;
        }
        let mut is_new = false;
        // A coordinator that is away is the follower's concern.
        if let Ok(run) = find::get(&self.client, &self.run.run).await {
            self.run = run;
            self.stale = false;
            is_new = true;
        }
        let took = began.elapsed();
        self.refresh_after = Instant::now() + REFRESH_PAUSE.max(took * REFRESH_SHARE);
        is_new
    }

    /// Gives the run as it was when it was last asked for.
    pub(crate) fn run(&self) -> &v1::Run {
        &self.run
    }

    /// Says why nothing runs although a task is ready, once that has been so for a while: its
    /// person may wait for ever for a worker that nobody has started.
    pub(crate) async fn explain_standstill(&mut self) {
        let Some(task) = standing_still(&self.run) else {
            self.still_since = None;
            self.standstill = None;
            return;
        };
        let now = Instant::now();
        if now.duration_since(*self.still_since.get_or_insert(now)) < STANDSTILL {
            return;
        }
        // It is asked again after as long: what would help may change.
        self.still_since = Some(now);
        let request = v1::ExplainTaskRequest {
            run: self.run.run.clone(),
            task: task.to_owned(),
        };
        let Ok(said) = self.client.operator().explain_task(request).await else {
            return;
        };
        let text = standstill(task, &said.into_inner());
        if let Some(text) = text.as_ref().filter(|_| self.painter.is_none())
            && self.standstill.as_ref() != Some(text)
        {
            self.output.complain(text);
        }
        self.standstill = text;
    }

    /// Draws the live view, if there is one.
    pub(crate) fn draw(&mut self) {
        if let Some(painter) = &mut self.painter {
            let picture = Picture {
                run: &self.run,
                said: &self.said,
                now: Timestamp::now(),
                notice: self.notice.as_deref().or(self.standstill.as_deref()),
            };
            let (width, height) = painter.room();
            painter.draw(&picture.lines(width, height, self.output.talk_paint));
        }
    }

    /// Takes the live view away, since what is left is the summary's, and gives the connection.
    pub(crate) fn finish(mut self) -> Client {
        if let Some(painter) = &mut self.painter {
            painter.clear();
        }
        self.client
    }
}

/// Says in two lines why a task waits and what would help; `None` if nothing is known.
fn standstill(task: &str, said: &v1::ExplainTaskResponse) -> Option<String> {
    let joined = |texts: &[String]| {
        let texts = texts.iter().take(REASONS_MAX).map(|text| one_line(text));
        texts.collect::<Vec<_>>().join("; ")
    };
    let (why, help) = (joined(&said.reasons), joined(&said.remedies));
    let known = !why.is_empty() && !help.is_empty();
    known.then(|| format!("{}: {why}\nwhat would help: {help}", one_line(task)))
}

/// Gives the first task that is ready while none of its run is at work.
fn standing_still(run: &v1::Run) -> Option<&str> {
    let works = |task: &v1::Task| matches!(task.state.as_str(), "leased" | "verifying" | "basing");
    if show::has_ended(run) || run.tasks.iter().any(works) {
        return None;
    }
    let ready = run.tasks.iter().find(|task| task.state == "ready");
    ready.map(|task| task.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    #[test]
    fn a_run_stands_still_when_a_task_is_ready_and_none_is_at_work() {
        let run = |states: &[&str]| v1::Run {
            state: "active".to_owned(),
            tasks: states
                .iter()
                .map(|state| canned::task(state, state))
                .collect(),
            ..v1::Run::default()
        };
        let still = run(&["succeeded", "blocked", "ready"]);
        assert_eq!(standing_still(&still), Some("ready"));
        assert_eq!(standing_still(&run(&["ready", "leased"])), None);
        assert_eq!(standing_still(&run(&["ready", "verifying"])), None);
        assert_eq!(standing_still(&run(&["succeeded"])), None);
        let ended = v1::Run {
            state: "cancelled".to_owned(),
            ..still
        };
        assert_eq!(standing_still(&ended), None);
    }

    #[test]
    fn a_standstill_is_told_with_all_its_reasons() {
        let said = |reasons: &[&str], remedies: &[&str]| v1::ExplainTaskResponse {
            reasons: reasons.iter().map(ToString::to_string).collect(),
            remedies: remedies.iter().map(ToString::to_string).collect(),
            ..v1::ExplainTaskResponse::default()
        };
        let full = said(
            &["the workers are busy", "its disk is full"],
            &["wait", "mend it"],
        );
        assert_eq!(
            standstill("a", &full).unwrap(),
            "a: the workers are busy; its disk is full\nwhat would help: wait; mend it"
        );
        assert_eq!(standstill("a", &said(&["it is over"], &[])), None);
    }
}
