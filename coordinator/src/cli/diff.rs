//! `coordinator diff`.

use std::io::IsTerminal as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_proto::v1;
use serde_json::{Value, json};

use super::arguments::Diff;
use super::context::{Context, Session};
use super::error::{CliError, Exit, Result};
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
    let is_seen = std::io::stdout().is_terminal() && !options.json;
    let request = v1::GetDiffRequest {
        run: run.clone(),
        task: options.task.clone().unwrap_or_default(),
        attempt: options.attempt.unwrap_or_default(),
        stat: options.stat,
        // Nobody wants to look at these.
        binary: !is_seen,
        files: options.json,
    };
    let diff = session
        .client
        .operator()
        .get_diff(request)
        .await?
        .into_inner();
    if options.json {
        if diff.files.is_empty() && !diff.patch.is_empty() {
            let older =
                "the coordinator is older than this program and does not list changed files";
            return Err(CliError::user(older).hint("leave `--json` away, or update it"));
        }
        context.output.json(&json(&run, options, &diff))?;
        return Ok(Exit::Success);
    }
    if is_seen {
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

/// Describes a difference for programs.
fn json(run: &str, options: &Diff, diff: &v1::GetDiffResponse) -> Value {
    let files = diff.files.iter().map(|file| {
        let is_binary = file.added.is_none();
        let mut value = json!({
            "path": String::from_utf8_lossy(&file.path),
            "old_path": file.old_path.as_deref().map(String::from_utf8_lossy),
            "status": file.status,
            "added": file.added,
            "removed": file.removed,
            "binary": is_binary,
        });
        // For who needs the very name.
        for (key, path) in [
            ("path_base64", Some(&file.path)),
            ("old_path_base64", file.old_path.as_ref()),
        ] {
            if let Some(path) = path.filter(|path| std::str::from_utf8(path).is_err()) {
                value[key] = STANDARD.encode(path).into();
            }
        }
        value
    });
    let files: Vec<_> = files.collect();
    let more = diff.files_total.saturating_sub(files.len() as u64);
    let (patch, encoding) = match std::str::from_utf8(&diff.patch) {
        _ if options.stat => (Value::Null, Value::Null),
        Ok(text) => (text.into(), "utf-8".into()),
        Err(_) => (STANDARD.encode(&diff.patch).into(), "base64".into()),
    };
    json!({
        "run": run,
        "task": options.task,
        "attempt": options.attempt,
        "from": diff.from,
        "to": diff.to,
        "files": files,
        "files_left_out": more,
        "patch": patch,
        "patch_encoding": encoding,
        "truncated": diff.truncated && !options.stat,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(stat: bool) -> Diff {
        Diff {
            run: None,
            task: Some("a".to_owned()),
            attempt: None,
            stat,
            json: true,
        }
    }

    #[test]
    fn programs_are_told_of_every_byte_of_a_patch_and_of_a_name() {
        let mut diff = v1::GetDiffResponse {
            patch: b"+caf\xc3\xa9\n".to_vec(),
            truncated: false,
            from: "1".to_owned(),
            to: "2".to_owned(),
            files: vec![v1::ChangedFile {
                path: b"caf\xe9".to_vec(),
                status: "renamed".to_owned(),
                old_path: Some(b"cafe".to_vec()),
                added: Some(1),
                removed: Some(0),
            }],
            files_total: 3,
        };
        let told = json("r", &options(false), &diff);
        let file = json!({
            "path": "caf\u{fffd}", "path_base64": "Y2Fm6Q==", "old_path": "cafe",
            "status": "renamed", "added": 1, "removed": 0, "binary": false,
        });
        assert_eq!(told["files"], json!([file]));
        assert_eq!(told["files_left_out"], 2);
        assert_eq!(
            (&told["patch"], &told["patch_encoding"]),
            (&json!("+café\n"), &json!("utf-8"))
        );
        diff.patch = b"+caf\xe9\n".to_vec();
        diff.files[0].added = None;
        let told = json("r", &options(false), &diff);
        assert_eq!(told["patch"], "K2NhZukK");
        assert_eq!(told["patch_encoding"], "base64");
        assert_eq!(told["files"][0]["binary"], true);
        assert_eq!(json("r", &options(true), &diff)["patch"], Value::Null);
    }
}
