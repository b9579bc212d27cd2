//! The live table: keys and news go in, pictures come out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossterm::event::{Event as TerminalEvent, EventStream};
use futures::StreamExt as _;
use jiff::Timestamp;
use muster_proto::v1;
use tokio::sync::mpsc;

use super::keys::Key;
use super::model::{Event, Model};
use super::terminal::Screen;
use super::view::Theme;
use crate::cli::client::Client;
use crate::cli::context::{Context, Session};
use crate::cli::error::{CliError, Exit, Result};
use crate::cli::follow::{self, News, Wish};
use crate::cli::interrupt::Interrupts;
use crate::cli::{find, show, summary};

/// How often times grow.
const TICK: Duration = Duration::from_millis(100);
/// News taken before the next picture, so that a flood of them does not stop the keys.
const NEWS_AT_ONCE: usize = 256;
/// The run is asked for again at most this often, and less often the longer the answer takes.
const REFRESH_PAUSE: Duration = Duration::from_millis(150);
/// Asking takes at most a tenth of the time.
const REFRESH_SHARE: u32 = 10;
/// What would help may change: an explanation that someone looks at is asked for again so often, and
/// so is a run that could not be had.
const PAUSE_AFTER_ANSWER: Duration = Duration::from_secs(1);
/// Events of an earlier attempt's log that are kept; older ones are more than a window shows.
const LOG_EVENTS: usize = 1_000;
/// Answers that wait: one of each kind is asked for at a time.
const ANSWERS_MAX: usize = 8;

/// Shows a run until the person leaves, or until it has ended and nobody has touched a key.
pub(super) async fn watch(
    context: &Context,
    session: &Session,
    run: v1::Run,
    stay: bool,
    mut interrupts: Interrupts,
) -> Result<Exit> {
    let theme = Theme {
        colours: context.output.data_paint.is_enabled(),
    };
    let stay = stay || show::has_ended(&run);
    let wish = Wish {
        after_seq: run.last_seq,
        follow_after_end: true,
        ..Wish::whole(&run.run, true)
    };
    let client = session.client.clone();
    let mut news = follow::start(client.clone(), context.whereabouts.clone(), wish);
    let mut table = Table::open(client, run, theme)?;
    let mut keys = EventStream::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut gone = None;
    let interrupted = loop {
        let mut at_once = true;
        tokio::select! {
            biased;
            _ = interrupts.next() => break true,
            key = keys.next() => match key {
                Some(Ok(event)) => table.terminal_event(&event)?,
                // The terminal has gone, and the person with it.
                Some(Err(_)) | None => break true,
            },
            answer = table.answers.recv() => if let Some(answer) = answer {
                table.answer(answer);
            },
            _ = ticks.tick() => {
                table.model.update(Event::Tick(Timestamp::now()));
            }
            next = news.recv(), if gone.is_none() => {
                at_once = false;
                gone = table.news(next, &mut news);
            }
        }
        if table.model.leaving {
            break false;
        }
        if show::has_ended(&table.model.run) && !stay && !table.model.touched {
            break false;
        }
        if let Some(error) = gone.take_if(|_| !show::has_ended(&table.model.run)) {
            drop(table);
            return Err(error);
        }
        table.ask();
        if at_once {
            table.draw()?;
        }
    };
    let run = std::mem::take(&mut table.model.run);
    // The person's own screen is back before anything is said.
    drop(table);
    if interrupted {
        return Ok(Exit::Interrupted);
    }
    said_goodbye(context, &run)?;
    Ok(summary::exit(&run))
}

/// Leaves on the person's own screen what they have seen last.
fn said_goodbye(context: &Context, run: &v1::Run) -> Result<()> {
    if show::has_ended(run) {
        let place = summary::Place::of(context);
        let text = summary::text(run, &place, Timestamp::now(), context.output.data_paint);
        context.output.data(&text)?;
    } else {
        context.output.say(&format!(
            "run {0} goes on; look at it again with: {1} watch {0}",
            run.run, context.program
        ));
    }
    Ok(())
}

/// Answers to what the table has asked.
enum Answer {
    Run(Result<Box<v1::Run>>),
    Explained(String, Option<v1::ExplainTaskResponse>),
    Read(String, Vec<v1::AgentEvent>),
}

struct Table {
    screen: Screen,
    model: Model,
    theme: Theme,
    client: Client,
    answers: mpsc::Receiver<Answer>,
    asker: mpsc::Sender<Answer>,
    asks_run: Option<Instant>,
    run_after: Instant,
    asks_explanation: bool,
    explain_after: Instant,
    reads: bool,
}

impl Table {
    fn open(client: Client, run: v1::Run, theme: Theme) -> Result<Self> {
        let screen = Screen::open()
            .map_err(|error| CliError::internal(error).while_doing("take the terminal"))?;
        let model = Model::new(run, Timestamp::now(), screen.size());
        let (asker, answers) = mpsc::channel(ANSWERS_MAX);
        let now = Instant::now();
        Ok(Self {
            screen,
            model,
            theme,
            client,
            answers,
            asker,
            asks_run: None,
            run_after: now,
            asks_explanation: false,
            explain_after: now,
            reads: false,
        })
    }

