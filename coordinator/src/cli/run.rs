//! `coordinator run`.

mod progress;
mod repeat;

use std::time::Duration;

use jiff::Timestamp;
use muster_git::Git;
use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;

use super::arguments::Run;
use super::client::Client;
use super::context::{self, Context, Started};
use super::error::{CliError, Exit, Kind, Result};
use super::follow::{self, News, Wish};
use super::interrupt::{Interrupt, Interrupts};
use super::submission::{self, Submission};
use super::{codex_par, conflicts, find, json, logging, show, summary};
use crate::app::{self, App};
use crate::config::{Config, Flags};
use crate::plan::{Repo, TaskEntry};
use crate::pool::local::Parting;

use progress::Progress;
use repeat::Begun;

/// How often the picture moves while nothing happens: times grow.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// The coordinator of another `run` that is away for so long has ended with it.
const TAKE_OVER_AFTER: Duration = Duration::from_secs(1);
/// Coordinators that end just when we have found them are replaced so often.
const HOSTS_MAX: u32 = 5;
const HOST_PAUSE: Duration = Duration::from_millis(200);

/// The coordinator of this command: someone else's, or its own.
struct Host {
    client: Client,
    own: Option<App>,
    /// What an own one is started with.
    config: Config,
}

pub(crate) async fn run(context: &Context, options: Run) -> Result<Exit> {
    let flags = Flags {
        slots: options.slots,
        ..Flags::default()
    };
    let config = context.config(flags)?.config;
    // What is wrong with the plan is said before anything is started.
    let read = match &options.plan {
        Some(plan) => Some(submission::read_plan(plan, &config.agents)?),
        None => None,
    };
    let git = Git::find().await?;
    let mut interrupts = Interrupts::listen()?;
    let admitted = admitted(
        context,
        &config,
        &git,
        read.as_ref(),
        &options,
        &mut interrupts,
    );
    let Some((mut host, name)) = Box::pin(admitted).await? else {
        return Ok(Exit::Interrupted);
    };
    let place = summary::Place {
        of_folder: read
            .as_ref()
            .is_some_and(|read| matches!(read.plan.document.repo, Some(Repo::Folder(_)))),
        ..summary::Place::of(context)
    };
    let wanted = Wanted {
        summary: (!options.json).then_some(place),
        files: options.dir.as_deref().map(codex_par::Folder::new),
        entries: read.map_or_else(Vec::new, |read| read.plan.document.tasks),
    };
    let ended = Box::pin(hosted(context, &mut host, &name, wanted, interrupts)).await;
    host.end(context, parting(&ended)).await;
    ended
}

/// After a first interrupt nothing is held any more; whoever interrupts twice wants the agents ended,
/// and so does an error: other runs of the home could take hours to finish.
fn parting(ended: &Result<Exit>) -> Parting {
    match ended {
        Ok(Exit::Interrupted) | Err(_) => Parting::Stop,
        Ok(_) => Parting::Drain,
    }
}

/// Finds or starts a coordinator and has the run there, by its name; `None` if the person has
/// changed their mind.
async fn admitted(
    context: &Context,
    config: &Config,
    git: &Git,
    read: Option<&submission::ReadPlan>,
    options: &Run,
    interrupts: &mut Interrupts,
) -> Result<Option<(Host, String)>> {
    let submission = match read {
        Some(read) => {
            let repo = options.source.repo.as_deref();
            let found = Submission::find(git, context.output, read, repo, &config.agents);
            Some(found.await?)
        }
        None => None,
    };
    // Under which number we have submitted, so that a lost answer makes no second run.
    let mut ours = None;
    let mut tries = 0;
    loop {
        tries += 1;
        let host = Host::find(context, config.clone(), options.slots.is_some()).await?;
        let begun = match (&submission, &options.source.idempotency_key) {
            (Some(submission), None) => {
                let client = &host.client;
                repeat::begin(context, client, submission, options, &mut ours, interrupts).await
            }
            (Some(submission), Some(key)) => submission
                .submit_as(&host.client, key.clone())
                .await
                .map(|submitted| Begun::Run(submitted.run)),
            (None, _) => find::run(&host.client, options.resume.as_deref())
                .await
                .map(Begun::Run),
        };
        match begun {
            Ok(Begun::Run(name)) => return Ok(Some((host, name))),
            Ok(Begun::Left) => {
                host.end(context, Parting::Stop).await;
                return Ok(None);
            }
            // The other `run` whose coordinator this was has ended meanwhile.
            Err(error)
                if error.kind() == Kind::Connection
                    && host.own.is_none()
                    && context.local_home().is_some()
                    && tries < HOSTS_MAX =>
            {
                tokio::time::sleep(HOST_PAUSE).await;
            }
            Err(error) => {
                host.end(context, Parting::Stop).await;
                return Err(error);
            }
        }
    }
}

