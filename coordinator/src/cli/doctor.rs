//! `coordinator doctor`: is this machine ready, and if not, what to do?

use std::path::Path;
use std::time::Duration;

use muster_git::Git;
use muster_proto::v1;
use serde_json::json;
use worker_agent::checks::{self, Check, INODES_WARN, Verdict};

use super::arguments::Doctor;
use super::client::{Client, Trouble};
use super::context::Context;
use super::disk_use::DiskUse;
use super::error::{Exit, Result};
use super::table::Table;
use crate::audit::{self, Level};
use crate::config::Flags;
use crate::output::Paint;
use crate::store::sqlite::inspect::Beside;

/// Below this a few checkouts fill the disk.
const FREE_BYTES_WARN: u64 = 5 << 30;
/// A program that says its version has done so long before.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// A journal that is larger is not read whole for a glance.
const AUDIT_BYTES_MAX: u64 = 64 << 20;
/// A glance at the state takes no longer.
const AUDIT_MAX: Duration = Duration::from_secs(10);

pub(crate) async fn doctor(context: &Context, options: Doctor) -> Result<Exit> {
    if options.repair {
        return Box::pin(super::repair::repair(context, options.json)).await;
    }
    let mut found = vec![checks::git().await, configuration(context)];
    if let Some(home) = context.local_home() {
        let there = checks::existing(home);
        let writable = checks::writable(
            "home",
            home,
            &there,
            "name another folder with `--home PATH` or MUSTER_HOME",
        );
        found.extend([writable, file_system(&there), space(&there)]);
        found.extend(disk_use(home).await);
    }
    found.extend([
        checks::clock(super::show::local_time(jiff::Timestamp::now())),
        checks::open_files(),
        checks::cgroup(),
        checks::sandbox(),
    ]);
    found.push(supervisor().await);
    found.push(coordinator(context).await);
    found.extend(pools(context).await);
    if let Some(home) = context.local_home() {
        found.extend(half_copies(home));
        found.extend(Box::pin(state(home)).await);
    }

    if options.json {
        let listed: Vec<_> = found.iter().map(Check::to_json).collect();
        context.output.json(&json!({ "checks": listed }))?;
    } else {
        context
            .output
            .data(&text(&found, context.output.data_paint))?;
    }
    let failed = found.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed {
        Exit::Problems
    } else {
        Exit::Success
    })
}

fn painted(verdict: Verdict, paint: Paint) -> String {
    match verdict {
        Verdict::Ok => paint.green(verdict.as_str()),
        Verdict::Warn => paint.yellow(verdict.as_str()),
        Verdict::Fail => paint.red(verdict.as_str()),
    }
}

fn text(checks: &[Check], paint: Paint) -> String {
    let mut table = Table::new(&["CHECK", "", "FOUND"].map(|heading| paint.dim(heading)));
    for check in checks {
        table.row(vec![
            check.name.to_owned(),
            painted(check.verdict, paint),
            crate::output::one_line(&check.found),
        ]);
    }
    let mut text = table.text();
    for check in checks.iter().filter(|check| !check.advice.is_empty()) {
        text.push_str(&format!(
            "\n{} {}",
            paint.bold(&format!("{}:", check.name)),
            check.advice
        ));
    }
    text
}

fn configuration(context: &Context) -> Check {
    match crate::config::load(&context.home, Flags::default()) {
        Ok(_) => Check::ok("configuration", "right"),
        Err(error) => Check::fail(
            "configuration",
            error,
            "correct the file or the variable that it names",
        ),
    }
}

fn file_system(there: &Path) -> Check {
    const NAME: &str = "file system";
    match crate::file_system::network(there) {
        Ok(Some(kind)) => Check::fail(
            NAME,
            format!("{} is on {kind}, a network file system", there.display()),
            "the journal needs a local disk: set MUSTER_HOME to a folder on one",
        ),
        Ok(None) => Check::ok(NAME, "a local one".to_owned()),
        Err(error) => Check::warn(NAME, error, "see whether the home is on a local disk"),
    }
}

