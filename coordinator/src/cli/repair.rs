//! `coordinator doctor --repair`: mends what an audit finds, and says what it did.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use muster_git::Git;
use serde_json::json;

use super::audit::{as_json, counted, home_of, text_of};
use super::context::{Context, of_home};
use super::error::{CliError, Exit, Kind, Result};
use crate::audit::repair::{self, Repaired, Step};
use crate::audit::{self, Depth, Level, Options};
use crate::home::{self, Home};
use crate::output::{Paint, one_line};
use crate::store::sqlite::inspect::Beside;

pub(super) async fn repair(context: &Context, as_lines: bool) -> Result<Exit> {
    let folder = home_of(context, "repair")?;
    insist_on_owner(folder, rustix::process::geteuid().as_raw())?;
    let git = Git::find()
        .await
        .map_err(|error| CliError::new(Kind::User, error))?;
    let home = Home::own(folder).map_err(|error| match error {
        home::Error::InUse { pid, .. } => context.in_use(pid).hint(
            "end it first: Ctrl-C where it runs, or `kill` its process; it finishes what it \
             writes, and its workers go on meanwhile",
        ),
        error @ home::Error::Io { .. } => unwritable(error),
        error => of_home(error),
    })?;
    let options = Options {
        home: home.path().to_owned(),
        workers: audit::local_workers(home.path()),
        depth: Depth::Full,
        beside: Beside::Nobody,
    };
    let done = Box::pin(repair::repair(&git, &home, &options)).await;
    if as_lines {
        for step in &done.steps {
            context.output.json(&step_json(step))?;
        }
        for finding in &done.report.findings {
            context.output.json(&as_json(finding))?;
        }
        context.output.json(&json!({
            "kind": "summary",
            "mended": mended(&done),
            "clean": done.report.is_clean(),
            "damage": done.report.count(Level::Damage),
            "leftover": done.report.count(Level::Leftover),
            "notes": done.report.count(Level::Note),
            "aside": done.aside,
            "checked": done.report.counts,
        }))?;
    } else {
        let paint = context.output.data_paint;
        context.output.data(&text(&done, paint))?;
    }
    Ok(if done.report.is_clean() {
        Exit::Success
    } else {
        Exit::Problems
    })
}

/// Refuses a home of somebody else: what is written anew would be out of its owner's reach.
fn insist_on_owner(home: &Path, user: u32) -> Result<()> {
    let owner = std::fs::metadata(home).map_or(user, |found| found.uid());
    if owner == user {
        return Ok(());
    }
    Err(CliError::user(format!(
        "{} belongs to user {owner}, and this is user {user}",
        home.display()
    ))
    .hint(format!(
        "repair it as its owner: `sudo -u '#{owner}' coordinator doctor --repair --home {}`",
        home.display()
    )))
}

/// Says why a home cannot be taken to be mended, and what to do.
fn unwritable(error: home::Error) -> CliError {
    let home::Error::Io { path, source, .. } = &error else {
        return CliError::internal(error);
    };
    let hint = match source.kind() {
        ErrorKind::ReadOnlyFilesystem => format!(
            "the disk of {} is read-only, so nothing was mended: see in the kernel's log why, and \
             mount it writable, or copy the home to another disk and name it with `--home`",
            path.display()
        ),
        ErrorKind::PermissionDenied => format!(
            "nothing was mended: see whose {} is, and repair it as that user",
            path.display()
        ),
        ErrorKind::StorageFull => format!(
            "nothing was mended: make room on the disk of {}",
            path.display()
        ),
        _ => return CliError::internal(error),
    };
    CliError::new(Kind::User, error).hint(hint)
}

fn mended(done: &Repaired) -> usize {
    done.steps
        .iter()
        .filter(|step| step.outcome.is_ok())
        .count()
}

fn step_json(step: &Step) -> serde_json::Value {
    let (outcome, how) = match &step.outcome {
        Ok(how) => ("mended", how),
        Err(why) => ("failed", why),
    };
    json!({
        "kind": "repair",
        "outcome": outcome,
        "how": how,
        "finding": as_json(&step.finding),
    })
}

fn text(done: &Repaired, paint: Paint) -> String {
    let mut text = String::new();
    for step in &done.steps {
        let (word, lead, how) = match &step.outcome {
            Ok(how) => (paint.green("mended"), "done:", how),
            Err(why) => (paint.red("failed"), "because:", why),
        };
        text.push_str(&format!(
            "{word} {}: {}\n  {}\n  {} {}\n\n",
            paint.bold(step.finding.code.as_str()),
            one_line(&step.finding.place.to_string()),
            one_line(&step.finding.what),
            paint.cyan(lead),
            one_line(how),
        ));
    }
    for finding in &done.report.findings {
        text.push_str(&text_of(finding, paint));
        text.push_str("\n\n");
    }
    text.push_str(&counted(&done.report.counts));
    let count = mended(done);
    let verdict = if done.report.is_clean() {
        paint.green(&format!("{count} mended; nothing is wrong now"))
    } else {
        let of = |level| done.report.count(level);
        paint.red(&format!(
            "{count} mended; {} damaged and {} left over still",
            of(Level::Damage),
            of(Level::Leftover)
        ))
    };
    text.push_str(&format!("\n{verdict}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ErrorKind) -> String {
        let error = home::Error::Io {
            action: "open",
            path: "/home/ann/muster/coordinator.lock".into(),
            source: kind.into(),
        };
        unwritable(error).to_string()
    }

    #[test]
    fn a_disk_that_takes_nothing_is_named_with_the_way_out() {
        insta::assert_snapshot!(refused(ErrorKind::ReadOnlyFilesystem), @"
        error: cannot open /home/ann/muster/coordinator.lock
          caused by: read-only filesystem or storage medium
        hint: the disk of /home/ann/muster/coordinator.lock is read-only, so nothing was mended: see in the kernel's log why, and mount it writable, or copy the home to another disk and name it with `--home`
        ");
        insta::assert_snapshot!(refused(ErrorKind::PermissionDenied), @"
        error: cannot open /home/ann/muster/coordinator.lock
          caused by: permission denied
        hint: nothing was mended: see whose /home/ann/muster/coordinator.lock is, and repair it as that user
        ");
        insta::assert_snapshot!(refused(ErrorKind::StorageFull), @"
        error: cannot open /home/ann/muster/coordinator.lock
          caused by: no storage space
        hint: nothing was mended: make room on the disk of /home/ann/muster/coordinator.lock
        ");
    }

    #[test]
    fn a_home_of_somebody_else_is_not_mended() {
        let home = tempfile::tempdir().unwrap();
        let own = std::fs::metadata(home.path()).unwrap().uid();
        insist_on_owner(home.path(), own).unwrap();
        let refused = insist_on_owner(home.path(), own + 1)
            .unwrap_err()
            .to_string();
        let refused = refused.replace(&home.path().display().to_string(), "HOME");
        let owner = format!("HOME belongs to user {own}, and this is user {}", own + 1);
        let way = format!("sudo -u '#{own}' coordinator doctor --repair --home HOME");
        assert!(
            refused.contains(&owner) && refused.contains(&way),
            "{refused}"
        );
    }
}
