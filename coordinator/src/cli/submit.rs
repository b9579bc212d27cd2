//! `coordinator submit`.

use muster_git::Git;
use serde_json::json;

use super::arguments::Submit;
use super::context::Context;
use super::error::{Exit, Result};
use super::submission::{self, Submission};
use crate::config::Flags;

pub(crate) async fn submit(context: &Context, options: Submit) -> Result<Exit> {
    let agents = context.config(Flags::default())?.config.agents;
    let read = submission::read_plan(&options.plan, &agents)?;
    let client = context.client().await?;
    let git = Git::find().await?;
    let repo = options.source.repo.as_deref();
    let submission = Submission::find(&git, context.output, &read, repo, &agents).await?;
    let submitted = match options.source.idempotency_key {
        Some(key) => submission.submit_as(&client, key).await?,
        None => submission.submit_again(&client).await?,
    };
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
