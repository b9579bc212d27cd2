//! Works on a repository with a heavy history, and prints what that takes.
//!
//! Makes the repository with git's importer, runs two tasks on it with an embedded coordinator and
//! one local worker, and runs the same plan once more on the same home, where everything is cached.
//! The program `coordinator-under-test` beside this one is used unless another is named.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use muster_tests::history;

/// Works on a repository with a heavy history.
#[derive(Clone, Debug, Parser)]
#[command(name = "history")]
struct Arguments {
    /// Megabytes of history that do not compress; three times as much is needed on disk
    #[arg(long, default_value_t = 2_048)]
    megabytes: usize,
    /// Executable of the coordinator
    #[arg(long)]
    coordinator: Option<PathBuf>,
    /// Where everything is made, and removed at the end
    #[arg(long)]
    folder: Option<PathBuf>,
}

const PLAN: &str = "name: heavy\nrepo: ./user\ntasks:\n  - name: one\n    run: printf x > x\n  \
                    - name: two\n    depends_on: [one]\n    run: test -e x; printf y > y\n";

const MANY: &str = "name: many\nrepo: ./user\ntasks:\n  - name: many\n    run: |\n      \
                    i=0; while [ $i -lt 100 ]; do mkdir d$i; \
                    (cd d$i; seq 1 1000 | split -l 1 -a 3 - f); i=$((i+1)); done\n";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let parent = arguments.folder.unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new()
        .prefix("muster-history-")
        .tempdir_in(parent)?;
    let coordinator = match arguments.coordinator {
        Some(path) => path,
        None => std::env::current_exe()?
            .parent()
            .context("this program is in no folder")?
            .join("coordinator-under-test"),
    };
    let begun = Instant::now();
    history::make(&folder.path().join("user"), arguments.megabytes)?;
    say(&format!(
        "made {} MB of history in {:.1?}",
        arguments.megabytes,
        begun.elapsed()
    ))?;
    std::fs::write(folder.path().join("plan.yaml"), PLAN)?;
    for what in ["with nothing there", "with all in place"] {
        let begun = Instant::now();
        run(&coordinator, folder.path())?;
        say(&format!(
            "two tasks {what}, from submission to the integrated branch: {:.1?}",
            begun.elapsed()
        ))?;
    }
    std::fs::write(folder.path().join("plan.yaml"), MANY)?;
    let begun = Instant::now();
    run(&coordinator, folder.path())?;
    say(&format!(
        "one task that adds 100000 files: {:.1?}",
        begun.elapsed()
    ))?;
    let doctor = Command::new(&coordinator)
        .arg("doctor")
        .env("MUSTER_HOME", folder.path().join("home"))
        .output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let used = doctor.lines().find(|line| line.starts_with("disk use"));
    say(used.unwrap_or("doctor says nothing of disk use"))
}

fn run(coordinator: &Path, folder: &Path) -> Result<()> {
    let output = Command::new(coordinator)
        .args(["run", "plan.yaml", "--again", "--json"])
        .current_dir(folder)
        .env("MUSTER_HOME", folder.join("home"))
        .output()
        .with_context(|| format!("start {}", coordinator.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the run failed: {said}");
    Ok(())
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