fn space(there: &Path) -> Check {
    const NAME: &str = "free space";
    let found = match rustix::fs::statvfs(there) {
        Ok(found) => found,
        Err(error) => return Check::warn(NAME, error, "see whether there is space with `df`"),
    };
    let bytes = found.f_bavail.saturating_mul(found.f_frsize);
    let all = found.f_blocks.saturating_mul(found.f_frsize);
    let shown = format!("{}.{} GiB", bytes >> 30, ((bytes >> 20) % 1024) * 10 / 1024);
    // Some file systems count no inodes.
    let inodes_short = found.f_files > 0 && found.f_favail < INODES_WARN;
    if bytes < crate::home::room_needed(all) {
        Check::fail(
            NAME,
            shown,
            "make room: the coordinator stops when it cannot write",
        )
    } else if bytes < FREE_BYTES_WARN {
        Check::warn(
            NAME,
            shown,
            "each attempt has a checkout of its own; make room for them",
        )
    } else if inodes_short {
        let files = found.f_favail;
        Check::warn(
            NAME,
            format!("{shown}, {files} files"),
            "few files can be made: make room",
        )
    } else {
        Check::ok(NAME, shown)
    }
}

/// Says what the home takes, part by part; `None` if it is not there yet.
async fn disk_use(home: &Path) -> Option<Check> {
    const NAME: &str = "disk use";
    let looked = home.to_owned();
    let looking =
        tokio::task::spawn_blocking(move || looked.is_dir().then(|| DiskUse::of(&looked)));
    let found = looking.await.ok().flatten()?;
    let advice = found.advice(home);
    let parts = found.parts.iter();
    Some(Check {
        advice,
        bytes: parts.map(|(part, bytes)| (part.name(), *bytes)).collect(),
        ..Check::ok(NAME, found.text())
    })
}

/// Starts this program as it starts supervisors; without its options one says how it is used.
async fn supervisor() -> Check {
    const NAME: &str = "supervisor";
    const ADVICE: &str = "supervisors are this program again: it must stay where it was started";
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Check::fail(NAME, error, ADVICE),
    };
    let probe = tokio::process::Command::new(&program)
        .arg("supervise")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(PROBE_MAX, probe).await {
        Ok(Ok(output)) if String::from_utf8_lossy(&output.stderr).contains("usage: supervise") => {
            Check::ok(NAME, "can be started")
        }
        Ok(Ok(output)) => Check::fail(NAME, format!("ended with {}", output.status), ADVICE),
        Ok(Err(error)) => Check::fail(NAME, format!("{}: {error}", program.display()), ADVICE),
        Err(_) => Check::fail(NAME, "did not start in time", ADVICE),
    }
}

/// Says what an audit finds, where that is known in a moment and nothing is in motion.
async fn state(home: &Path) -> Option<Check> {
    const NAME: &str = "state";
    let journal = std::fs::metadata(home.join(crate::app::JOURNAL)).ok()?;
    if journal.len() > AUDIT_BYTES_MAX {
        return Some(Check::ok(NAME, "large; `coordinator audit` checks it"));
    }
    let _quiet = crate::home::quiet(home).ok().flatten()?;
    let git = Git::find().await.ok()?;
    let options = audit::Options {
        home: home.to_owned(),
        workers: audit::local_workers(home),
        depth: audit::Depth::Connectivity,
        beside: Beside::Nobody,
    };
    let looking = audit::audit(&git, &options);
    let Ok(report) = tokio::time::timeout(AUDIT_MAX, looking).await else {
        return Some(Check::ok(NAME, "large; `coordinator audit` checks it"));
    };
    let (damage, leftover) = (report.count(Level::Damage), report.count(Level::Leftover));
    Some(if report.is_clean() {
        Check::ok(
            NAME,
            format!("{} runs, nothing is wrong", report.counts.runs),
        )
    } else {
        Check::warn(
            NAME,
            format!("{damage} damaged, {leftover} left over"),
            "`coordinator audit` shows them, and `coordinator doctor --repair` mends what it can",
        )
    })
}

/// Names what killed backups and restores have left beside the home; nothing if they have not.
fn half_copies(home: &Path) -> Option<Check> {
    let left = crate::backup::leftovers(home);
    let (first, more) = (left.first()?, left.len() - 1);
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(Check::warn(
        "half copies",
        format!(
            "a killed backup or restore has left {}{more}, with secrets",
            first.display()
        ),
        "`coordinator doctor --repair` removes them, as does the next backup or restore to there",
    ))
}

