//! `coordinator status`.

use jiff::Timestamp;
use muster_proto::v1;
use serde_json::json;

use super::arguments::Status;
use super::context::{Context, Session};
use super::error::{Exit, Kind, Result};
use super::table::Table;
use super::{attention, codex_par, conflicts, find, json, show, summary};
use crate::output::{Paint, harmless};

pub(crate) async fn status(context: &Context, options: Status) -> Result<Exit> {
    if let Some(dir) = &options.dir {
        let folder = codex_par::Folder::new(dir);
        return codex_par::status(context, &folder, options.watch, options.json).await;
    }
    match context.session().await {
        Ok(session) => {
            let shown = match &options.run {
                Some(run) => one(context, &session, run, options.json).await,
                None => list(context, &session, &options).await,
            };
            session.close().await;
            shown.map(|()| Exit::Success)
        }
        // Nothing runs here, and nothing ever has: that is an answer, not an error.
        Err(error)
            if options.run.is_none()
                && error.kind() == Kind::Connection
                && context.local_home().is_some() =>
        {
            error.mention(context.output);
            if options.json {
                context
                    .output
                    .json(&json!({ "coordinator": null, "runs": [] }))?;
            }
            Ok(Exit::Success)
        }
        Err(error) => Err(error),
    }
}

async fn one(context: &Context, session: &Session, run: &str, as_json: bool) -> Result<()> {
    let name = find::run(&session.client, Some(run)).await?;
    let run = find::get(&session.client, &name).await?;
    let found = conflicts::of_run(&session.client, &run).await?;
    let now = Timestamp::now();
    let asked = attention::asked(&session.client, &name, &context.program, now).await?;
    if as_json {
        context
            .output
            .json(&conflicts::beside(json::run(&run), &found))?;
    } else {
        let paint = context.output.data_paint;
        let place = summary::Place::of(context);
        context
            .output
            .data(&(attention::text(&asked, paint) + &summary::text(&run, &place, now, paint)))?;
        conflicts::show(context, &run, &found)?;
    }
    Ok(())
}

async fn list(context: &Context, session: &Session, options: &Status) -> Result<()> {
    let request = v1::ListRunsRequest {
        limit: options.limit.max(1),
        page_token: String::new(),
    };
    let listed = session
        .client
        .operator()
        .list_runs(request)
        .await?
        .into_inner();
    let info = session.client.info();
    let now = Timestamp::now();
    // A home that was opened to be read has no workers, and its unfinished runs wait for `run`.
    let with_workers = !session.is_own();
    let mut concerns = attention::look(
        &session.client,
        &listed.runs,
        with_workers,
        &context.program,
        now,
    )
    .await?;
    if session.is_own() {
        concerns.retain(|concern| concern.kind != attention::Kind::Waits);
    }
    if options.json {
        let attention: Vec<_> = concerns.iter().map(attention::json).collect();
        let runs: Vec<_> = listed.runs.iter().map(json::summary).collect();
        let coordinator = json!({
            "address": session.client.address(),
            "mode": info.mode,
            "epoch": info.epoch,
            "workers": info.workers_connected,
            "slots": info.slots,
            "live_runs": info.live_runs,
        });
        context
            .output
            .json(&json!({ "coordinator": coordinator, "attention": attention, "runs": runs }))?;
        return Ok(());
    }
    if session.is_own() {
        context.output.say(&format!(
            "no coordinator runs on {}",
            context.home.display()
        ));
    } else {
        context.output.say(&format!(
            "coordinator at {}: {}, {}",
            session.client.address(),
            show::counted(info.workers_connected as usize, "worker"),
            show::counted(info.slots as usize, "slot"),
        ));
    }
    if listed.runs.is_empty() {
        context
            .output
            .say("there is no run yet; `coordinator run PLAN` makes one");
        return Ok(());
    }
    let paint = context.output.data_paint;
    let leading = attention::text(&concerns, paint);
    if !leading.is_empty() {
        context.output.data(&leading)?;
    }
    context
        .output
        .data(&table(&listed.runs, now, paint).text())?;
    let unfinished = listed.runs.iter().find(|run| !show::is_over(&run.state));
    if let Some(run) = unfinished.filter(|_| session.is_own()) {
        context.output.say(&format!(
            "go on with what is not finished: {} run --resume {}",
            context.program, run.run
        ));
    }
    if !listed.next_page_token.is_empty() {
        context.output.say("there are more; `--limit N` shows them");
    }
    Ok(())
}

fn table(runs: &[v1::RunSummary], now: Timestamp, paint: Paint) -> Table {
    let mut table = Table::new(
        &["RUN", "STATE", "TASKS", "SUBMITTED", "TIME"].map(|heading| paint.dim(heading)),
    );
    for run in runs {
        let total: u32 = run.tasks.values().sum();
        let succeeded = run.tasks.get("succeeded").copied().unwrap_or_default();
        let submitted = show::time(run.submitted_at.as_ref());
        let ended = show::time(run.ended_at.as_ref()).unwrap_or(now);
        table.row(vec![
            harmless(&run.run).into_owned(),
            show::state(paint, &run.state),
            format!("{succeeded}/{total}"),
            submitted.map(show::local_time).unwrap_or_default(),
            submitted
                .map(|submitted| show::duration(show::between(submitted, ended)))
                .unwrap_or_default(),
        ]);
    }
    table
}
