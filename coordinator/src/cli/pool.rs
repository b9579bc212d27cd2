//! `coordinator pool`.

mod recent;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use muster_proto::v1;
use serde_json::{Value, json};

use super::arguments::{Pool, PoolCommand, PoolForget, PoolId, PoolPause, PoolResume};
use super::context::Context;
use super::error::{CliError, Exit, Result};
use super::show;
use super::table::Table;
use crate::output::{Paint, one_line};

pub(crate) async fn pool(context: &Context, options: Pool) -> Result<Exit> {
    match options.command {
        PoolCommand::List(options) => list(context, options.json).await,
        PoolCommand::Show(options) => shown(context, &options.name, options.json).await,
        PoolCommand::Plan(options) => plan(context, options.json).await,
        PoolCommand::Pause(options) => pause(context, options).await,
        PoolCommand::Resume(options) => resume(context, options).await,
        PoolCommand::Forget(options) => forget(context, options).await,
        PoolCommand::Id(PoolId {}) => id(context).await,
    }
}

async fn id(context: &Context) -> Result<Exit> {
    let client = context.client().await?;
    let info = client.info();
    context.output.data(&format!("{}\n", info.home_id))?;
    Ok(Exit::Success)
}

async fn listed(context: &Context, name: &str) -> Result<Vec<v1::Pool>> {
    let client = context.client().await?;
    let request = v1::ListPoolsRequest {
        pool: name.to_owned(),
    };
    let listed = client.operator().list_pools(request).await;
    let listed = listed.map_err(|status| of_pool(context, status))?;
    Ok(listed.into_inner().pools)
}

/// Says where the names of pools are found.
fn of_pool(context: &Context, status: tonic::Status) -> CliError {
    let missing = status.code() == tonic::Code::NotFound;
    let error = CliError::from(status);
    if missing {
        error.hint(format!("`{} pool list` lists them", context.program))
    } else {
        error
    }
}

async fn list(context: &Context, as_json: bool) -> Result<Exit> {
    let pools = listed(context, "").await?;
    if as_json {
        let pools: Vec<Value> = pools.iter().map(described).collect();
        context.output.json(&json!({ "pools": pools }))?;
    } else if pools.is_empty() {
        context.output.say("no pool is configured");
        context.output.say(&format!(
            "declare one as `[pools.NAME]` in {}",
            context.home.join(crate::config::FILE_NAME).display()
        ));
    } else {
        let table = table(&pools, context.output.data_paint);
        context.output.data(&table.text())?;
    }
    Ok(Exit::Success)
}

async fn shown(context: &Context, name: &str, as_json: bool) -> Result<Exit> {
    for pool in listed(context, name).await? {
        if as_json {
            context.output.json(&described(&pool))?;
        } else {
            let paint = context.output.data_paint;
            context
                .output
                .data(&text(&pool, Timestamp::now(), paint, &context.program))?;
        }
    }
    Ok(Exit::Success)
}

async fn plan(context: &Context, as_json: bool) -> Result<Exit> {
    let client = context.client().await?;
    let planned = client
        .operator()
        .plan_pools(v1::PlanPoolsRequest {})
        .await?;
    let pools = planned.into_inner().pools;
    if as_json {
        let pools: Vec<Value> = pools.iter().map(planned_json).collect();
        context.output.json(&json!({ "pools": pools }))?;
    } else if pools.is_empty() {
        context.output.say("no pool is configured");
    } else {
        let paint = context.output.data_paint;
        let texts: Vec<String> = pools.iter().map(|pool| planned_text(pool, paint)).collect();
        context.output.data(&texts.join("\n"))?;
    }
    Ok(Exit::Success)
}

async fn pause(context: &Context, options: PoolPause) -> Result<Exit> {
    let client = context.client().await?;
    let request = v1::PausePoolRequest {
        pool: options.name.clone(),
        reason: options.reason.unwrap_or_default(),
    };
    let paused = client.operator().pause_pool(request).await;
    paused.map_err(|status| of_pool(context, status))?;
    told(
        context,
        &options.name,
        true,
        options.json,
        "starts nothing more; what it has goes on",
    )
}

