//! `coordinator workers`.

use jiff::Timestamp;
use muster_proto::v1;
use serde_json::{Value, json};

use super::arguments::Workers;
use super::context::Context;
use super::error::{Exit, Result};
use super::show;
use super::table::Table;
use crate::output::{Paint, one_line};

pub(crate) async fn workers(context: &Context, options: Workers) -> Result<Exit> {
    let client = context.client().await?;
    let listed = client
        .operator()
        .list_workers(v1::ListWorkersRequest {})
        .await?
        .into_inner();
    if options.json {
        let workers: Vec<Value> = listed.workers.iter().map(described).collect();
        context.output.json(&json!({ "workers": workers }))?;
    } else if listed.workers.is_empty() {
        context.output.say("no worker has connected");
        context.output.say(&format!(
            "make a token with `{} token create --role worker --out FILE`, then start \
             `worker-agent --coordinator {} --token-file FILE`",
            context.program,
            client.address()
        ));
    } else {
        let (shown, gone): (Vec<_>, Vec<_>) = listed
            .workers
            .iter()
            .partition(|worker| options.all || !worker.gone);
        if !shown.is_empty() {
            let table = table(&shown, Timestamp::now(), context.output.data_paint);
            context.output.data(&table.text())?;
        }
        if !gone.is_empty() {
            context.output.say(&format!(
                "{} gone with their machines or jobs: `{} workers --all` lists them",
                show::counted(gone.len(), "worker"),
                context.program
            ));
        }
    }
    Ok(Exit::Success)
}

fn described(worker: &v1::Worker) -> Value {
    json!({
        "worker": worker.worker,
        "host": worker.host,
        "pool": worker.pool,
        "state": worker.state,
        "slots": worker.slots,
        "leases": worker.leases,
        "labels": worker.labels,
        "resources": worker.resources.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "agents": worker.agents,
        "programs": worker.programs.iter().map(program).collect::<Vec<_>>(),
        "heard_at": show::machine_time(worker.heard_at.as_ref()),
        "incarnation": worker.incarnation,
        "tasks": worker.tasks,
        "gone": worker.gone,
        "allocation": (!worker.allocation.is_empty()).then_some(&worker.allocation),
        "trouble": (!worker.trouble.is_empty()).then_some(&worker.trouble),
    })
}

fn program(agent: &v1::WorkerAgent) -> Value {
    let known = |text: &String| (!text.is_empty()).then(|| text.clone());
    json!({
        "agent": agent.name,
        "program": known(&agent.program),
        "version": known(&agent.version),
    })
}

/// Lists a worker's agents with their versions. Those that every worker has are not worth a word.
fn agents(worker: &v1::Worker) -> String {
    let everywhere = |name: &str| matches!(name, "acp" | "command" | "scripted");
    let programs = worker.programs.iter();
    let mut shown: Vec<String> = programs
        .filter(|agent| !everywhere(&agent.name))
        .map(|agent| {
            format!("{} {}", agent.name, agent.version)
                .trim()
                .to_owned()
        })
        .collect();
    if worker.programs.is_empty() {
        // It is not connected.
        let names = worker.agents.iter().filter(|name| !everywhere(name));
        shown.extend(names.cloned());
    }
    one_line(&shown.join(", "))
}

/// Columns for the agents of a worker; `--json` has them all.
const AGENTS_WIDTH_MAX: usize = 48;
/// Columns for the labels of a worker; `--json` has them all.
const LABELS_WIDTH_MAX: usize = 32;

fn table(workers: &[&v1::Worker], now: Timestamp, paint: Paint) -> Table {
    let troubled = workers.iter().any(|worker| !worker.trouble.is_empty());
    let headings = [
        "WORKER", "STATE", "POOL", "LABELS", "AGENTS", "BUSY", "HEARD", "WORKS ON",
    ];
    let allocated = workers.iter().any(|worker| !worker.allocation.is_empty());
    let headings = headings
        .into_iter()
        .chain(allocated.then_some("ALLOCATION"));
    let headings = headings.chain(troubled.then_some("TROUBLE"));
    let headings: Vec<String> = headings.map(|heading| paint.dim(heading)).collect();
    let mut table = Table::new(&headings);
    for worker in workers {
        let heard = show::time(worker.heard_at.as_ref())
            .map(|heard| format!("{} ago", show::duration(show::between(heard, now))));
        let mut row = vec![
            one_line(&worker.worker),
            show::state(paint, &worker.state),
            one_line(&worker.pool),
            console::truncate_str(&one_line(&worker.labels.join(", ")), LABELS_WIDTH_MAX, "…")
                .into_owned(),
            console::truncate_str(&agents(worker), AGENTS_WIDTH_MAX, "…").into_owned(),
            format!("{}/{}", worker.leases, worker.slots),
            heard.unwrap_or_default(),
            one_line(&worker.tasks.join(", ")),
        ];
        row.extend(allocated.then(|| one_line(&worker.allocation)));
        row.extend(troubled.then(|| one_line(&worker.trouble)));
        table.row(row);
    }
    table
}
