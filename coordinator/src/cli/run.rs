//! `coordinator run`.

mod progress;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use muster_git::Git;
use muster_proto::v1;

use super::arguments::Run;
use super::client::Client;
use super::context::{self, Context};
use super::error::{CliError, Exit, Result};
use super::follow::{self, News, Wish};
use super::interrupt::{Interrupt, Interrupts};
use super::submission::{self, Request};
use super::{find, json, logging, show, summary};
use crate::app::{self, App};
use crate::config::Flags;
use crate::pool::local::Parting;

use progress::Progress;

/// How often the picture moves while nothing happens: times grow.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// The coordinator of this command: someone else's, or its own.
struct Host {
    client: Client,
    own: Option<App>,
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
    let interrupts = Interrupts::listen()?;
    let host = host(context, config, options.slots.is_some()).await?;
    let ended = Box::pin(hosted(context, &host, &git, read, &options, interrupts)).await;
    let Host { client, own } = host;
    drop(client);
    if let Some(app) = own
        && let Err(error) = app.stop(parting(&ended)).await
    {
        // Everything that was promised is in the journal already.
        let message = format!("the coordinator did not stop in order: {error}");
        context.output.complain(&message);
    }
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

async fn hosted(
    context: &Context,
    host: &Host,
    git: &Git,
    read: Option<submission::ReadPlan>,
    options: &Run,
    interrupts: Interrupts,
) -> Result<Exit> {
    let name = match &read {
        Some(read) => {
            let request = Request {
                repo: options.source.repo.clone(),
                idempotency_key: options.source.idempotency_key.clone(),
            };
            let submitted =
                submission::submit(&host.client, git, context.output, read, &request).await?;
            for warning in &submitted.warnings {
                context.output.say(&format!("warning: {warning}"));
            }
            submitted.run
        }
        None => find::run(&host.client, options.resume.as_deref()).await?,
    };
    let followed = follow(context, host, &name, options.json, interrupts).await?;
    let run = match followed {
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
    if options.json {
        context.output.json(&json::result(&run))?;
    } else {
        let place = summary::Place::of(context);
        let paint = context.output.data_paint;
        context
            .output
            .data(&summary::text(&run, &place, Timestamp::now(), paint))?;
    }
    if let Some(app) = host.own.as_ref().filter(|_| run.state != "cancelled") {
        // Runs that others have submitted meanwhile are finished, too.
        wait_for_others(context, &host.client, app, &name).await?;
    }
    Ok(summary::exit(&run))
}

/// Becomes the client of the coordinator that holds the home, or starts one.
async fn host(context: &Context, config: crate::config::Config, slots_given: bool) -> Result<Host> {
    let Some(home) = context.local_home() else {
        let client = context.client().await?;
        return Ok(Host { client, own: None });
    };
    make_home(home)?;
    logging::embedded(home, &config.log)?;
    let slots = config.slots;
    let started = context.connect_or_start(app::Mode::Embedded, slots, config);
    match started.await? {
        context::Host::Own(app) => {
            let client = Client::connect(&context.whereabouts).await?;
            let slots = show::counted(slots as usize, "slot");
            context.output.say(&format!(
                "started a coordinator at {} with {slots} on {}",
                client.address(),
                home.display()
            ));
            Ok(Host {
                client,
                own: Some(*app),
            })
        }
        context::Host::Theirs(client) => {
            said_to_be_client(context, &client, slots_given);
            Ok(Host {
                client: *client,
                own: None,
            })
        }
    }
}

fn said_to_be_client(context: &Context, client: &Client, slots_given: bool) {
    context
        .output
        .say(&format!("using the coordinator at {}", client.address()));
    if slots_given {
        context
            .output
            .say("warning: `--slots` is ignored: that coordinator has its own workers");
    }
}

/// Makes the home, which no one else may look into: it holds keys.
pub(crate) fn make_home(home: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(home)
        .map_err(|error| {
            CliError::new(super::error::Kind::User, error)
                .while_doing(format!("make the home {}", home.display()))
                .hint("`--home PATH` or MUSTER_HOME names another")
        })
}

enum Followed {
    Ended(Box<v1::Run>),
    Interrupted,
}

/// Follows the run to its end, or to the person's patience's.
async fn follow(
    context: &Context,
    host: &Host,
    name: &str,
    as_json: bool,
    mut interrupts: Interrupts,
) -> Result<Followed> {
    let run = find::get(&host.client, name).await?;
    let live = !as_json && context.output.talk_is_terminal;
    let wish = Wish::whole(name, live);
    let mut news = follow::start(host.client.clone(), context.whereabouts.clone(), wish);
    let mut progress = Progress::new(context.output, host.client.clone(), run, live);
    let mut ticks = tokio::time::interval(REDRAW_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            next = news.recv() => match next {
                None => break Ok(true),
                Some(Err(error)) => break Err(error),
                Some(Ok(News::Away)) => progress.notice(Some("the coordinator is away; waiting for it")),
                Some(Ok(News::Back(client))) => progress.take_client(*client),
                Some(Ok(News::Item { seq, cursor, item })) => {
                    if as_json {
                        context.output.json(&json::watched(name, seq, &cursor, &item))?;
                    }
                    progress.take(&item, as_json);
                }
            },
            _ = ticks.tick() => {
                progress.refresh().await;
                progress.draw();
            }
            () = drained(host, draining) => break Ok(false),
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
        Ok(true) => Ok(Followed::Ended(Box::new(find::get(&client, name).await?))),
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
