//! `coordinator usage`, and what other commands say of usage.

use jiff::Timestamp;
use muster_proto::v1::{self, UsageGroup, UsageGroupBy, UsageSums};
use serde_json::{Value, json};

use super::arguments::{Usage, UsageBy};
use super::context::{Context, Session};
use super::error::{Exit, Result};
use super::show::machine_time;
use super::table::Table;
use super::{find, logs};
use crate::ledger::prices::dollars;
use crate::output::{Paint, one_line};

/// What stands for several models.
const MIXED: &str = "mixed";
const DOLLAR: u64 = 1_000_000_000;

pub(crate) async fn usage(context: &Context, options: Usage) -> Result<Exit> {
    let since = logs::since(options.since.as_deref(), Timestamp::now())?;
    let session = context.session().await?;
    let ended = ask(context, &session, options, since).await;
    session.close().await;
    ended
}

async fn ask(
    context: &Context,
    session: &Session,
    options: Usage,
    since: Option<u64>,
) -> Result<Exit> {
    let run = match &options.run {
        Some(run) => Some(find::run(&session.client, Some(run)).await?),
        None => None,
    };
    let by = options.by.unwrap_or(match run {
        Some(_) => UsageBy::Task,
        None => UsageBy::Run,
    });
    let request = v1::GetUsageRequest {
        run: run.clone(),
        task: options.task,
        model: options.model,
        worker: options.worker,
        since: since.map(|since| prost_types::Timestamp {
            seconds: i64::try_from(since / 1_000).unwrap_or(i64::MAX),
            nanos: i32::try_from(since % 1_000 * 1_000_000).unwrap_or_default(),
        }),
        group_by: wire(by).into(),
        limit: 0,
    };
    let used = session
        .client
        .operator()
        .get_usage(request)
        .await?
        .into_inner();
    if options.json {
        context.output.json(&whole(&used))?;
        return Ok(Exit::Success);
    }
    let output = context.output;
    if used.groups.is_empty() {
        output.say("no agent has told of any use of a model");
    } else {
        let table = table(&used, by, run.is_none(), output.data_paint);
        output.data(&table.text())?;
    }
    for remark in remarks(&used) {
        output.say(&remark);
    }
    Ok(Exit::Success)
}

fn wire(by: UsageBy) -> UsageGroupBy {
    match by {
        UsageBy::Run => UsageGroupBy::Run,
        UsageBy::Task => UsageGroupBy::Task,
        UsageBy::Attempt => UsageGroupBy::Attempt,
        UsageBy::Model => UsageGroupBy::Model,
        UsageBy::Worker => UsageGroupBy::Worker,
        UsageBy::Turn => UsageGroupBy::Turn,
        UsageBy::Call => UsageGroupBy::Call,
    }
}

fn table(used: &v1::GetUsageResponse, by: UsageBy, of_all: bool, paint: Paint) -> Table {
    let mut heading = Vec::new();
    let with_run = of_all && !matches!(by, UsageBy::Model | UsageBy::Worker);
    if with_run || by == UsageBy::Run {
        heading.push("RUN");
    }
    let depth = match by {
        UsageBy::Task => 1,
        UsageBy::Attempt => 2,
        UsageBy::Turn => 3,
        UsageBy::Call => 4,
        UsageBy::Run | UsageBy::Model | UsageBy::Worker => 0,
    };
    heading.extend(["TASK", "ATTEMPT", "TURN", "EVENT"].into_iter().take(depth));
    if by == UsageBy::Worker {
        heading.push("WORKER");
    }
    let keys = heading.len();
    heading.extend([
        "MODEL",
        "CALLS",
        "INPUT",
        "CACHED",
        "WRITTEN",
        "OUTPUT",
        "REASONING",
        "COST",
        "BY AGENT",
    ]);
    let heading: Vec<String> = heading.iter().map(|word| paint.dim(word)).collect();
    let mut table = Table::new(&heading);
    for group in &used.groups {
        let mut cells = Vec::new();
        if with_run || by == UsageBy::Run {
            cells.push(one_line(group.run.as_deref().unwrap_or_default()));
        }
        let parts = [
            task_of(group),
            attempt_of(group),
            group.turn.map(|turn| turn.to_string()).unwrap_or_default(),
            group
                .event
                .map(|event| event.to_string())
                .unwrap_or_default(),
        ];
        cells.extend(parts.into_iter().take(depth));
        if by == UsageBy::Worker {
            cells.push(one_line(group.worker.as_deref().unwrap_or("unknown")));
        }
        cells.extend(figures(group));
        table.row(cells);
    }
    if let Some(total) = used
        .total
        .as_ref()
        .filter(|_| used.groups.len() > 1 || used.more)
    {
        let mut cells = vec![String::new(); keys];
        if let Some(first) = cells.first_mut() {
            *first = paint.bold("total");
        }
        cells.extend(figures(total));
        table.row(cells);
    }
    table
}

