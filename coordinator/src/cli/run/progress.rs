//! What `run` shows while it waits: a live table on a terminal, else one line for each event.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;

use crate::cli::client::Client;
use crate::cli::view::{Painter, Picture};
use crate::cli::{find, show, watch};
use crate::output::{Output, one_line};

/// The run is asked for again at most this often, and less often the longer the answer takes.
const REFRESH_PAUSE: Duration = Duration::from_millis(150);
/// Asking takes at most a tenth of the time.
const REFRESH_SHARE: u32 = 10;

/// What is shown of a run.
pub(crate) struct Progress {
    output: Output,
    client: Client,
    run: v1::Run,
    said: BTreeMap<String, String>,
    notice: Option<String>,
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
            notice: None,
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
                let last = event
                    .event
                    .as_ref()
                    .map(watch::agent_lines)
                    .and_then(|mut lines| lines.pop());
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
    pub(crate) async fn refresh(&mut self) {
        let began = Instant::now();
        if !self.stale || began < self.refresh_after {
            return;
        }
        // A coordinator that is away is the follower's concern.
        if let Ok(run) = find::get(&self.client, &self.run.run).await {
            self.run = run;
            self.stale = false;
        }
        let took = began.elapsed();
        self.refresh_after = Instant::now() + REFRESH_PAUSE.max(took * REFRESH_SHARE);
    }

    /// Draws the live view, if there is one.
    pub(crate) fn draw(&mut self) {
        if let Some(painter) = &mut self.painter {
            let picture = Picture {
                run: &self.run,
                said: &self.said,
                now: Timestamp::now(),
                notice: self.notice.as_deref(),
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
