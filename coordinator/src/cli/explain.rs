//! `coordinator explain`.

use muster_proto::v1;
use serde_json::json;

use super::arguments::Explain;
use super::context::{Context, Session};
use super::error::{Exit, Result};
use super::{conflicts, find, show};
use crate::output::{Paint, one_line};

pub(crate) async fn explain(context: &Context, options: Explain) -> Result<Exit> {
    let session = context.session().await?;
    let ended = ask(context, &session, &options).await;
    session.close().await;
    ended
}

async fn ask(context: &Context, session: &Session, options: &Explain) -> Result<Exit> {
    let run = find::run(&session.client, Some(&options.run)).await?;
    let request = v1::ExplainTaskRequest {
        run: run.clone(),
        task: options.task.clone().unwrap_or_default(),
    };
    let said = session
        .client
        .operator()
        .explain_task(request)
        .await?
        .into_inner();
    let found = conflicts::of_task(
        &session.client,
        &run,
        options.task.as_deref().unwrap_or_default(),
    )
    .await?;
    let found: Vec<_> = found.into_iter().collect();
    if options.json {
        context.output.json(&json!({
            "run": run,
            "task": options.task,
            "state": said.state,
            "reasons": said.reasons,
            "remedies": said.remedies,
            "placements": said.placements,
            "elsewhere": said.elsewhere,
            "pools": said.pools.iter().map(|of| json!({
                "pool": of.pool,
                "prospect": of.prospect,
                "text": of.text,
            })).collect::<Vec<_>>(),
            "conflicts": conflicts::json(&found),
        }))?;
        return Ok(Exit::Success);
    }
    let of = options.task.as_deref().unwrap_or(&run);
    let paint = context.output.data_paint;
    let mut text = text(of, &said, paint);
    if !found.is_empty() {
        text.push('\n');
        text.push_str(&conflicts::text(&run, &found, &context.program, paint));
    }
    context.output.data(&text)?;
    Ok(Exit::Success)
}

/// Answers the questions that make sense for the state.
fn text(of: &str, said: &v1::ExplainTaskResponse, paint: Paint) -> String {
    let mut text = format!("{}: {}", paint.bold(of), show::state(paint, &said.state));
    let mut answer = |question: &str, lines: &[String]| {
        if !lines.is_empty() {
            text.push_str(&format!("\n{}", paint.cyan(question)));
        }
        for line in lines {
            text.push_str(&format!("\n  {}", one_line(line)));
        }
    };
    answer(question(&said.state), &said.reasons);
    let pools: Vec<String> = said
        .pools
        .iter()
        .map(|of| format!("{}: {}", of.pool, of.text))
        .collect();
    answer("will a pool bring a worker for it?", &pools);
    answer("what would change that?", &said.remedies);
    let running = matches!(said.state.as_str(), "leased" | "verifying");
    let there = if running {
        "why does it run there?"
    } else {
        "why did it run there?"
    };
    answer(there, &said.placements);
    if !said.elsewhere.is_empty() {
        answer(
            "what would make it run elsewhere?",
            std::slice::from_ref(&said.elsewhere),
        );
    }
    text
}

fn question(state: &str) -> &'static str {
    match state {
        "skipped" => "why was it skipped?",
        "failed" => "why did it fail?",
        "cancelled" => "why was it cancelled?",
        "aborted" => "why was it aborted?",
        "leased" | "verifying" => "what is it doing?",
        "succeeded" => "how did it go?",
        "active" => "what keeps it from going on?",
        _ => "why is it not running?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: &str, of: [&str; 4]) -> String {
        let lines = |text: &str| {
            let lines = text.lines().map(str::to_owned);
            lines.collect::<Vec<_>>()
        };
        let said = v1::ExplainTaskResponse {
            state: state.to_owned(),
            reasons: lines(of[0]),
            remedies: lines(of[1]),
            placements: lines(of[2]),
            elsewhere: of[3].to_owned(),
            pools: if state == "ready" {
                vec![v1::PoolProspect {
                    pool: "gpu".to_owned(),
                    prospect: "hindered".to_owned(),
                    text: "it has its maximum of 3 allocations".to_owned(),
                }]
            } else {
                vec![]
            },
        };
        text("api", &said, Paint::new(false))
    }

    #[test]
    fn the_answers_stand_below_their_questions() {
        let waiting = ["it waits: no worker is connected", "start a worker", "", ""];
        let skipped = [
            "it was skipped because of schema, which failed: boom (agent_failed)",
            "`coordinator retry r schema` opens both again",
            "",
            "",
        ];
        let running = [
            "it runs on big",
            "",
            "attempt 2: on big: with 3 slots free it had the most of the 4 workers that had any\nattempt 1: on old, the only worker that had a slot free",
            "it needs agent command: other `labels`, `resources` or `pool` in the plan choose other workers, and `coordinator drain big` keeps new work away from that one",
        ];
        insta::assert_snapshot!(
            [
                told("ready", waiting),
                told("skipped", skipped),
                told("leased", running)
            ]
            .join("\n\n")
        );
    }
}