async fn resume(context: &Context, options: PoolResume) -> Result<Exit> {
    let client = context.client().await?;
    let request = v1::ResumePoolRequest {
        pool: options.name.clone(),
    };
    let resumed = client.operator().resume_pool(request).await;
    resumed.map_err(|status| of_pool(context, status))?;
    told(
        context,
        &options.name,
        false,
        options.json,
        "may start allocations again",
    )
}

async fn forget(context: &Context, options: PoolForget) -> Result<Exit> {
    let client = context.client().await?;
    let request = v1::ForgetPoolRequest {
        pool: options.name.clone(),
        even_if_they_run: options.even_if_they_run,
    };
    let forgotten = client.operator().forget_pool(request).await;
    let forgotten = forgotten.map_err(|status| {
        let held = status.code() == tonic::Code::FailedPrecondition;
        let error = of_pool(context, status);
        if held && !options.even_if_they_run {
            let program = &context.program;
            error.hint(format!(
                "if they are gone, or you end them yourself: `{program} pool forget {} \
                 --even-if-they-run`",
                options.name
            ))
        } else {
            error
        }
    })?;
    let forgotten = forgotten.into_inner();
    if options.json {
        context.output.json(&json!({
            "pool": options.name,
            "allocations": forgotten.allocations,
            "externals": forgotten.externals,
        }))?;
    } else {
        context
            .output
            .say(&forgotten_text(&options.name, &forgotten));
    }
    Ok(Exit::Success)
}

fn forgotten_text(name: &str, forgotten: &v1::ForgetPoolResponse) -> String {
    let mut text = format!("pool {name} is forgotten");
    if forgotten.allocations > 0 {
        let count = show::counted(forgotten.allocations as usize, "allocation");
        text.push_str(&format!(", with {count} that can join no more"));
    }
    if !forgotten.externals.is_empty() {
        let names = forgotten.externals.join(", ");
        text.push_str(&format!("; end what still runs of: {}", one_line(&names)));
    }
    text
}

fn told(context: &Context, name: &str, paused: bool, as_json: bool, text: &str) -> Result<Exit> {
    if as_json {
        context
            .output
            .json(&json!({ "pool": name, "paused": paused }))?;
    } else {
        context.output.say(&format!("pool {name} {text}"));
    }
    Ok(Exit::Success)
}

fn millis(length: Option<&prost_types::Duration>) -> Option<u64> {
    let length = Duration::try_from(*length?).ok()?;
    u64::try_from(length.as_millis()).ok()
}

fn described(pool: &v1::Pool) -> Value {
    let kind = (!pool.kind.is_empty()).then_some(&pool.kind);
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let allocations = pool.allocations.iter().map(|held| {
        json!({
            "allocation": held.id,
            "phase": held.phase,
            "external": text(&held.external),
            "host": text(&held.host),
            "wanted_at": show::machine_time(held.wanted_at.as_ref()),
            "since": show::machine_time(held.since.as_ref()),
            "joined": held.joined,
            "requeues": held.requeues,
            "held": text(&held.held),
            "ending": text(&held.ending),
            "ending_reason": text(&held.ending_reason),
            "workers": held.workers,
            "leases": held.leases,
        })
    });
    let quarantined = pool.quarantined.iter().map(|host| {
        json!({
            "host": host.host,
            "reason": host.reason,
            "at": show::machine_time(host.at.as_ref()),
            "until": show::machine_time(host.until.as_ref()),
        })
    });
    json!({
        "name": pool.name,
        "kind": kind,
        "priority": pool.priority,
        "min": pool.min,
        "max": pool.max,
        "slots": pool.slots,
        "workers_per_allocation": pool.workers_per_allocation,
        "labels": pool.labels,
        "resources": pool.resources.iter().collect::<BTreeMap<_, _>>(),
        "agents": pool.agents,
        "idle_timeout_ms": millis(pool.idle_timeout.as_ref()),
        "backlog": pool.backlog,
        "burst": pool.burst,
        "join_timeout_ms": millis(pool.join_timeout.as_ref()),
        "walltime_ms": millis(pool.walltime.as_ref()),
        "failures_max": pool.failures_max,
        "quarantine": pool.quarantine,
        "paused": pool.paused.as_ref().map(|pause| json!({
            "reason": pause.reason,
            "by": pause.by,
            "at": show::machine_time(pause.at.as_ref()),
        })),
        "failures": pool.failures,
        "last_failure": text(&pool.last_failure),
        "failed_at": show::machine_time(pool.failed_at.as_ref()),
        "quarantined": quarantined.collect::<Vec<_>>(),
        "trouble": text(&pool.trouble),
        "orphans": pool.orphans,
        "workers": pool.workers,
        "leases": pool.leases,
        "allocations": allocations.collect::<Vec<_>>(),
        "more": pool.more,
        "recent": pool.recent.iter().map(recent::described).collect::<Vec<_>>(),
    })
}