async fn coordinator(context: &Context) -> Check {
    const NAME: &str = "coordinator";
    match Client::connect(&context.whereabouts).await {
        Ok(client) => {
            let info = client.info();
            let software = info
                .version
                .as_ref()
                .map(|version| version.software.clone());
            Check::ok(
                NAME,
                format!(
                    "{} at {}, {} workers with {} slots",
                    software.unwrap_or_default(),
                    client.address(),
                    info.workers_connected,
                    info.slots
                ),
            )
        }
        Err(Trouble::NotRunning(_)) => {
            Check::ok(NAME, "none runs, which is fine: `run` starts one")
        }
        Err(Trouble::Other(error)) => Check::fail(
            NAME,
            error.message(),
            "see whether it runs, whether the address is right, and whether the token is its own",
        ),
    }
}

/// Says which pools start or end nothing; `None` without a coordinator, or without pools.
async fn pools(context: &Context) -> Option<Check> {
    let client = Client::connect(&context.whereabouts).await.ok()?;
    let request = v1::ListPoolsRequest::default();
    let listed = client.operator().list_pools(request).await.ok()?;
    pools_check(&listed.into_inner().pools)
}

fn pools_check(pools: &[v1::Pool]) -> Option<Check> {
    const NAME: &str = "pools";
    let names = |which: fn(&&v1::Pool) -> bool, what: &str| {
        let named: Vec<&str> = pools.iter().filter(which).map(|pool| &*pool.name).collect();
        (!named.is_empty()).then(|| format!("{} {what}", named.join(", ")))
    };
    let left = names(
        |pool| pool.kind.is_empty(),
        "not configured any more, with allocations that nobody ends",
    );
    let paused = names(
        |pool| !pool.kind.is_empty() && pool.paused.is_some(),
        "paused",
    );
    // In the word of `pool list`.
    let failing = names(|pool| super::pool::standing(pool) == "failing", "failing");
    let found: Vec<String> = [left, paused, failing].into_iter().flatten().collect();
    if found.is_empty() {
        let configured = pools.len();
        return (configured > 0).then(|| Check::ok(NAME, format!("{configured}, all ready")));
    }
    Some(Check::warn(
        NAME,
        found.join("; "),
        "`coordinator pool show NAME` says why, and the way out",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_start_or_end_nothing_are_named() {
        let pool = |name: &str, kind: &str| v1::Pool {
            name: name.to_owned(),
            kind: kind.to_owned(),
            ..v1::Pool::default()
        };
        let paused = v1::Pool {
            paused: Some(v1::PoolPause::default()),
            ..pool("gpu", "slurm")
        };
        let refused = v1::Pool {
            failures: 1,
            ..pool("build", "ec2")
        };
        let silent = v1::Pool {
            trouble: "failed to list allocations".to_owned(),
            ..pool("far", "ec2")
        };
        assert!(pools_check(&[]).is_none());
        let ready = pools_check(&[pool("near", "local")]).unwrap();
        assert_eq!(ready.verdict, Verdict::Ok);
        let found = [
            pool("old", ""),
            paused,
            pool("near", "local"),
            refused,
            silent,
        ];
        let found = pools_check(&found).unwrap();
        assert_eq!(found.verdict, Verdict::Warn);
        assert_eq!(
            found.found,
            "old not configured any more, with allocations that nobody ends; gpu paused; build, far failing"
        );
    }

    #[test]
    fn advice_follows_the_table() {
        let checks = [
            Check::ok("git", "2.47.0"),
            Check::fail("home", "read-only", "name another"),
        ];
        insta::assert_snapshot!(text(&checks, Paint::new(false)), @r"
        CHECK        FOUND
        git    ok    2.47.0
        home   fail  read-only
        home: name another
        ");
    }

    #[test]
    fn half_of_a_copy_beside_the_home_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        assert!(half_copies(&home).is_none());
        let left = folder.path().join(".muster-unfinished-x1");
        std::fs::create_dir(&left).unwrap();
        let check = half_copies(&home).unwrap();
        assert!(
            check.found.contains(left.to_str().unwrap()),
            "{}",
            check.found
        );
    }

    #[test]
    fn a_home_that_is_not_there_yet_is_judged_by_the_folder_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("a/b");
        assert_eq!(checks::existing(&home), folder.path());
        let writable = |there: &Path| checks::writable("home", &home, there, "name another");
        assert_eq!(writable(folder.path()).verdict, Verdict::Ok);
        let gone = folder.path().join("gone");
        assert_eq!(writable(&gone).verdict, Verdict::Fail);
    }
}
