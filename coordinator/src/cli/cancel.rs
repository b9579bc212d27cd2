//! `coordinator cancel`.

use muster_proto::v1;
use serde_json::json;

use super::arguments::Cancel;
use super::context::{Context, Session};
use super::error::{Exit, Result};
use super::{find, show};

pub(crate) async fn cancel(context: &Context, options: Cancel) -> Result<Exit> {
    let session = context.session().await?;
    let ended = ask(context, &session, &options).await;
    session.close().await;
    ended
}

async fn ask(context: &Context, session: &Session, options: &Cancel) -> Result<Exit> {
    let run = find::run(&session.client, Some(&options.run)).await?;
    let request = v1::CancelRequest {
        run: run.clone(),
        task: options.task.clone().unwrap_or_default(),
        reason: options.reason.clone(),
    };
    let tasks = session
        .client
        .operator()
        .cancel(request)
        .await?
        .into_inner()
        .tasks;
    if options.json {
        context
            .output
            .json(&json!({ "run": run, "task": options.task, "tasks": tasks }))?;
    } else {
        let what = show::counted(tasks as usize, "task");
        context
            .output
            .say(&format!("run {run}: {what} to be cancelled"));
    }
    Ok(Exit::Success)
}