fn planned_json(pool: &v1::PlannedPool) -> Value {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let stops = pool
        .stops
        .iter()
        .map(|stop| json!({ "allocation": stop.allocation, "cause": stop.cause, "why": stop.why }));
    let lacks = pool.lacks.iter();
    let lacks = lacks.map(|lack| json!({ "text": lack.text, "tasks": lack.tasks }));
    json!({
        "pool": pool.pool,
        "allocations": pool.allocations,
        "coming": pool.coming,
        "idle": pool.idle,
        "serves": pool.serves,
        "starts": pool.starts,
        "why": text(&pool.why),
        "stops": stops.collect::<Vec<_>>(),
        "hindrance": text(&pool.hindrance),
        "hindrance_text": text(&pool.hindrance_text),
        "lacks": lacks.collect::<Vec<_>>(),
    })
}

/// Says how many allocations nobody knows, and what becomes of them.
fn unknown(orphans: u32) -> String {
    let orphans = show::counted(orphans as usize, "allocation");
    format!("{orphans} that this coordinator has not ordered, ended after a minute")
}

/// Says in a word how it goes with a pool.
pub(super) fn standing(pool: &v1::Pool) -> &'static str {
    if pool.kind.is_empty() {
        "not configured"
    } else if pool.paused.is_some() {
        "paused"
    } else if pool.failures > 0 || !pool.trouble.is_empty() {
        "failing"
    } else {
        "ready"
    }
}

fn painted(standing: &str, paint: Paint) -> String {
    match standing {
        "ready" => paint.green(standing),
        "paused" => paint.yellow(standing),
        "failing" => paint.red(standing),
        _ => paint.dim(standing),
    }
}

fn table(pools: &[v1::Pool], paint: Paint) -> Table {
    let headings = [
        "POOL", "KIND", "STATE", "HAS", "MIN", "MAX", "WORKERS", "BUSY", "WHY",
    ];
    let mut table = Table::new(&headings.map(|heading| paint.dim(heading)));
    for pool in pools {
        let standing = standing(pool);
        let number = |number: u32, has: bool| {
            if has {
                number.to_string()
            } else {
                "-".to_owned()
            }
        };
        let scales = !matches!(&*pool.kind, "external" | "");
        let held = u32::try_from(pool.allocations.len()).unwrap_or(u32::MAX) + pool.more;
        let orphans = match pool.orphans {
            0 => String::new(),
            some => format!("has {}", unknown(some)),
        };
        let why = match &pool.paused {
            _ if pool.kind.is_empty() && pool.trouble.is_empty() => {
                "nobody ends what it has; see `pool show`"
            }
            _ if pool.kind.is_empty() => &pool.trouble,
            Some(pause) => &pause.reason,
            None if !pool.trouble.is_empty() => &pool.trouble,
            None if !pool.last_failure.is_empty() => &pool.last_failure,
            None => &orphans,
        };
        table.row(vec![
            one_line(&pool.name),
            one_line(&pool.kind),
            painted(standing, paint),
            number(held, pool.kind != "external"),
            number(pool.min, scales),
            number(pool.max, scales),
            pool.workers.to_string(),
            pool.leases.to_string(),
            one_line(why),
        ]);
    }
    table
}

