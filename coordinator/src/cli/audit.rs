//! `coordinator audit`: does everything that is kept agree with everything else?

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use muster_git::Git;
use serde_json::json;

use super::arguments::Audit;
use super::context::Context;
use super::error::{CliError, Exit, Kind, Result};
use crate::app::JOURNAL;
use crate::audit::{self, Counts, Depth, Finding, Level, Options, Report};
use crate::home;
use crate::output::{Paint, one_line};
use crate::store::sqlite::inspect::Beside;

pub(crate) async fn audit(context: &Context, options: Audit) -> Result<Exit> {
    let home = home_of(context, "audit")?;
    let git = Git::find()
        .await
        .map_err(|error| CliError::new(Kind::User, error))?;
    // Held until the end, so that no coordinator starts in between.
    let quiet = home::quiet(home).map_err(CliError::internal)?;
    let beside = match quiet {
        Some(_) => Beside::Nobody,
        None => Beside::Coordinator,
    };
    let depth = if options.quick {
        Depth::Connectivity
    } else {
        Depth::Full
    };
    let mut workers = audit::local_workers(home);
    for state in &options.worker_state {
        insist_on_worker(state)?;
    }
    workers.extend(options.worker_state);
    let wanted = Options {
        home: home.to_owned(),
        workers,
        depth,
        beside,
    };
    let mut report = Box::pin(audit::audit(&git, &wanted)).await;
    if let Some(run) = &options.run {
        let run = find_run(&report, run)?;
        report.keep_run(&run);
    }
    if options.json {
        for finding in &report.findings {
            context.output.json(&as_json(finding))?;
        }
        context.output.json(&summary_json(&report, beside))?;
    } else {
        let paint = context.output.data_paint;
        context.output.data(&text(&report, beside, paint))?;
    }
    Ok(if report.is_clean() {
        Exit::Success
    } else {
        Exit::Problems
    })
}

/// Refuses a folder that no worker uses: what was to be looked at would be left out in silence.
fn insist_on_worker(state: &Path) -> Result<()> {
    let found = worker_agent::inspect::workers(state).map_err(|error| {
        CliError::new(Kind::User, error).while_doing(format!("look into {}", state.display()))
    })?;
    if found.is_empty() {
        let what = format!("no worker keeps its state in {}", state.display());
        return Err(CliError::user(what)
            .hint("name the folder that its worker was given as `--state-dir`, or the one above"));
    }
    Ok(())
}

/// Gives the home whose files a command works on.
pub(super) fn home_of<'a>(context: &'a Context, what: &str) -> Result<&'a Path> {
    let home = context.local_home().ok_or_else(|| {
        CliError::user(format!(
            "{what} reads the files of a home, not a coordinator's answers"
        ))
        .hint("run it on the coordinator's machine, without `--coordinator`")
    })?;
    match std::fs::metadata(home.join(JOURNAL)) {
        Ok(_) => return Ok(home),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let owner = std::fs::metadata(home).map(|found| found.uid()).ok();
            return Err(foreign(home, owner, &error));
        }
        Err(_) if home.join("repos").exists() => return Ok(home),
        Err(_) => {}
    }
    let nothing = CliError::user(format!(
        "there is no state of a coordinator in {}",
        home.display()
    ));
    let left = crate::backup::leftovers(home);
    Err(match left.first() {
        Some(left) => nothing.hint(format!(
            "a restore or backup that was killed has left {}, which holds secrets: the next \
             `restore` to this home removes it",
            left.display()
        )),
        None => nothing.hint("name its folder with `--home PATH` or MUSTER_HOME"),
    })
}

/// Says that a home cannot be looked into.
fn foreign(home: &Path, owner: Option<u32>, error: &std::io::Error) -> CliError {
    let whose = match owner {
        Some(owner) => format!("{} belongs to user {owner}", home.display()),
        None => format!("{} is another user's", home.display()),
    };
    let hint = match owner {
        Some(owner) => format!("run this as its owner, with `sudo -u '#{owner}'`"),
        None => "run this as its owner".to_owned(),
    };
    CliError::user(format!("{whose}, and cannot be looked into: {error}"))
        .hint(hint)
        .hint("or name a home of your own with `--home PATH` or MUSTER_HOME")
}

