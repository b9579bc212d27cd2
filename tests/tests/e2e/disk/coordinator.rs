//! Disks of coordinators.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::{Cluster, Options};
use muster_tests::disk::{self, Faults, Mounted, Rule};
use muster_tests::process::Program;
use muster_tests::wait::{LONG, SOON, until_true};

use super::{
    AtWork, at_work, bitten, ended_by_itself, faulty_coordinator, notes, once_each, plan, says,
    shim, started, succeeded,
};
use crate::with_cluster;

pub(super) fn full_for_a_moment(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let faults = faulty_coordinator(programs, cluster)?;
        let AtWork {
            ledger,
            gates,
            run,
            worker: _worker,
        } = at_work(cluster, &[("a", true), ("b", true)])?;
        let mut full = Rule::fail(disk::WRITE, disk::ENOSPC, &cluster.home());
        full.ending = "journal.db-wal".to_owned();
        faults.set(0, &full)?;
        gates.open("a")?;
        gates.open("b")?;
        bitten(&faults, 0, 3)?;
        faults.clear(0)?;
        succeeded(cluster, &run)?;
        ensure!(cluster.coordinator()?.runs()?, "the coordinator has ended");
        once_each(&ledger, &["a", "b"])
    })
}

pub(super) fn refused_sync(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let faults = faulty_coordinator(programs, cluster)?;
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 2)?;
        let plan = plan(cluster, &ledger, &gates, &[("a", false), ("b", true)])?;
        // The specs of its tasks are one commit, the run is the next one.
        let mut broken = Rule::fail(disk::SYNC, disk::EIO, &cluster.home());
        broken.ending = "journal.db-wal".to_owned();
        (broken.after, broken.times) = (1, 1);
        faults.set(0, &broken)?;
        let key = "the-same-submission";
        let submit = || {
            let path = plan.to_string_lossy().into_owned();
            cluster.ask(["submit", &path, "--json", "--idempotency-key", key])
        };
        let refused = submit()?;
        ensure!(refused.code() != 0, "it was accepted: {}", refused.out);
        let said = ended_by_itself(cluster)?;
        says(
            &said,
            &[
                "write the journal",
                &cluster.home().to_string_lossy(),
                "start",
            ],
        )?;
        // The grant was in the refused batch or behind it.
        ensure!(
            ledger.lines()?.is_empty(),
            "a task has begun: {:?}",
            ledger.lines()?
        );
        faults.clear(0)?;
        cluster.serve()?;
        let again = cluster.ask([
            "submit",
            &plan.to_string_lossy(),
            "--json",
            "--idempotency-key",
            key,
        ])?;
        let run = again.success()?.last_json()?["run"]
            .as_str()
            .context("no run")?
            .to_owned();
        gates.open("b")?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["a", "b"])
    })
}

pub(super) fn read_only_at_work(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let faults = faulty_coordinator(programs, cluster)?;
        let AtWork {
            ledger,
            gates,
            run,
            worker: _worker,
        } = at_work(cluster, &[("a", true), ("b", true)])?;
        let home = cluster.home();
        faults.set(0, &Rule::fail(disk::CHANGING, disk::EROFS, &home))?;
        gates.open("a")?;
        let said = ended_by_itself(cluster)?;
        says(&said, &["write the journal", &home.to_string_lossy()])?;
        let refused = cluster.server().run(&cluster.logs(), SOON)?;
        ensure!(refused.code() != 0, "it started: {}", refused.err);
        says(
            &refused.err,
            &[&home.to_string_lossy(), "Read-only file system"],
        )?;
        faults.clear(0)?;
        cluster.serve()?;
        gates.open("b")?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["a", "b"])
    })
}