fn ago(at: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    let at = show::time(at);
    at.map(|at| show::duration(show::between(at, now)))
        .unwrap_or_default()
}

fn length(length: Option<&prost_types::Duration>) -> String {
    let length = length.and_then(|length| Duration::try_from(*length).ok());
    length.map(show::duration).unwrap_or_default()
}

fn text(pool: &v1::Pool, now: Timestamp, paint: Paint, program: &str) -> String {
    let standing = standing(pool);
    let mut lines = vec![format!(
        "{}: {}",
        paint.bold(&one_line(&pool.name)),
        painted(standing, paint)
    )];
    let mut say = |name: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("  {} {}", paint.dim(name), one_line(&text)));
        }
    };
    if pool.kind.is_empty() && !pool.trouble.is_empty() {
        say("kind", "none, until what it has is gone".to_owned());
    } else if pool.kind.is_empty() {
        let name = &pool.name;
        say(
            "kind",
            "none: it is not configured any more, so nobody lists or ends what it has".to_owned(),
        );
        say(
            "way out",
            format!(
                "put [pools.{name}] back into the configuration and start the coordinator again: \
                 what nothing needs is ended then; or, if all of it is gone: {program} pool forget \
                 {name} --even-if-they-run"
            ),
        );
    } else {
        say("kind", pool.kind.clone());
        settings(pool, &mut say);
    }
    if let Some(pause) = &pool.paused
        && !pool.kind.is_empty()
    {
        let since = ago(pause.at.as_ref(), now);
        say(
            "paused",
            format!("for {since}, by {}: {}", pause.by, pause.reason),
        );
        say("way out", format!("{program} pool resume {}", pool.name));
    }
    if pool.failures > 0 {
        say(
            "failing",
            format!(
                "{} in a row, the last one {} ago: {}",
                show::counted(pool.failures as usize, "failed start"),
                ago(pool.failed_at.as_ref(), now),
                pool.last_failure
            ),
        );
    }
    say("trouble", pool.trouble.clone());
    if pool.orphans > 0 {
        say("orphans", unknown(pool.orphans));
    }
    for host in &pool.quarantined {
        let until = show::time(host.until.as_ref());
        let left = until.map(|until| show::duration(show::between(now, until)));
        say(
            "quarantine",
            format!(
                "{} for {} more: {}",
                host.host,
                left.unwrap_or_default(),
                host.reason
            ),
        );
    }
    if !pool.allocations.is_empty() {
        lines.push(String::new());
        lines.push(allocations(pool, now, paint).text());
    }
    if pool.more > 0 {
        lines.push(format!("and {} more", pool.more));
    }
    if !pool.recent.is_empty() {
        lines.push(format!("\n{}", paint.bold("lately")));
        lines.extend(recent::lines(&pool.recent, now, paint));
    }
    lines.join("\n")
}

fn settings(pool: &v1::Pool, say: &mut impl FnMut(&str, String)) {
    let slots = show::counted(pool.slots as usize, "slot");
    if pool.max > 0 {
        let workers = match pool.workers_per_allocation {
            1 => format!("1 worker with {slots}"),
            workers => format!("{workers} workers with {slots}"),
        };
        say(
            "size",
            format!(
                "{} to {} allocations, {workers} in each",
                pool.min, pool.max
            ),
        );
    } else {
        say("size", format!("people start its workers, with {slots}"));
    }
    say("labels", pool.labels.join(", "));
    let resources: BTreeMap<_, _> = pool.resources.iter().collect();
    let resources: Vec<String> = resources
        .iter()
        .map(|(name, amount)| format!("{amount} {name}"))
        .collect();
    say("resources", resources.join(", "));
    say("agents", pool.agents.join(", "));
    if pool.max > 0 {
        say(
            "starts",
            format!(
                "at most {} at once, {} waiting; each must join within {}",
                pool.burst,
                pool.backlog,
                length(pool.join_timeout.as_ref())
            ),
        );
        let walltime = length(pool.walltime.as_ref());
        let idle = length(pool.idle_timeout.as_ref());
        let ends = if walltime.is_empty() {
            format!("when it was idle for {idle}")
        } else {
            format!("when it was idle for {idle}, or is {walltime} old")
        };
        say("ends", ends);
    }
}

