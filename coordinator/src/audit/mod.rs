//! Checks everything that Muster keeps against everything else, and changes nothing.
//!
//! The journal is read whole, as of one moment, and judged by itself (`journal`, `ledger`). What it
//! says is then compared with hosted repositories (`refs`), transcripts (`transcripts`) and
//! workers' disks (`workers`). Each check finds what it can though others have failed.
//!
//! Beside a coordinator or a worker that runs, the world goes on while it is looked at: a ref may be newer than
//! the journal that was read. What is really wrong stays wrong, so findings count only when several
//! looks, each from scratch and some time after the one before, have found the same.

mod finding;
mod home;
pub(crate) mod journal;
mod ledger;
pub(crate) mod refs;
pub mod repair;
mod report;
mod transcripts;
mod usage;
mod workers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_git::Git;

pub use finding::{Code, Finding, Level, Place, Repair};
pub use refs::Depth;
pub use report::{Counts, Report};

use crate::app::JOURNAL;
use crate::store::sqlite::inspect::Beside;

/// How often a home is looked at beside a running coordinator before a finding counts.
const LOOKS: u32 = 3;
/// Pause between looks: longer than a session, a push or a projection takes for one step.
const PAUSE: Duration = Duration::from_secs(2);

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct Options {
    pub home: PathBuf,
    /// State folders of workers.
    pub workers: Vec<PathBuf>,
    pub depth: Depth,
    /// Whether a coordinator may be running on the home.
    pub beside: Beside,
}

/// Checks a home and workers' folders.
pub async fn audit(git: &Git, options: &Options) -> Report {
    let mut report = look(git, options).await;
    if options.beside == Beside::Coordinator || report.counts.running_workers > 0 {
        for _ in 1..LOOKS {
            if report
                .findings
                .iter()
                .all(|found| found.code.level() == Level::Note)
            {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            let mut again = look(git, options).await;
            again.keep_common(&report);
            report = again;
        }
    }
    report.findings.sort_by(|a, b| {
        (a.code.level(), &a.place, a.code).cmp(&(b.code.level(), &b.place, b.code))
    });
    report
}

async fn look(git: &Git, options: &Options) -> Report {
    let first = {
        let (home, beside) = (options.home.clone(), options.beside);
        tokio::task::spawn_blocking(move || files(&home, beside)).await
    };
    let Ok((mut report, facts, last)) = first else {
        let mut report = Report::default();
        let place = Place::file(&options.home);
        let what = "the check itself has broken down";
        report.find(Finding::new(Code::JournalUnreadable, place, what));
        return report;
    };
    if let Some(facts) = &facts {
        refs::check(git, &options.home, options.depth, facts, &mut report).await;
    }
    let states = &options.workers;
    workers::check(
        git,
        (&options.home, states),
        options.depth,
        facts.as_ref(),
        &last,
        &mut report,
    )
    .await;
    report
}

type Files = (
    Report,
    Option<journal::Facts>,
    std::collections::BTreeMap<coordinator_core::LeaseId, u64>,
);

/// Checks what is only files.
fn files(home: &Path, beside: Beside) -> Files {
    let mut report = Report::default();
    // Before all else: what happens later is not in it, and everything else is looked at later.
    let facts = journal::check(&home.join(JOURNAL), beside, &mut report);
    // Before the transcripts, which are ahead of it beside a running coordinator.
    let mut usage = usage::Ledger::open(home, beside, &mut report);
    let root = home.join("transcripts");
    let last = transcripts::check(&root, facts.as_ref(), &mut usage, &mut report);
    usage.finish(&mut report);
    home::check(home, beside, &mut report);
    (report, facts, last)
}

/// Gives the folders in which local workers of a home keep their state.
#[must_use]
pub fn local_workers(home: &Path) -> Vec<PathBuf> {
    let base = home.join("worker");
    if base.is_dir() {
        vec![base]
    } else {
        Vec::new()
    }
}
