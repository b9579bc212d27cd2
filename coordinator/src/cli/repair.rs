//! `coordinator doctor --repair`: mends what an audit finds, and says what it did.

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
    let git = Git::find()
        .await
        .map_err(|error| CliError::new(Kind::User, error))?;
    let home = Home::own(folder).map_err(|error| match error {
        home::Error::InUse { pid, .. } => context.in_use(pid).hint(
            "end it first: Ctrl-C where it runs, or `kill` its process; it finishes what it \
             writes, and its workers go on meanwhile",
        ),
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
