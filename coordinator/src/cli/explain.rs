//! `coordinator explain`.

use muster_proto::v1;
use serde_json::json;

use super::arguments::Explain;
use super::context::{Context, Session};
use super::error::{Exit, Result};
use super::{conflicts, find, show};
use crate::output::one_line;

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
        task: options.task.clone(),
    };
    let said = session
        .client
        .operator()
        .explain_task(request)
        .await?
        .into_inner();
    let found = conflicts::of_task(&session.client, &run, &options.task).await?;
    let found: Vec<_> = found.into_iter().collect();
    if options.json {
        context.output.json(&json!({
            "run": run,
            "task": options.task,
            "state": said.state,
            "reasons": said.reasons,
            "remedies": said.remedies,
            "conflicts": conflicts::json(&found),
        }))?;
        return Ok(Exit::Success);
    }
    let paint = context.output.data_paint;
    let mut text = format!(
        "{}: {}",
        paint.bold(&options.task),
        show::state(paint, &said.state)
    );
    for reason in &said.reasons {
        text.push_str(&format!("\n  {}", one_line(reason)));
    }
    for remedy in &said.remedies {
        text.push_str(&format!(
            "\n{} {}",
            paint.cyan("what would help:"),
            one_line(remedy)
        ));
    }
    if !found.is_empty() {
        text.push('\n');
        text.push_str(&conflicts::text(&run, &found, &context.program, paint));
    }
    context.output.data(&text)?;
    Ok(Exit::Success)
}
