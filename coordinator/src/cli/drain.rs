//! `coordinator drain`.

use muster_proto::v1;

use super::arguments::Drain;
use super::context::Context;
use super::error::{CliError, Exit, Result};

pub(crate) async fn drain(context: &Context, options: Drain) -> Result<Exit> {
    let client = context.client().await?;
    let request = v1::DrainWorkerRequest {
        worker: options.worker.clone(),
        undo: options.undo,
    };
    client
        .operator()
        .drain_worker(request)
        .await
        .map_err(|status| {
            let missing = status.code() == tonic::Code::NotFound;
            let error = CliError::from(status);
            if missing {
                error.hint(format!("`{} workers` lists them", context.program))
            } else {
                error
            }
        })?;
    if options.json {
        context
            .output
            .json(&serde_json::json!({ "worker": options.worker, "draining": !options.undo }))?;
        return Ok(Exit::Success);
    }
    context.output.say(&if options.undo {
        format!("worker {} takes work again", options.worker)
    } else {
        format!(
            "worker {} finishes what it holds and takes nothing new",
            options.worker
        )
    });
    Ok(Exit::Success)
}