fn task_of(group: &UsageGroup) -> String {
    match group.task.as_deref() {
        Some("") => "(the whole)".to_owned(),
        Some(task) => one_line(task),
        None => String::new(),
    }
}

fn attempt_of(group: &UsageGroup) -> String {
    let attempt = group.attempt.filter(|attempt| *attempt > 0);
    let attempt = attempt.map(|attempt| attempt.to_string());
    match group.work.as_deref() {
        Some("verify") => format!("{} verify", attempt.unwrap_or_default()),
        Some("final_verify") => "verify".to_owned(),
        _ => attempt.unwrap_or_default(),
    }
}

fn figures(group: &UsageGroup) -> [String; 9] {
    let sums = group.sums.unwrap_or_default();
    let some = |count: u64| match count {
        0 => "-".to_owned(),
        count => grouped(count),
    };
    [
        one_line(&model_of(group)),
        calls(&sums),
        grouped(sums.input_tokens),
        some(sums.cached_input_tokens),
        some(sums.cache_write_tokens),
        grouped(sums.output_tokens),
        some(sums.reasoning_tokens),
        cost(group),
        agents_cost(&sums),
    ]
}

/// Writes how many calls there were, and after them those of which nothing more is known.
fn calls(sums: &UsageSums) -> String {
    match (sums.calls, sums.unknown_calls) {
        (0, 0) => "-".to_owned(),
        (calls, 0) => grouped(calls),
        (0, unknown) => format!("+{}?", grouped(unknown)),
        (calls, unknown) => format!("{} +{}?", grouped(calls), grouped(unknown)),
    }
}

/// Names the model, or says that there are several.
fn model_of(group: &UsageGroup) -> String {
    match group.models.as_slice() {
        [only] if only.model.is_empty() => "unknown".to_owned(),
        [only] => only.model.clone(),
        [] => String::new(),
        _ => MIXED.to_owned(),
    }
}

/// Writes the cost; of what has no price nobody knows it, and a part of it is a lower bound.
fn cost(group: &UsageGroup) -> String {
    match group.cost_nanos {
        None => "unknown".to_owned(),
        Some(nanos) if is_whole(group) => dollars(nanos),
        Some(nanos) => format!("≥{}", dollars(nanos)),
    }
}

/// Tells whether the cost is that of everything.
fn is_whole(group: &UsageGroup) -> bool {
    let unknown = group.sums.is_some_and(|sums| sums.unknown_calls > 0);
    group.cost_nanos.is_some() && group.unpriced_models.is_empty() && !unknown
}

fn agents_cost(sums: &UsageSums) -> String {
    let nanos = sums.agents_cost_micros.saturating_mul(1_000);
    match sums.events_without_agents_cost {
        0 if sums.events > 0 => dollars(nanos),
        silent if silent < sums.events => format!("≥{}", dollars(nanos)),
        _ => "-".to_owned(),
    }
}

/// Writes a number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn remarks(used: &v1::GetUsageResponse) -> Vec<String> {
    let mut remarks = Vec::new();
    let total = used.total.clone().unwrap_or_default();
    if !total.unpriced_models.is_empty() {
        remarks.push(unpriced(&total));
    }
    if let Some(unknown) = total.sums.map(|sums| sums.unknown_calls).filter(|&n| n > 0) {
        remarks.push(format!(
            "what {} consumed is not known, and in no figure: the agent did not say",
            match unknown {
                1 => "1 more call or turn".to_owned(),
                more => format!("{} more calls or turns", grouped(more)),
            }
        ));
    }
    if total.cost_nanos.is_some() {
        remarks.push(format!(
            "cost by prices of {} where the configuration says nothing else: `coordinator config check`",
            used.prices_of
        ));
    }
    if used.more {
        remarks.push("there are more lines than are shown; the total is of all of them".to_owned());
    }
    if !used.behind.is_empty() {
        remarks.push(format!(
            "what was used lately may be missing: {}",
            one_line(&used.behind)
        ));
    }
    remarks
}