pub(super) fn full_repositories(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let repositories = cluster.home().join("repos");
        std::fs::create_dir(&repositories)?;
        let disk = Mounted::small(&repositories, 16 << 20)?;
        cluster.serve()?;
        let worker = cluster.start_worker("w", 2)?;
        let (note, wait) = (ledger.note(), gates.wait("go"));
        // One push cannot begin, the other breaks off in the middle of its pack.
        let text = format!(
            "name: disk\nrepo: {{ from: ./seed }}\ndefaults: {{ timeout: 5m }}\ntasks:\n  - name: small\n    \
             run: |\n      {note}\n      {wait}\n      echo small > small.txt\n  - name: large\n    run: |\n      \
             {note}\n      {wait}\n      head -c 4000000 /dev/urandom > large.bin\n"
        );
        cluster.seed()?;
        let run = cluster.submit(&cluster.write_plan("disk.yaml", &text)?)?;
        started(&ledger, 2)?;
        let ballast = disk.fill()?;
        gates.open("go")?;
        let refused = |task: &str| {
            let push = format!("/{task}/1: unpacker error");
            until_true("the push is refused", SOON, || {
                Ok(worker.errors().contains(&push))
            })
        };
        refused("small")?;
        File::options()
            .write(true)
            .open(&ballast)?
            .set_len(14 << 20)?;
        refused("large")?;
        std::fs::remove_file(ballast)?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["small", "large"])?;
        let status = cluster.status(&run)?;
        for task in ["small", "large"] {
            ensure!(status.attempts(task)?.len() == 1, "{}", status.json);
        }
        let name = status.json["repository"]
            .as_str()
            .context("no repository")?;
        sound_and_tidy(cluster, &cluster.hosted(name)?)
    })
}

/// Insists on a repository in which git finds nothing wrong and nothing is left of a failed push.
fn sound_and_tidy(cluster: &Cluster, repository: &Path) -> Result<()> {
    Program::new(Path::new("git"), repository)
        .args(["fsck", "--strict", "--no-dangling"])
        .var("GIT_DIR", repository)
        .var("HOME", cluster.folder().join("user"))
        .run(&cluster.logs(), SOON)?
        .success()?;
    let mut left = Vec::new();
    let mut folders = vec![repository.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_left = name.starts_with("tmp_") || name.starts_with("incoming-");
            if is_left || name.ends_with(".lock") || name.contains(".tmp-") {
                left.push(entry.path());
            }
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

pub(super) fn full_transcripts(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(Options::short_leases()), |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let faults = faulty_coordinator(programs, cluster)?;
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 2)?;
        let transcripts = cluster.home().join("transcripts");
        faults.set(0, &Rule::fail(disk::GROWING, disk::ENOSPC, &transcripts))?;
        let mut broken = Rule::fail(disk::SYNC, disk::EIO, &transcripts);
        broken.times = 3;
        faults.set(1, &broken)?;
        let run = cluster.submit(&plan(
            cluster,
            &ledger,
            &gates,
            &[("a", true), ("b", false)],
        )?)?;
        started(&ledger, 2)?;
        bitten(&faults, 0, 3)?;
        // Heartbeats go on meanwhile: no lease is lost, and no session.
        let worker = cluster.worker_named("w")?.context("no worker")?;
        ensure!(worker["state"] == "connected", "{worker}");
        faults.clear(0)?;
        bitten(&faults, 1, 3)?;
        gates.open("a")?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["a", "b"])?;
        for task in ["a", "b"] {
            let line = format!("this is {task}\n");
            until_true("the transcript is complete", SOON, || {
                let said = cluster.ask(["logs", &run, task])?.success()?;
                Ok(said.out.matches(&line).count() == 1)
            })?;
        }
        Ok(())
    })
}

/// Puts the home of a cluster onto a small disk of its own.
fn small_home(cluster: &Cluster, bytes: u64) -> Result<Mounted> {
    let config = std::fs::read(cluster.home().join("config.toml")).ok();
    let mounted = Mounted::small(&cluster.home(), bytes)?;
    if let Some(config) = config {
        std::fs::write(cluster.home().join("config.toml"), config)?;
    }
    Ok(mounted)
}