fn allocations(pool: &v1::Pool, now: Timestamp, paint: Paint) -> Table {
    let headings = [
        "ALLOCATION",
        "PHASE",
        "FOR",
        "AGE",
        "EXTERNAL",
        "HOST",
        "WORKERS",
        "BUSY",
        "WHY",
    ];
    let mut table = Table::new(&headings.map(|heading| paint.dim(heading)));
    for held in &pool.allocations {
        let phase = match held.phase.as_str() {
            "running" if held.joined => paint.green("running"),
            "running" => paint.cyan("joining"),
            "ending" => paint.yellow("ending"),
            other => paint.dim(&one_line(other)),
        };
        table.row(vec![
            one_line(&held.id),
            phase,
            ago(held.since.as_ref(), now),
            ago(held.wanted_at.as_ref(), now),
            one_line(&held.external),
            one_line(&held.host),
            one_line(&held.workers.join(", ")),
            held.leases.to_string(),
            one_line(match held.ending_reason.as_str() {
                "" => &held.held,
                reason => reason,
            }),
        ]);
    }
    table
}

fn planned_text(pool: &v1::PlannedPool, paint: Paint) -> String {
    let name = paint.bold(&one_line(&pool.pool));
    let does = match (pool.starts, pool.stops.len()) {
        (0, 0) => "starts and ends nothing".to_owned(),
        (starts, 0) => format!("starts {}", show::counted(starts as usize, "allocation")),
        (0, stops) => format!("ends {}", show::counted(stops, "allocation")),
        (starts, stops) => format!(
            "starts {} and ends {stops}",
            show::counted(starts as usize, "allocation")
        ),
    };
    let mut lines = vec![format!("{name}: {does}")];
    let mut say = |text: String| lines.push(format!("  {}", one_line(&text)));
    say(format!(
        "it has {}: {} on the way, {} idle",
        show::counted(pool.allocations as usize, "allocation"),
        pool.coming,
        pool.idle
    ));
    if pool.held > 0 {
        let held = show::counted(pool.held as usize, "allocation");
        let reason = &pool.held_reason;
        say(format!(
            "{held} of it that its provider does not run: {reason}"
        ));
    }
    if pool.serves > 0 {
        let tasks = show::counted(pool.serves as usize, "waiting task");
        say(format!("with those it is to start it serves {tasks}"));
    }
    if !pool.why.is_empty() {
        say(format!("why: {}", pool.why));
    }
    for stop in &pool.stops {
        say(format!("it ends {}: {}", stop.allocation, stop.why));
    }
    if !pool.hindrance_text.is_empty() {
        say(format!("it starts no more: {}", pool.hindrance_text));
    }
    if pool.hindrance == "paused" {
        say(format!(
            "`coordinator pool resume {}` lets it go on",
            pool.pool
        ));
    }
    for lack in &pool.lacks {
        let tasks = show::counted(lack.tasks as usize, "waiting task");
        say(format!("it can never take {tasks}: {}", lack.text));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned::{SUBMITTED, at};

    fn stamp(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp {
            seconds: SUBMITTED + seconds,
            nanos: 0,
        })
    }

    fn gpu() -> v1::Pool {
        let allocation = |id: &str, phase: &str, since| v1::Allocation {
            id: id.to_owned(),
            phase: phase.to_owned(),
            wanted_at: stamp(0),
            since: stamp(since),
            ..v1::Allocation::default()
        };
        v1::Pool {
            name: "gpu".to_owned(),
            kind: "slurm".to_owned(),
            max: 40,
            slots: 2,
            workers_per_allocation: 1,
            labels: vec!["gpu".to_owned()],
            resources: [("cpus".to_owned(), 8), ("gpus".to_owned(), 1)].into(),
            idle_timeout: Some(prost_types::Duration {
                seconds: 300,
                nanos: 0,
            }),
            join_timeout: Some(prost_types::Duration {
                seconds: 600,
                nanos: 0,
            }),
            walltime: Some(prost_types::Duration {
                seconds: 14_400,
                nanos: 0,
            }),
            backlog: 4,
            burst: 10,
            failures_max: 3,
            quarantine: true,
            paused: Some(v1::PoolPause {
                reason: "3 starts in a row failed, the last one so: Invalid account".to_owned(),
                by: "coordinator".to_owned(),
                at: stamp(60),
            }),
            failures: 3,
            last_failure: "Invalid account".to_owned(),
            failed_at: stamp(60),
            quarantined: vec![v1::QuarantinedHost {
                host: "node7".to_owned(),
                reason: "attempts of 3 tasks failed there within 30 s each".to_owned(),
                at: stamp(30),
                until: stamp(3_630),
            }],
            workers: 1,
            leases: 2,
            recent: vec![v1::PoolEvent {
                at: stamp(60),
                event: "allocation_ended".to_owned(),
                allocation: "A4".to_owned(),
                text: "allocation A4 was refused: Invalid\naccount".to_owned(),
            }],
            allocations: vec![
                v1::Allocation {
                    external: "4711_0".to_owned(),
                    host: "node3\u{1b}[2J".to_owned(),
                    joined: true,
                    workers: vec!["gpu/4711_0".to_owned()],
                    leases: 2,
                    ..allocation("A5", "running", 20)
                },
                v1::Allocation {
                    external: "4711_1".to_owned(),
                    ending_reason: "nothing has needed it for 300 s".to_owned(),
                    ..allocation("A6", "ending", 80)
                },
                v1::Allocation {
                    external: "4711_2".to_owned(),
                    held: "JobHeldUser".to_owned(),
                    ..allocation("A7", "queued", 0)
                },
            ],
            ..v1::Pool::default()
        }
    }

    #[test]
    fn pools_are_listed_and_shown_with_what_keeps_them_back() {
        let paint = Paint::new(false);
        let lab = v1::Pool {
            name: "lab".to_owned(),
            kind: "external".to_owned(),
            slots: 1,
            workers_per_allocation: 1,
            ..v1::Pool::default()
        };
        let removed = v1::Pool {
            name: "old".to_owned(),
            ..v1::Pool::default()
        };
        let raised = v1::Pool {
            name: "burst".to_owned(),
            kind: "ec2".to_owned(),
            orphans: 2,
            ..v1::Pool::default()
        };
        let pools = [gpu(), lab, removed, raised];
        let mut texts = vec![table(&pools, paint).text()];
        texts.extend(
            pools
                .iter()
                .map(|pool| text(pool, at(100), paint, "coordinator")),
        );
        insta::assert_snapshot!(texts.join("\n\n"));
    }

    #[test]
    fn a_plan_of_pools_says_what_is_done_and_why() {
        let busy = v1::PlannedPool {
            pool: "gpu".to_owned(),
            allocations: 3,
            coming: 1,
            serves: 8,
            starts: 2,
            why: "4 tasks wait for room, first one that needs agent codex, label gpu".to_owned(),
            stops: vec![v1::PlannedStop {
                allocation: "A5".to_owned(),
                cause: "idle".to_owned(),
                why: "nothing has needed it for 300 s".to_owned(),
            }],
            hindrance: "max".to_owned(),
            hindrance_text: "it has its maximum of 5 allocations".to_owned(),
            lacks: vec![v1::PoolLack {
                text: "its workers do not carry label site=lab".to_owned(),
                tasks: 1,
            }],
            idle: 1,
            held: 1,
            held_reason: "JobHeldUser".to_owned(),
        };
        let quiet = v1::PlannedPool {
            pool: "near".to_owned(),
            ..v1::PlannedPool::default()
        };
        let texts = [busy, quiet].map(|pool| planned_text(&pool, Paint::new(false)));
        insta::assert_snapshot!(texts.join("\n"));
    }
}
