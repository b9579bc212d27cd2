//! Where the work of tasks does not merge, as people and programs read it.

use std::fmt::Write as _;

use muster_proto::v1;
use serde_json::{Value, json};
use tonic::Code;

use super::client::Client;
use super::context::Context;
use super::error::Result;
use super::summary;
use crate::output::{Paint, harmless, one_line};

/// Tasks without a base that are looked into.
const TASKS_MAX: usize = 5;
/// Files that a person is shown.
const FILES_MAX: usize = 10;
/// Hunks of a file that a person is shown.
const HUNKS_MAX: usize = 3;
/// Lines of one side of a hunk that a person is shown.
const LINES_MAX: usize = 6;

/// Asks where the work of a run's tasks does not merge: for its integration, and for tasks whose
/// base could not be made. Nothing is asked of a run without conflicts.
pub(crate) async fn of_run(
    client: &Client,
    run: &v1::Run,
) -> Result<Vec<v1::GetConflictsResponse>> {
    let without_base = run.tasks.iter().filter(|task| {
        let failure = task.failure.as_ref();
        failure.is_some_and(|failure| failure.class == "base_conflict")
    });
    let mut asked: Vec<&str> = without_base
        .take(TASKS_MAX)
        .map(|task| task.name.as_str())
        .collect();
    let integration = run.integration.as_ref();
    if integration.is_some_and(|integration| integration.state == "conflict") {
        asked.push("");
    }
    let mut found = Vec::new();
    for task in asked {
        found.extend(of_task(client, &run.run, task).await?);
    }
    Ok(found)
}

/// Asks for the conflict that a task is part of, if it is part of one.
pub(crate) async fn of_task(
    client: &Client,
    run: &str,
    task: &str,
) -> Result<Option<v1::GetConflictsResponse>> {
    let request = v1::GetConflictsRequest {
        run: run.to_owned(),
        task: task.to_owned(),
    };
    match client.operator().get_conflicts(request).await {
        Ok(answer) => Ok(Some(answer.into_inner())),
        // There is none, or the coordinator is older than this program.
        Err(status)
            if matches!(
                status.code(),
                Code::FailedPrecondition | Code::Unimplemented
            ) =>
        {
            Ok(None)
        }
        Err(status) => Err(status.into()),
    }
}

/// Writes conflicts for a person, if there are any.
pub(crate) fn show(
    context: &Context,
    run: &v1::Run,
    found: &[v1::GetConflictsResponse],
) -> Result<()> {
    let paint = context.output.data_paint;
    let text = text(&run.run, found, &context.program, paint);
    if !text.is_empty() {
        context.output.data(&text)?;
    }
    Ok(())
}