/// Models that are named where the cost is not known.
const UNPRICED_NAMED: usize = 5;

fn unpriced(group: &UsageGroup) -> String {
    let unpriced = &group.unpriced_models;
    let mut names: Vec<String> = unpriced
        .iter()
        .take(UNPRICED_NAMED)
        .map(|model| match model.as_str() {
            "" => "a model without a name".to_owned(),
            model => one_line(model),
        })
        .collect();
    if unpriced.len() > UNPRICED_NAMED {
        names.push(format!("{} more", unpriced.len() - UNPRICED_NAMED));
    }
    format!(
        "no price is known of {}; `[prices.\"MODEL\"]` in the configuration sets one",
        names.join(", ")
    )
}

/// Says in one line what was used; nothing if nothing was.
pub(crate) fn line(used: Option<&UsageGroup>) -> Option<String> {
    let group = used?;
    let sums = group.sums.filter(|sums| sums.events > 0)?;
    let mut text = format!("{} tokens in", grouped(sums.input_tokens));
    if sums.cached_input_tokens > 0 {
        text = format!("{text} ({} cached)", grouped(sums.cached_input_tokens));
    }
    text = format!("{text}, {} out", grouped(sums.output_tokens));
    let cost = match cost(group).as_str() {
        "unknown" => "cost unknown".to_owned(),
        cost => cost.to_owned(),
    };
    let model = one_line(&model_of(group));
    Some(format!("{text}, {cost} ({model})"))
}

/// Says in a few characters what was used, for a heading.
pub(crate) fn brief(used: Option<&UsageGroup>) -> Option<String> {
    let group = used?;
    let sums = group.sums.filter(|sums| sums.events > 0)?;
    let tokens = rough(sums.input_tokens.saturating_add(sums.output_tokens));
    Some(match group.cost_nanos {
        Some(_) => format!("{tokens} tokens {}", cost(group)),
        None => format!("{tokens} tokens"),
    })
}

fn rough(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{}k", count / 1_000),
        _ => format!("{}.{}M", count / 1_000_000, count / 100_000 % 10),
    }
}

/// Describes usage for programs; null if there was none.
pub(crate) fn json(used: Option<&UsageGroup>) -> Value {
    let Some(group) = used else {
        return Value::Null;
    };
    let mut value = sums_json(group.sums.as_ref());
    let more = json!({
        "model": model_of(group),
        "models": group.models.iter().map(|model| {
            let mut value = sums_json(model.sums.as_ref());
            let more = json!({
                "model": model.model,
                "cost_usd": model.cost_nanos.map(exact),
                "cost_nanos": model.cost_nanos,
            });
            extend(&mut value, more);
            value
        }).collect::<Vec<_>>(),
        "cost_usd": group.cost_nanos.map(exact),
        "cost_nanos": group.cost_nanos,
        "cost_is_whole": is_whole(group),
        "unpriced_models": group.unpriced_models,
    });
    extend(&mut value, more);
    value
}

fn sums_json(sums: Option<&UsageSums>) -> Value {
    let sums = sums.copied().unwrap_or_default();
    let told = sums.events > sums.events_without_agents_cost;
    json!({
        "input_tokens": sums.input_tokens,
        "cached_input_tokens": sums.cached_input_tokens,
        "cache_write_tokens": sums.cache_write_tokens,
        "output_tokens": sums.output_tokens,
        "reasoning_tokens": sums.reasoning_tokens,
        "calls": sums.calls,
        "unknown_calls": sums.unknown_calls,
        "events": sums.events,
        "agents_cost_micros": told.then_some(sums.agents_cost_micros),
        "events_without_agents_cost": sums.events_without_agents_cost,
        "first_at": machine_time(sums.first_at.as_ref()),
        "last_at": machine_time(sums.last_at.as_ref()),
    })
}

fn whole(used: &v1::GetUsageResponse) -> Value {
    let groups = used.groups.iter().map(|group| {
        let mut value = json!({
            "run": group.run,
            "task": group.task,
            "work": group.work,
            "attempt": group.attempt.filter(|attempt| *attempt > 0),
            "lease": group.lease,
            "worker": group.worker,
            "turn": group.turn,
            "event": group.event,
        });
        extend(&mut value, json(Some(group)));
        value
    });
    json!({
        "groups": groups.collect::<Vec<_>>(),
        "total": json(used.total.as_ref()),
        "more": used.more,
        "prices_of": used.prices_of,
        "behind": (!used.behind.is_empty()).then_some(&used.behind),
    })
}