pub(super) fn full_home(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let disk = small_home(cluster, 32 << 20)?;
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 2)?;
        let plan = plan(cluster, &ledger, &gates, &[("a", true)])?;
        let run = cluster.submit(&plan)?;
        let plain = format!(
            "name: plain\ntasks:\n  - name: b\n    run: |\n      {}\n      {}\n",
            ledger.note(),
            gates.wait("b")
        );
        let plain = cluster.submit(&cluster.write_plan("plain.yaml", &plain)?)?;
        started(&ledger, 2)?;
        let ballast = disk.fill()?;
        let refused = cluster.ask(["submit", &plan.to_string_lossy()])?;
        ensure!(refused.code() != 0, "it was accepted: {}", refused.out);
        says(&refused.err, &[&cluster.home().to_string_lossy()])?;
        let nothing = cluster.write_plan("nothing.yaml", &nothing_to_push())?;
        let refused = cluster.ask(["submit", &nothing.to_string_lossy()])?;
        ensure!(refused.code() != 0, "it was accepted: {}", refused.out);
        says(&refused.err, &["full", "free some space"])?;
        // What noticed that the disk is full may have given back what it held.
        disk.fill()?;
        // The one cannot push its work and waits, the other has nothing to push and reports.
        gates.open("a")?;
        gates.open("b")?;
        let home = cluster.home();
        let home = home.to_string_lossy();
        let said = ended_by_itself(cluster)?;
        says(
            &said,
            &["write the journal", "full", &home, "free some space"],
        )?;
        // What lay beside its databases is given back by a start, which may be room enough for it; that a
        // start without room is refused is tried by itself.
        std::fs::remove_file(ballast)?;
        cluster.serve()?;
        succeeded(cluster, &run)?;
        succeeded(cluster, &plain)?;
        once_each(&ledger, &["a", "b"])?;
        let status = cluster.status(&run)?;
        ensure!(status.attempts("a")?.len() == 1, "{}", status.json);
        let name = status.json["repository"]
            .as_str()
            .context("no repository")?;
        sound_and_tidy(cluster, &cluster.hosted(name)?)
    })
}

/// A plan too large for the room that a file may have left behind its end.
fn nothing_to_push() -> String {
    let mut text = "name: nothing\ntasks:\n".to_owned();
    for number in 0..100 {
        text.push_str(&format!("  - {{ name: t{number}, run: 'true' }}\n"));
    }
    text
}

pub(super) fn embedded(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let shim = shim(programs).map_err(anyhow::Error::msg)?;
        let faults = Faults::new(&shim, cluster.folder())?;
        let plan = plan(cluster, &ledger, &gates, &[("a", true)])?;
        let run = cluster.call(["run", &plan.to_string_lossy(), "--slots", "1"]);
        let mut process = faults.apply(run).start(&cluster.logs(), "run")?;
        started(&ledger, 1)?;
        let mut broken = Rule::fail(disk::SYNC, disk::EIO, &cluster.home());
        broken.ending = "journal.db-wal".to_owned();
        faults.set(0, &broken)?;
        gates.open("a")?;
        let ended = process.ended(SOON)?;
        ensure!(ended.code() == Some(1), "{ended}\n{}", process.errors());
        let home = cluster.home();
        says(
            &process.errors(),
            &["write the journal", &home.to_string_lossy(), "run --resume"],
        )?;
        cluster.ask(["run", "--resume"])?.success()?;
        once_each(&ledger, &["a"])
    })
}

