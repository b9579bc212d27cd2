//! `coordinator diff`.

use std::io::IsTerminal as _;

use muster_proto::v1;

use super::arguments::Diff;
use super::context::{Context, Session};
use super::error::{Exit, Result};
use super::find;
use crate::output::{Paint, harmless};

pub(crate) async fn diff(context: &Context, options: Diff) -> Result<Exit> {
    let session = context.session().await?;
    let ended = show(context, &session, &options).await;
    session.close().await;
    ended
}

async fn show(context: &Context, session: &Session, options: &Diff) -> Result<Exit> {
    let run = find::run(&session.client, options.run.as_deref()).await?;
    let request = v1::GetDiffRequest {
        run: run.clone(),
        task: options.task.clone().unwrap_or_default(),
        attempt: options.attempt.unwrap_or_default(),
        stat: options.stat,
    };
    let diff = session
        .client
        .operator()
        .get_diff(request)
        .await?
        .into_inner();
    if std::io::stdout().is_terminal() {
        let text = String::from_utf8_lossy(&diff.patch);
        context
            .output
            .bytes(coloured(&text, context.output.data_paint).as_bytes())?;
    } else {
        // A patch that is to be applied must be what it is, byte for byte.
        context.output.bytes(&diff.patch)?;
    }
    if diff.patch.is_empty() {
        context.output.say("nothing has changed");
    }
    if diff.truncated {
        context.output.complain(&format!(
            "the patch is longer than what is shown; fetch the branch and use git: {} fetch {run}",
            context.program
        ));
    }
    Ok(Exit::Success)
}

fn coloured(patch: &str, paint: Paint) -> String {
    patch
        .lines()
        .map(|line| {
            let line = harmless(line);
            let line = match line.as_bytes() {
                [b'+', ..] if !line.starts_with("+++") => paint.green(&line),
                [b'-', ..] if !line.starts_with("---") => paint.red(&line),
                [b'@', ..] => paint.cyan(&line),
                _ if line.starts_with("diff ") => paint.bold(&line),
                _ => line.into_owned(),
            };
            line + "\n"
        })
        .collect()
}
