//! What is known afterwards, from outside: what attempts noted themselves, what the coordinator says,
//! and what git holds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use muster_tests::RunStatus;
use muster_tests::process::Program;
use muster_tests::wait::SOON;
use serde_json::Value;

use crate::world::{Submitted, World};

/// What one attempt noted, times in milliseconds since 1970.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    /// Times and marks of its beginnings; there must be no second one.
    pub(crate) begins: Vec<(f64, String)>,
    /// Exit codes that it was about to end with.
    pub(crate) ends: Vec<i64>,
    /// Last sign of life of any of its processes.
    pub(crate) last: f64,
    /// Who gave that sign.
    pub(crate) last_by: String,
    /// When each of its verifies began.
    pub(crate) verifies: Vec<f64>,
}

/// What all attempts noted, by run, task and number.
pub(crate) type Ledger = BTreeMap<(String, String, u64), Noted>;

/// Reads the ledger.
///
/// # Errors
/// A file cannot be read, or holds what no attempt writes.
pub(crate) fn ledger(folder: &Path) -> Result<Ledger> {
    let mut ledger = Ledger::new();
    for run in std::fs::read_dir(folder)? {
        let run = run?;
        for file in std::fs::read_dir(run.path())? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let (task, number) = name.split_once('.').context("a ledger's name")?;
            let key = (
                run.file_name().to_string_lossy().into_owned(),
                task.to_owned(),
                number.parse()?,
            );
            let noted = noted(&std::fs::read_to_string(file.path())?)
                .with_context(|| format!("read the ledger {name}"))?;
            ledger.insert(key, noted);
        }
    }
    Ok(ledger)
}

fn noted(text: &str) -> Result<Noted> {
    let mut noted = Noted::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [at, what, pid, detail] = words.as_slice() else {
            anyhow::bail!("a line {line:?}");
        };
        let at = at.parse::<f64>()? * 1_000.0;
        match *what {
            "verify" if *detail == "begun" => noted.verifies.push(at),
            "verify" => {}
            _ => {
                match *what {
                    "begin" => noted.begins.push((at, (*detail).to_owned())),
                    "end" => noted.ends.push(detail.parse()?),
                    _ => {}
                }
                if at > noted.last {
                    noted.last = at;
                    noted.last_by = format!("{what} {detail} (process {pid})");
                }
            }
        }
    }
    Ok(noted)
}

/// A run as the coordinator tells it.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) submitted: Submitted,
    pub(crate) status: RunStatus,
    /// Events of the journal, as `watch --json` prints them.
    pub(crate) events: Vec<Value>,
}

/// Asks for a run.
///
/// # Errors
/// A command fails, or prints what it should not.
pub(crate) fn told(world: &World, submitted: &Submitted) -> Result<Told> {
    let run = submitted.run.as_str();
    let status = RunStatus {
        json: world.insist(&["status", run, "--json"])?.json()?,
    };
    let watched = world
        .call(&["watch", run, "--json"])
        .context("`watch` of a run that has ended does not end")?;
    let events = watched
        .out
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("event {line:?}")))
        .collect::<Result<_>>()?;
    Ok(Told {
        submitted: submitted.clone(),
        status,
        events,
    })
}

/// Refs of a hosted repository with what they point to.
pub(crate) fn refs(world: &World, repository: &Path) -> Result<BTreeMap<String, String>> {
    let printed = git(
        world,
        repository,
        &["for-each-ref", "--format=%(refname) %(objectname)"],
    )?;
    Ok(printed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, commit)| (name.to_owned(), commit.to_owned()))
        .collect())
}

/// Lines of all files below `work` in a commit, by file.
pub(crate) fn work_files(
    world: &World,
    repository: &Path,
    commit: &str,
) -> Result<BTreeMap<String, Vec<String>>> {
    let output = git_program(world, repository)
        .args(["grep", "-h", "-I", "", commit, "--", "work"])
        .run(&world.cluster.logs(), SOON)?;
    // 1 says that there is no line at all.
    let output = if output.code() == 1 {
        output
    } else {
        output.success()?
    };
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in output.out.lines().filter(|line| !line.is_empty()) {
        let task = line.split(' ').nth(1).unwrap_or(line);
        files
            .entry(task.to_owned())
            .or_default()
            .push(line.to_owned());
    }
    Ok(files)
}

fn git_program(world: &World, repository: &Path) -> Program {
    Program::new(Path::new("git"), repository)
        .var("HOME", world.cluster.folder().join("user"))
        .var("GIT_DIR", repository)
}

fn git(world: &World, repository: &Path, words: &[&str]) -> Result<String> {
    let output = git_program(world, repository)
        .args(words.iter().map(|word| (*word).to_owned()))
        .run(&world.cluster.logs(), SOON)?;
    Ok(output.success()?.out)
}