/// Writes an amount so that nothing is lost: `0.001375015`.
fn exact(nanos: u64) -> String {
    format!("{}.{:09}", nanos / DOLLAR, nanos % DOLLAR)
}

fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(input: u64, events: u64, silent: u64) -> UsageSums {
        UsageSums {
            input_tokens: input,
            cached_input_tokens: input / 2,
            output_tokens: 1_234,
            reasoning_tokens: 34,
            calls: events,
            events,
            agents_cost_micros: 2_500,
            events_without_agents_cost: silent,
            unknown_calls: silent / 3,
            ..UsageSums::default()
        }
    }

    fn group(task: &str, models: &[&str], cost: Option<u64>, unpriced: &[&str]) -> UsageGroup {
        let sums = sums(1_234_567, 3, u64::from(cost.is_none()) * 3);
        UsageGroup {
            run: Some("add-auth-b7itx33".to_owned()),
            task: Some(task.to_owned()),
            work: Some("attempt".to_owned()),
            attempt: Some(1),
            lease: Some(7),
            worker: Some("laptop-0".to_owned()),
            sums: Some(sums),
            models: models
                .iter()
                .map(|model| v1::UsageOfModel {
                    model: (*model).to_owned(),
                    sums: Some(sums),
                    cost_nanos: cost,
                })
                .collect(),
            cost_nanos: cost,
            unpriced_models: unpriced.iter().map(|model| (*model).to_owned()).collect(),
            ..UsageGroup::default()
        }
    }

    fn used() -> v1::GetUsageResponse {
        let hostile = "\u{1b}[2Jx";
        let mut total = group("", &["gpt-5.4", hostile], Some(12_004_312_500), &[hostile]);
        if let Some(sums) = &mut total.sums {
            sums.unknown_calls = 1;
        }
        v1::GetUsageResponse {
            groups: vec![
                group("api", &["gpt-5.4"], Some(4_312_500), &[]),
                group("docs", &[hostile], None, &[hostile]),
                group("", &["gpt-5.4", hostile], Some(12_000_000_000), &[hostile]),
            ],
            total: Some(total),
            more: false,
            prices_of: "2026-06-30".to_owned(),
            behind: "the disk is full".to_owned(),
        }
    }

    #[test]
    fn the_table_says_what_is_known_and_what_is_not() {
        let used = used();
        let mut text = table(&used, UsageBy::Attempt, true, Paint::new(false)).text();
        for remark in remarks(&used) {
            text.push('\n');
            text.push_str(&remark);
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn programs_get_whole_numbers_and_no_cost_where_there_is_none() {
        let value = whole(&used());
        assert_eq!(value["groups"][0]["cost_usd"], "0.004312500");
        assert_eq!(value["groups"][0]["cost_nanos"], 4_312_500);
        assert_eq!(value["groups"][1]["cost_usd"], Value::Null);
        assert_eq!(value["groups"][1]["agents_cost_micros"], Value::Null);
        assert_eq!(value["groups"][2]["model"], "mixed");
        assert_eq!(value["groups"][2]["models"][0]["model"], "gpt-5.4");
        assert_eq!(value["groups"][2]["cost_is_whole"], false);
        assert_eq!(value["behind"], "the disk is full");
        assert_eq!(json(None), Value::Null);
    }

    #[test]
    fn a_line_about_a_run_is_short() {
        let used = used();
        let said: Vec<_> = used
            .groups
            .iter()
            .map(|group| line(Some(group)).unwrap())
            .collect();
        assert_eq!(
            said,
            [
                "1,234,567 tokens in (617,283 cached), 1,234 out, $0.0043 (gpt-5.4)",
                "1,234,567 tokens in (617,283 cached), 1,234 out, cost unknown (x)",
                "1,234,567 tokens in (617,283 cached), 1,234 out, ≥$12.00 (mixed)",
            ]
        );
        assert_eq!(brief(used.groups.first()).unwrap(), "1.2M tokens $0.0043");
        assert_eq!(line(None), None);
        assert_eq!(line(Some(&UsageGroup::default())), None);
    }
}
