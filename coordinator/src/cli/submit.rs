//! `coordinator submit`.

use muster_git::Git;
use serde_json::json;

use super::arguments::Submit;
use super::context::Context;
use super::error::{Exit, Result};
use super::submission::{self, Request};
use crate::config::Flags;

pub(crate) async fn submit(context: &Context, options: Submit) -> Result<Exit> {
    let agents = context.config(Flags::default())?.config.agents;
    let read = submission::read_plan(&options.plan, &agents)?;
    let client = context.client().await?;
    let git = Git::find().await?;
    let instead = options.source.repo.as_deref();
    let source = submission::source(&git, context.output, &read, instead).await?;
    let request = Request {
        idempotency_key: options.source.idempotency_key,
    };
    let submitted =
        submission::submit(&client, context.output, &read, source.as_ref(), &request).await?;
    let run = &submitted.run;
    if options.json {
        context
            .output
            .json(&json!({ "run": run, "fresh": submitted.fresh }))?;
    } else {
        context.output.data(run)?;
        if !submitted.fresh {
            context.output.say("this run was submitted before");
        }
        context
            .output
            .say(&format!("follow it with: coordinator watch {run}"));
    }
    Ok(Exit::Success)
}
