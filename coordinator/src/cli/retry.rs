//! `coordinator retry`.

use muster_proto::v1;
use serde_json::json;

use super::arguments::Retry;
use super::context::{Context, Session};
use super::error::{Exit, Result};
use super::{find, show};

pub(crate) async fn retry(context: &Context, options: Retry) -> Result<Exit> {
    let session = context.session().await?;
    let ended = ask(context, &session, &options).await;
    session.close().await;
    ended
}

async fn ask(context: &Context, session: &Session, options: &Retry) -> Result<Exit> {
    let run = find::run(&session.client, Some(&options.run)).await?;
    let request = v1::RetryRequest {
        run: run.clone(),
        task: options.task.clone().unwrap_or_default(),
    };
    let tasks = session
        .client
        .operator()
        .retry(request)
        .await?
        .into_inner()
        .tasks;
    if options.json {
        context
            .output
            .json(&json!({ "run": run, "task": options.task, "tasks": tasks }))?;
    } else {
        context.output.say(&match tasks {
            0 => format!("run {run}: its tasks have succeeded; integrating them again"),
            _ => format!(
                "run {run}: {} reopened",
                show::counted(tasks as usize, "task")
            ),
        });
        let next = if session.is_own() {
            "nothing runs here now; go on with: PROGRAM run --resume RUN"
        } else {
            "follow it with: PROGRAM watch RUN"
        };
        context.output.say(
            &next
                .replace("PROGRAM", &context.program)
                .replace("RUN", &run),
        );
    }
    Ok(Exit::Success)
}