/// What a person gets of a run.
struct Wanted {
    /// A summary, unless all is printed as JSON.
    summary: Option<summary::Place>,
    /// The files of codex-par.
    files: Option<codex_par::Folder>,
    /// The plan's tasks, if the plan is at hand.
    entries: Vec<TaskEntry>,
}

async fn hosted(
    context: &Context,
    host: &mut Host,
    name: &str,
    wanted: Wanted,
    interrupts: Interrupts,
) -> Result<Exit> {
    let followed = follow(context, host, name, &wanted, interrupts).await?;
    let mut run = match followed {
        Followed::Ended(run) => run,
        Followed::Interrupted => {
            let program = &context.program;
            context.output.complain(&if host.own.is_some() {
                format!("stopped; nothing is lost. Go on with: {program} run --resume {name}")
            } else {
                format!("run {name} goes on without us; follow it with: {program} watch {name}")
            });
            return Ok(Exit::Interrupted);
        }
    };
    if let Some(app) = host.own.as_ref().filter(|_| run.mirror.is_some()) {
        app.mirrored().await;
        *run = find::get(&host.client, name).await?;
    }
    let found = conflicts::of_run(&host.client, &run).await?;
    match wanted.summary {
        None => context
            .output
            .json(&conflicts::beside(json::result(&run), &found))?,
        Some(place) => {
            let paint = context.output.data_paint;
            let text = summary::text(&run, &place, Timestamp::now(), paint);
            context.output.data(&text)?;
            conflicts::show(context, &run, &found)?;
        }
    }
    if let Some(app) = &host.own {
        // Runs that others have submitted meanwhile are finished, too.
        wait_for_others(context, &host.client, app, name).await?;
    }
    Ok(summary::exit(&run))
}

impl Host {
    /// Becomes the client of the coordinator that holds the home, or starts one.
    async fn find(context: &Context, config: Config, slots_given: bool) -> Result<Self> {
        let Some(home) = context.local_home() else {
            let client = context.client().await?;
            return Ok(Self {
                client,
                own: None,
                config,
            });
        };
        logging::embedded(home, &config.log);
        let started = context.connect_or_start(app::Mode::Embedded, config.slots, config.clone());
        match started.await? {
            context::Host::Own(app) => {
                let client = Client::connect(&context.whereabouts).await?;
                let slots = show::counted(config.slots as usize, "slot");
                context.output.say(&format!(
                    "started a coordinator at {} with {slots} on {}",
                    client.address(),
                    home.display()
                ));
                Ok(Self {
                    client,
                    own: Some(*app),
                    config,
                })
            }
            context::Host::Theirs(client) => {
                let address = client.address();
                context
                    .output
                    .say(&format!("using the coordinator at {address}"));
                if slots_given {
                    context
                        .output
                        .say("warning: `--slots` is ignored: that coordinator has its own workers");
                }
                Ok(Self {
                    client: *client,
                    own: None,
                    config,
                })
            }
        }
    }

    /// Goes on with the runs of the home in this process, if the coordinator has gone that did so.
    async fn take_over(&mut self, context: &Context) -> Result<()> {
        let of_a_run = self.client.info().mode == "run";
        if self.own.is_some() || context.local_home().is_none() || !of_a_run {
            return Ok(());
        }
        let listen = self.config.listen_of_run();
        let (slots, config) = (self.config.slots, self.config.clone());
        // If it only restarts, or someone else was faster, there is nothing to do.
        if let Started::Own(app) = context
            .start(app::Mode::Embedded, listen, slots, config)
            .await?
        {
            self.client = Client::connect(&context.whereabouts).await?;
            self.own = Some(*app);
        }
        Ok(())
    }

    async fn end(self, context: &Context, parting: Parting) {
        drop(self.client);
        let Some(app) = self.own else {
            return;
        };
        let staying = app.empty_pools(parting).await;
        if !staying.is_empty() {
            context.output.say(&format!(
                "warning: {} could not be given back yet: {}; the next coordinator of this home \
                 does so",
                show::counted(staying.len(), "allocation"),
                staying.join(", ")
            ));
        }
        if let Err(error) = app.stop(parting).await {
            // Everything that was promised is in the journal already.
            context.could_not_go_on(error).report(context.output);
        }
    }
}

enum Followed {
    Ended(Box<v1::Run>),
    Interrupted,
}

