//! The commands that look at these files.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use jiff::Timestamp;

use super::layout::{Folder, Meta, Status};
use super::{show, stream};
use crate::cli::arguments::{Clean, Tail};
use crate::cli::context::Context;
use crate::cli::error::{CliError, Exit, Kind, Result};
use crate::cli::interrupt::Interrupts;

/// How often `tail` looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const CHUNK_BYTES: u64 = 1024 * 1024;
/// Takes a terminal's cursor home and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Is `status --dir`: shows the board once, or every `watch` until all tasks have ended.
pub(crate) async fn status(
    context: &Context,
    folder: &Folder,
    watch: Option<Duration>,
    as_json: bool,
) -> Result<Exit> {
    let mut interrupts = Interrupts::listen()?;
    loop {
        let tasks = folder.read_all()?;
        if tasks.is_empty() {
            return Err(nothing(folder));
        }
        if as_json {
            context.output.json(&tasks)?;
        } else {
            let clear = watch.is_some() && context.output.data_is_terminal;
            let board = show::board(&tasks, Timestamp::now(), context.output.data_paint);
            let clear = if clear { CLEAR } else { "" };
            context.output.data(&format!("{clear}{board}"))?;
        }
        let ended = tasks.iter().all(|task| task.status.is_final());
        let Some(pause) = watch.filter(|_| !ended) else {
            return Ok(verdict(&tasks));
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = interrupts.next() => return Ok(Exit::Interrupted),
        }
    }
}

/// The exit code says only whether something failed: the run's own is `run`'s.
fn verdict(tasks: &[Meta]) -> Exit {
    let bad = |task: &Meta| matches!(task.status, Status::Failed | Status::Cancelled);
    if tasks.iter().any(bad) {
        Exit::RunFailed
    } else {
        Exit::Success
    }
}

fn nothing(folder: &Folder) -> CliError {
    CliError::user(format!("{} has no logs of tasks", folder.path().display()))
        .hint("`run PLAN --dir DIR` writes them; `--dir DIR` says where they are")
}

/// Is `tail`: what a task does, until it has ended.
pub(crate) async fn tail(context: &Context, options: Tail) -> Result<Exit> {
    let folder = Folder::new(&options.dir);
    let task = options.task.as_str();
    let unknown = || {
        CliError::user(format!(
            "{} has no log of task {task:?}",
            folder.path().display()
        ))
        .hint("`status --dir DIR` lists its tasks")
    };
    // A name that is none must not lead out of the folder.
    let plain = !task.is_empty() && !task.contains('/') && !task.starts_with('.');
    if !plain || folder.read_meta(task)?.is_none() {
        return Err(unknown());
    }
    let mut interrupts = Interrupts::listen()?;
    let path = folder.log(task);
    let mut position = 0;
    let mut tally = stream::Tally::default();
    loop {
        // Before reading: what was written before the end is read after it was seen.
        let meta = folder.read_meta(task)?.ok_or_else(unknown)?;
        loop {
            let bytes = read_from(&path, &mut position)?;
            if bytes.is_empty() {
                break;
            }
            for seen in tally.take(&bytes) {
                context.output.data(&show::tail_line(&seen))?;
            }
        }
        if meta.status.is_final() {
            let why = meta.error.as_deref().map(crate::output::one_line);
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let word = meta.status.as_str();
            context.output.data(&format!("COMPLETE {word}{why}"))?;
            return Ok(verdict(&[meta]));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = interrupts.next() => return Ok(Exit::Interrupted),
        }
    }
}

/// Reads on; a file that has become shorter is a new attempt's, and read from its start.
fn read_from(path: &std::path::Path, position: &mut u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = || -> std::io::Result<()> {
        let mut file = match std::fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        if file.metadata()?.len() < *position {
            *position = 0;
        }
        file.seek(SeekFrom::Start(*position))?;
        file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
        *position += bytes.len() as u64;
        Ok(())
    };
    let mut read = read;
    read().map_err(|error| {
        CliError::new(Kind::User, error).while_doing(format!("read {}", path.display()))
    })?;
    Ok(bytes)
}

/// Is `clean`: removes `outputs` and `logs`, and nothing else of the folder.
pub(crate) fn clean(context: &Context, options: &Clean) -> Result<Exit> {
    let folder = Folder::new(&options.dir);
    let tasks = folder.read_all().unwrap_or_default();
    if tasks.iter().any(|task| task.status == Status::Running) && !options.force {
        return Err(CliError::user(format!(
            "tasks whose files are in {} are still running",
            folder.path().display()
        ))
        .hint("wait for them, or remove the files anyway with `--force`"));
    }
    let mut removed = 0;
    for part in [folder.outputs(), folder.logs()] {
        // A link is not followed: what it leads to is not ours.
        match std::fs::symlink_metadata(&part) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Ok(found) if !found.is_dir() => {
                return Err(CliError::user(format!(
                    "{} is not a folder; nothing of it was removed",
                    part.display()
                )));
            }
            _ => {}
        }
        std::fs::remove_dir_all(&part).map_err(|error| {
            CliError::new(Kind::User, error).while_doing(format!("remove {}", part.display()))
        })?;
        removed += 1;
        context.output.say(&format!("removed {}", part.display()));
    }
    if removed == 0 {
        let path = folder.path().display();
        context
            .output
            .say(&format!("{path} has neither outputs nor logs"));
    }
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_goes_on_where_it_was_and_starts_again_with_a_new_attempt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut position = 0;
        assert_eq!(read_from(&path, &mut position).unwrap(), b"");
        std::fs::write(&path, "first").unwrap();
        assert_eq!(read_from(&path, &mut position).unwrap(), b"first");
        assert_eq!(read_from(&path, &mut position).unwrap(), b"");
        std::fs::write(&path, "new").unwrap();
        assert_eq!(read_from(&path, &mut position).unwrap(), b"new");
    }
}