/// Describes conflicts for a person; empty without any.
pub(crate) fn text(
    run: &str,
    found: &[v1::GetConflictsResponse],
    program: &str,
    paint: Paint,
) -> String {
    let mut text = String::new();
    for conflict in found {
        one(&mut text, conflict, paint);
        let left_out = conflict.conflicts.len().saturating_sub(FILES_MAX) + conflict.more as usize;
        if left_out > 0 {
            let run = summary::quoted(run);
            let _ = writeln!(
                text,
                "  … and {left_out} more: {program} status {run} --json"
            );
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn one(text: &mut String, found: &v1::GetConflictsResponse, paint: Paint) {
    let task = harmless(&found.task);
    let earlier: Vec<_> = found.onto_tasks.iter().map(|name| harmless(name)).collect();
    let earlier = match earlier.as_slice() {
        [] => "what was merged before".to_owned(),
        some => some.join(", "),
    };
    let for_whom = match found.base_of.as_str() {
        "" => String::new(),
        name => format!(", on which {} builds", harmless(name)),
    };
    let _ = writeln!(
        text,
        "\n{} {task} and {earlier}{for_whom}",
        paint.red("where they conflict:")
    );
    for conflict in found.conflicts.iter().take(FILES_MAX) {
        let mut names = vec![one_line(&conflict.path)];
        names.extend(conflict.other_paths.iter().map(|path| one_line(path)));
        let _ = writeln!(
            text,
            "  {}: {}",
            paint.bold(&names.join(", ")),
            words(conflict, &found.task)
        );
        for hunk in conflict.hunks.iter().take(HUNKS_MAX) {
            let ours = match conflict.tasks.split_last() {
                Some((_, earlier)) if !earlier.is_empty() => earlier.join(", "),
                _ => "before".to_owned(),
            };
            side(
                text,
                &format!("line {}, {}", hunk.line, one_line(&ours)),
                &hunk.ours,
                paint,
            );
            side(
                text,
                &format!("line {}, {task}", hunk.line),
                &hunk.theirs,
                paint,
            );
        }
        if conflict.has_more_hunks || conflict.hunks.len() > HUNKS_MAX {
            let _ = writeln!(text, "    … and more in this file");
        }
    }
}

/// Says in a person's words what a kind means here.
fn words(conflict: &v1::Conflict, task: &str) -> String {
    // Who has nothing there has deleted it.
    let has = |whose: &str| conflict.sides.iter().any(|side| side.side == whose);
    let task = harmless(task);
    let text = match conflict.kind.as_str() {
        "content" => "both changed the same lines",
        "both_added" => "both made it, with different content",
        "binary" => "both changed it, and it is no text",
        "modify_delete" if has("theirs") => {
            return format!("{task} changed it, and it was deleted before");
        }
        "modify_delete" => return format!("{task} deleted it, and it was changed before"),
        "rename_rename" => "both renamed it, to different names",
        "rename_delete" => "one renamed what the other deleted",
        "rename_collision" => "files that were renamed meet at one name",
        "directory_rename" => "a folder was renamed, and it is not clear where its files belong",
        "mode" => "they do not agree whether it may be executed",
        "symlink" => "both changed where the symbolic link points",
        "type_change" => "it is a file for one, a link or submodule for the other",
        "submodule" => "both moved the submodule",
        "file_directory" => "it is a file for one, a folder for the other",
        _ => return one_line(&conflict.message),
    };
    text.to_owned()
}

fn side(text: &mut String, label: &str, lines: &str, paint: Paint) {
    let _ = writeln!(text, "    {}", paint.dim(label));
    let count = lines.lines().count();
    if count == 0 {
        let _ = writeln!(text, "    {} {}", paint.dim("│"), paint.dim("(nothing)"));
    }
    for line in lines.lines().take(LINES_MAX) {
        let _ = writeln!(text, "    {} {}", paint.dim("│"), harmless(line));
    }
    if count > LINES_MAX {
        let left_out = count - LINES_MAX;
        let _ = writeln!(text, "    {} … {left_out} more lines", paint.dim("│"));
    }
}

/// Describes conflicts for programs.
pub(crate) fn json(found: &[v1::GetConflictsResponse]) -> Value {
    found.iter().map(json_of).collect()
}

fn json_of(found: &v1::GetConflictsResponse) -> Value {
    let files = found.conflicts.iter().map(|conflict| {
        let sides = conflict.sides.iter().map(|side| {
            json!({
                "side": side.side,
                "mode": side.mode,
                "object": side.object,
                "path": side.path,
            })
        });
        let hunks = conflict.hunks.iter().map(|hunk| {
            json!({
                "line": hunk.line,
                "ours": hunk.ours,
                "theirs": hunk.theirs,
                "cut": hunk.is_cut,
            })
        });
        json!({
            "kind": conflict.kind,
            "path": conflict.path,
            "other_paths": conflict.other_paths,
            "tasks": conflict.tasks,
            "message": conflict.message,
            "sides": sides.collect::<Vec<_>>(),
            "hunks": hunks.collect::<Vec<_>>(),
            "more_hunks": conflict.has_more_hunks,
        })
    });
    json!({
        "base_of": Some(&found.base_of).filter(|name| !name.is_empty()),
        "task": found.task,
        "onto_tasks": found.onto_tasks,
        "onto": found.onto,
        "commit": found.commit,
        "files": files.collect::<Vec<_>>(),
        "more": found.more,
    })
}

/// Adds the conflicts of a run to what programs read of it.
pub(crate) fn beside(mut run: Value, found: &[v1::GetConflictsResponse]) -> Value {
    if let Value::Object(keys) = &mut run {
        keys.insert("conflicts".to_owned(), json(found));
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostile() -> v1::GetConflictsResponse {
        let side = |side: &str| v1::ConflictSide {
            side: side.to_owned(),
            mode: "100644".to_owned(),
            object: "1".repeat(40),
            path: "poem.txt".to_owned(),
        };
        let many = "a line\n".repeat(9);
        v1::GetConflictsResponse {
            task: "right".to_owned(),
            onto_tasks: vec!["left".to_owned()],
            onto: "2".repeat(40),
            commit: "3".repeat(40),
            conflicts: vec![
                v1::Conflict {
                    kind: "content".to_owned(),
                    path: "poem\u{1b}[2J\n.txt".to_owned(),
                    tasks: vec!["left".to_owned(), "right".to_owned()],
                    sides: vec![side("base"), side("ours"), side("theirs")],
                    hunks: vec![v1::ConflictHunk {
                        line: 3,
                        ours: "red \u{1b}[31mroses\n".to_owned(),
                        theirs: many,
                        is_cut: false,
                    }],
                    ..v1::Conflict::default()
                },
                v1::Conflict {
                    kind: "modify_delete".to_owned(),
                    path: "notes".to_owned(),
                    sides: vec![side("base"), side("ours")],
                    ..v1::Conflict::default()
                },
            ],
            more: 2,
            ..v1::GetConflictsResponse::default()
        }
    }

    #[test]
    fn a_conflict_shows_who_has_which_lines_and_nothing_that_harms_a_terminal() {
        let text = text("r-1", &[hostile()], "coordinator", Paint::new(false));
        assert!(!text.contains('\u{1b}'), "{text:?}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn programs_get_every_hunk_as_it_is() {
        let run = beside(json!({"run": "r-1"}), &[hostile()]);
        let file = &run["conflicts"][0]["files"][0];
        assert_eq!(file["kind"], "content");
        assert_eq!(file["hunks"][0]["ours"], "red \u{1b}[31mroses\n");
        assert_eq!(run["conflicts"][0]["base_of"], Value::Null);
        assert_eq!(beside(json!({}), &[])["conflicts"], json!([]));
    }
}