    fn terminal_event(&mut self, event: &TerminalEvent) -> Result<()> {
        match event {
            TerminalEvent::Key(key) => {
                if let Some(key) = Key::of(*key) {
                    self.model.update(Event::Key(key));
                }
            }
            TerminalEvent::Resize(width, height) => {
                self.screen.clear().map_err(lost_terminal)?;
                self.model.update(Event::Resized(*width, *height));
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes news, and more of it if more is there. Gives why no more will come.
    fn news(
        &mut self,
        first: Option<Result<News>>,
        more: &mut mpsc::Receiver<Result<News>>,
    ) -> Option<CliError> {
        let mut next = first;
        for _ in 0..NEWS_AT_ONCE {
            match next {
                None => return Some(CliError::connection("the coordinator has said its last")),
                Some(Err(error)) => return Some(error),
                Some(Ok(News::Away)) => self.model.update(Event::Away),
                Some(Ok(News::Back(client))) => {
                    self.client = *client;
                    self.model.update(Event::Back);
                }
                Some(Ok(News::Item { item, .. })) => self.model.update(Event::Item(*item)),
            }
            match more.try_recv() {
                Ok(another) => next = Some(another),
                Err(_) => break,
            }
        }
        None
    }

    fn answer(&mut self, answer: Answer) {
        let now = Instant::now();
        match answer {
            Answer::Run(run) => {
                let took = self.asks_run.take().map(|since| now.duration_since(since));
                self.run_after = now + REFRESH_PAUSE.max(took.unwrap_or_default() * REFRESH_SHARE);
                match run {
                    Ok(run) => self.model.update(Event::Run(run)),
                    Err(_) => {
                        // That a coordinator is away is the follower's to tell.
                        self.model.stale = true;
                        self.run_after = now + PAUSE_AFTER_ANSWER;
                    }
                }
            }
            Answer::Explained(task, said) => {
                self.asks_explanation = false;
                self.explain_after = now + PAUSE_AFTER_ANSWER;
                self.model.unexplained = false;
                if let Some(said) = said {
                    self.model.update(Event::Explained(task, said));
                }
            }
            Answer::Read(task, events) => {
                self.reads = false;
                if !self.model.said.knows(&task) {
                    self.model.update(Event::Read(task, events));
                }
            }
        }
    }

    /// Asks the coordinator for what the model lacks, one question of each kind at a time.
    fn ask(&mut self) {
        let now = Instant::now();
        let (client, asker, run) = (&self.client, &self.asker, &self.model.run.run);
        if self.model.stale && self.asks_run.is_none() && now >= self.run_after {
            self.asks_run = Some(now);
            let (client, asker, run) = (client.clone(), asker.clone(), run.clone());
            // Items that come from now on make it stale again.
            self.model.stale = false;
            tokio::spawn(async move {
                let found = find::get(&client, &run).await.map(Box::new);
                drop(asker.send(Answer::Run(found)).await);
            });
        }
        if let Some(task) = self.model.to_explain()
            && !self.asks_explanation
            && (now >= self.explain_after || !self.model.unexplained)
        {
            self.asks_explanation = true;
            let (client, asker, task) = (client.clone(), asker.clone(), task.to_owned());
            let run = run.clone();
            tokio::spawn(async move {
                let request = v1::ExplainTaskRequest {
                    run,
                    task: task.clone(),
                };
                let said = client.operator().explain_task(request).await;
                let said = said.ok().map(tonic::Response::into_inner);
                drop(asker.send(Answer::Explained(task, said)).await);
            });
        }
        if let Some(task) = self.model.to_read()
            && !self.reads
        {
            self.reads = true;
            let (client, asker, task) = (client.clone(), asker.clone(), task.to_owned());
            let run = run.clone();
            tokio::spawn(async move {
                let events = read(&client, run, &task).await;
                drop(asker.send(Answer::Read(task, events)).await);
            });
        }
    }

    fn draw(&mut self) -> Result<()> {
        self.screen
            .draw(&self.model, self.theme)
            .map_err(lost_terminal)
    }
}

/// Reads the end of what a task's last attempt has said; nothing if it cannot be read.
async fn read(client: &Client, run: String, task: &str) -> Vec<v1::AgentEvent> {
    let request = v1::ReadLogRequest {
        run,
        task: task.to_owned(),
        ..v1::ReadLogRequest::default()
    };
    let mut kept = VecDeque::new();
    if let Ok(response) = client.operator().read_log(request).await {
        let mut stream = response.into_inner();
        while let Ok(Some(response)) = stream.message().await {
            kept.extend(response.events);
            kept.drain(..kept.len().saturating_sub(LOG_EVENTS));
        }
    }
    kept.into()
}

fn lost_terminal(error: std::io::Error) -> CliError {
    CliError::internal(error).while_doing("draw on the terminal")
}