/// Follows the run to its end, or to the person's patience's.
async fn follow(
    context: &Context,
    host: &mut Host,
    name: &str,
    wanted: &Wanted,
    mut interrupts: Interrupts,
) -> Result<Followed> {
    let run = find::get(&host.client, name).await?;
    let as_json = wanted.summary.is_none();
    let live = !as_json && context.output.talk_is_terminal;
    let files = wanted.files.clone();
    let mut recorder = files
        .map(|folder| codex_par::Recorder::start(folder, &run, &wanted.entries))
        .transpose()?;
    let wish = Wish::whole(name, live || recorder.is_some());
    let mut news = follow::start(host.client.clone(), context.whereabouts.clone(), wish);
    let mut progress = Progress::new(context.output, host.client.clone(), run, live);
    let mut ticks = tokio::time::interval(REDRAW_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut draining = false;
    let mut away_since: Option<tokio::time::Instant> = None;
    let ended = loop {
        tokio::select! {
            next = news.recv() => match next {
                None => break Ok(true),
                Some(Err(error)) => break Err(error),
                Some(Ok(News::Away)) => {
                    progress.notice(Some("the coordinator is away; waiting for it"));
                    away_since = Some(tokio::time::Instant::now());
                }
                Some(Ok(News::Back(client))) => {
                    progress.take_client(*client);
                    away_since = None;
                }
                Some(Ok(News::Item { seq, cursor, item })) => {
                    if as_json && matches!(*item, Item::Journal(_)) {
                        context.output.json(&json::watched(name, seq, &cursor, &item))?;
                    }
                    progress.take(&item, as_json);
                    if let Some(recorder) = &mut recorder {
                        recorder.take(&item);
                    }
                }
            },
            _ = ticks.tick() => {
                let is_new = progress.refresh().await;
                if let Some(recorder) = recorder.as_mut().filter(|_| is_new) {
                    recorder.settle(progress.run());
                }
                progress.explain_standstill().await;
                progress.draw();
                if away_since.is_some_and(|since| since.elapsed() > TAKE_OVER_AFTER) {
                    away_since = None;
                    host.take_over(context).await?;
                }
            }
            () = drained(host, draining) => break Ok(false),
            () = ended_by_itself(host) => break Err(CliError::internal(anyhow::anyhow!(
                "the coordinator of run {name} has ended; nothing that was told is lost"
            ))
            .hint(format!("go on with: {} run --resume {name}", context.program))),
            interrupt = interrupts.next() => match (&host.own, interrupt) {
                (Some(app), Interrupt::Ask) if !draining => {
                    draining = true;
                    app.drain().await;
                    progress.notice(Some(
                        "finishing what runs, starting nothing new; Ctrl-C again stops at once",
                    ));
                }
                _ => break Ok(false),
            },
        }
    };
    let client = progress.finish();
    match ended {
        Ok(true) => {
            let run = find::get(&client, name).await?;
            if let Some(mut recorder) = recorder {
                recorder.settle(&run);
                recorder.finish()?;
            }
            Ok(Followed::Ended(Box::new(run)))
        }
        Ok(false) => Ok(Followed::Interrupted),
        Err(error) => Err(error),
    }
}

/// Waits until nothing runs any more, once the person has asked for that.
async fn drained(host: &Host, draining: bool) {
    match &host.own {
        Some(app) if draining => app.drained().await,
        _ => std::future::pending().await,
    }
}

/// Waits until the coordinator in this process cannot go on, or was told to end.
async fn ended_by_itself(host: &Host) {
    match &host.own {
        Some(app) => app.asked_to_end().await,
        None => std::future::pending().await,
    }
}

/// Stays while other runs are unfinished: they have no other coordinator.
async fn wait_for_others(context: &Context, client: &Client, app: &App, name: &str) -> Result<()> {
    let request = v1::GetInfoRequest {
        version: Some(v1::ProtocolVersion::current(crate::SOFTWARE)),
    };
    let live = client
        .operator()
        .get_info(request)
        .await?
        .into_inner()
        .live_runs;
    if live == 0 {
        return Ok(());
    }
    let mut interrupts = Interrupts::listen()?;
    let listed = v1::ListRunsRequest {
        limit: 100,
        page_token: String::new(),
    };
    let listed = client.operator().list_runs(listed).await?.into_inner();
    let others: Vec<&str> = listed
        .runs
        .iter()
        .filter(|run| run.run != name && !run.archived)
        .filter(|run| !matches!(run.state.as_str(), "succeeded" | "failed" | "cancelled"))
        .map(|run| run.run.as_str())
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    context.output.say(&format!(
        "staying until other runs have ended ({}); Ctrl-C stops them, to be resumed later",
        others.join(", ")
    ));
    tokio::select! {
        () = app.finished() => {}
        _ = interrupts.next() => {}
    }
    Ok(())
}