pub(super) fn first_start(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let small = cluster.folder().join("small");
        std::fs::create_dir(&small)?;
        // Each breaks off at another step of the first start, and for all the worker lacks room.
        for kilobytes in [8, 32, 64, 96, 112, 144, 176, 208] {
            let disk = Mounted::small(&small, kilobytes << 10)?;
            let home = small.join("state/muster");
            let mut server = cluster.server();
            server = server.var("MUSTER_HOME", &home);
            let refused = server.run(&cluster.logs(), SOON)?.expect(2)?;
            says(
                &refused.err,
                &[&home.to_string_lossy(), "full", "free some space"],
            )?;
            let left: Vec<_> = std::fs::read_dir(&small)?.collect::<Result<_, _>>()?;
            ensure!(left.is_empty(), "{kilobytes} kB: left behind: {left:?}");
            drop(disk);
        }
        Ok(())
    })
}

pub(super) fn nearly_full_run(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let plan = plan(cluster, &ledger, &gates, &[("a", false)])?;
        let disk = small_home(cluster, 14 << 20)?;
        let run = cluster.call(["run", &plan.to_string_lossy(), "--slots", "1"]);
        let refused = run.run(&cluster.logs(), SOON)?.expect(2)?;
        let home = cluster.home();
        says(
            &refused.err,
            &[&home.to_string_lossy(), "nearly full", "free some space"],
        )?;
        let left: Vec<_> = std::fs::read_dir(&home)?.collect::<Result<_, _>>()?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        ensure!(ledger.lines()?.is_empty(), "a task has begun");
        // With room it is as if nothing had been.
        drop(disk);
        run.run(&cluster.logs(), LONG)?.success()?;
        once_each(&ledger, &["a"])
    })
}

pub(super) fn read_only_at_start(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let home = cluster.home();
        let fresh = Mounted::read_only(&home)?;
        let refused = cluster.server().run(&cluster.logs(), SOON)?;
        ensure!(
            (1..=99).contains(&refused.code()),
            "it started: {}",
            refused.err
        );
        says(
            &refused.err,
            &[&home.to_string_lossy(), "Read-only file system"],
        )?;
        drop(fresh);
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 1)?;
        let state = described.folder.join("state");
        std::fs::create_dir(&state)?;
        cluster
            .coordinator()?
            .signal(rustix::process::Signal::TERM)?;
        cluster.coordinator()?.ended(SOON)?;
        let _used = Mounted::read_only(&home)?;
        let refused = cluster.server().run(&cluster.logs(), SOON)?;
        ensure!(
            (1..=99).contains(&refused.code()),
            "it started: {}",
            refused.err
        );
        says(
            &refused.err,
            &[&home.to_string_lossy(), "Read-only file system"],
        )?;
        let _read_only = Mounted::read_only(&state)?;
        let refused = described.run(&cluster.logs(), SOON)?;
        ensure!(refused.code() != 0, "it started: {}", refused.err);
        says(
            &refused.err,
            &[&state.to_string_lossy(), "Read-only file system"],
        )
    })
}

/// The words that let a program run as somebody without power over others' files, or why there are
/// none.
pub(super) fn powerless(programs: &Programs) -> Result<Vec<OsString>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Vec::new());
    }
    let words = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let tried = std::process::Command::new(words[0])
        .args(&words[1..])
        .arg(&programs.coordinator)
        .arg("--version")
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(words.map(OsString::from).to_vec()),
        Ok(_) => Err("needs programs that others than root may run".to_owned()),
        Err(error) => Err(format!("needs the program setpriv: {error}")),
    }
}

pub(super) fn unreadable(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let home = cluster.home();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        };
        mode(cluster.folder(), 0o755)?;
        mode(&home, 0o000)?;
        let mut server = cluster.server();
        server.wrapper = powerless(programs).map_err(anyhow::Error::msg)?;
        let refused = server.run(&cluster.logs(), SOON)?;
        mode(&home, 0o700)?;
        ensure!(
            (1..=99).contains(&refused.code()),
            "it started: {}",
            refused.err
        );
        says(
            &refused.err,
            &[&home.to_string_lossy(), "Permission denied"],
        )
    })
}