fn find_run(report: &Report, wanted: &str) -> Result<String> {
    if wanted == "@last"
        && let Some(last) = report.runs.last()
    {
        return Ok(last.clone());
    }
    let exact = report.runs.iter().find(|run| *run == wanted);
    let mut begins = report.runs.iter().filter(|run| run.starts_with(wanted));
    match (exact, begins.next(), begins.next()) {
        (Some(run), ..) | (None, Some(run), None) => Ok(run.clone()),
        (None, Some(_), Some(_)) => {
            Err(CliError::user(format!("several runs begin with {wanted}")))
        }
        (None, None, _) => Err(CliError::user(format!("there is no run {wanted}"))
            .hint("`coordinator status` lists the runs")),
    }
}

pub(super) fn as_json(finding: &Finding) -> serde_json::Value {
    json!({
        "kind": "finding",
        "code": finding.code.as_str(),
        "level": finding.code.level().as_str(),
        "place": *finding.place,
        "what": finding.what,
        "repairable": finding.repair.is_some(),
        "advice": finding.advice(),
    })
}

fn summary_json(report: &Report, beside: Beside) -> serde_json::Value {
    let more: serde_json::Map<String, serde_json::Value> = report
        .more
        .iter()
        .map(|(code, count)| (code.as_str().to_owned(), json!(count)))
        .collect();
    json!({
        "kind": "summary",
        "clean": report.is_clean(),
        "damage": report.count(Level::Damage),
        "leftover": report.count(Level::Leftover),
        "notes": report.count(Level::Note),
        "not_listed": more,
        "coordinator_runs": beside == Beside::Coordinator,
        "checked": report.counts,
    })
}

pub(super) fn text_of(finding: &Finding, paint: Paint) -> String {
    let level = finding.code.level();
    let name = match level {
        Level::Damage => paint.red(level.as_str()),
        Level::Leftover => paint.yellow(level.as_str()),
        Level::Note => paint.dim(level.as_str()),
    };
    let place = finding.place.to_string();
    let mut text = format!("{name} {}", paint.bold(finding.code.as_str()));
    if !place.is_empty() {
        text.push_str(&format!(": {}", one_line(&place)));
    }
    text.push_str(&format!(
        "\n  {}\n  {} {}",
        one_line(&finding.what),
        paint.cyan("next:"),
        finding.advice()
    ));
    text
}

fn text(report: &Report, beside: Beside, paint: Paint) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&text_of(finding, paint));
        text.push_str("\n\n");
    }
    for (code, count) in &report.more {
        text.push_str(&format!("and {count} more of {}\n", code.as_str()));
    }
    text.push_str(&counted(&report.counts));
    if beside == Beside::Coordinator {
        text.push_str("\na coordinator runs on the home: what was in motion is left out");
    }
    let of = |level| report.count(level);
    let notes = match of(Level::Note) {
        0 => String::new(),
        1 => ", 1 note".to_owned(),
        notes => format!(", {notes} notes"),
    };
    let verdict = if report.is_clean() {
        paint.green(&format!("nothing is wrong{notes}"))
    } else {
        let (damage, leftover) = (of(Level::Damage), of(Level::Leftover));
        paint.red(&format!("{damage} damaged, {leftover} left over{notes}"))
    };
    text.push_str(&format!("\n{verdict}"));
    text
}

/// Writes what was checked.
pub(super) fn counted(counts: &Counts) -> String {
    let Counts {
        batches,
        events,
        snapshots,
        runs,
        live_runs,
        tasks,
        leases,
        open_leases,
        documents,
        repositories,
        refs,
        commits,
        transcripts,
        agent_events,
        transcript_bytes,
        workers,
        running_workers,
        worker_leases,
        worker_reports,
        caches,
        ..
    } = counts;
    format!(
        "checked  journal       {batches} batches, {events} events, {snapshots} snapshots\n\
         \x20        runs          {runs} ({live_runs} live), {tasks} tasks, {documents} documents, {leases} leases ({open_leases} open)\n\
         \x20        repositories  {repositories} with {refs} refs, {commits} commits that count\n\
         \x20        transcripts   {transcripts} with {agent_events} events, {transcript_bytes} bytes\n\
         \x20        workers       {workers} ({running_workers} running) with {worker_leases} leases, {worker_reports} unsaid reports, {caches} caches"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_cannot_be_looked_into_is_not_taken_for_an_empty_folder() {
        let denied = std::io::ErrorKind::PermissionDenied.into();
        let error = foreign(Path::new("/home/ann/muster"), Some(1001), &denied);
        insta::assert_snapshot!(error.to_string(), @"
        error: /home/ann/muster belongs to user 1001, and cannot be looked into: permission denied
        hint: run this as its owner, with `sudo -u '#1001'`
        hint: or name a home of your own with `--home PATH` or MUSTER_HOME
        ");
    }
}
