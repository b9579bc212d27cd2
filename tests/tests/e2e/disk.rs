//! Disks that are full, broken, read-only or slow, under the coordinator and under workers.

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::disk::{self, Faults, Mounted, Rule};
use muster_tests::files::{Gates, Ledger};
use muster_tests::shim::Shim;
use muster_tests::wait::{SOON, until_true};
use muster_tests::{Process, Programs};

use crate::{Scenario, with_cluster};

const PRELOADED: &[(&str, Scenario)] = &[
    (
        "disk::a_journal_that_is_full_for_a_moment_holds_the_run_up_and_loses_nothing",
        full_for_a_moment,
    ),
    (
        "disk::a_refused_sync_of_the_journal_ends_the_coordinator_before_it_says_anything",
        refused_sync,
    ),
    (
        "disk::a_home_that_becomes_read_only_ends_the_coordinator_and_is_named",
        read_only_at_work,
    ),
    (
        "disk::what_agents_print_is_kept_by_their_worker_while_transcripts_take_nothing",
        full_transcripts,
    ),
    (
        "disk::a_worker_that_cannot_keep_its_word_does_not_give_it_and_takes_nothing_new",
        broken_outbox,
    ),
    (
        "disk::writes_that_take_a_few_bytes_at_a_time_change_nothing",
        short_writes,
    ),
    (
        "disk::a_sync_that_stalls_for_less_than_a_lease_loses_none",
        stalled_sync,
    ),
];

const MOUNTED: &[(&str, Scenario)] = &[
    (
        "disk::a_push_into_a_full_disk_leaves_nothing_behind_and_is_made_again",
        full_repositories,
    ),
    (
        "disk::a_full_home_ends_the_coordinator_and_with_space_it_goes_on_where_it_was",
        full_home,
    ),
    (
        "disk::a_home_on_a_read_only_disk_is_refused_by_name",
        read_only_at_start,
    ),
    (
        "disk::an_agent_that_fills_its_workers_disk_costs_the_others_no_work",
        full_worker,
    ),
];

/// All scenarios, with the reason for which one cannot be run here.
pub(crate) fn scenarios(programs: &Programs) -> Vec<(&'static str, Option<String>, Scenario)> {
    let no_shim = shim(programs).err();
    let no_mounts = disk::no_mounts();
    let preloaded = PRELOADED
        .iter()
        .map(|(name, scenario)| (*name, no_shim.clone(), *scenario));
    let mounted = MOUNTED
        .iter()
        .map(|(name, scenario)| (*name, no_mounts.clone(), *scenario));
    preloaded.chain(mounted).collect()
}

/// Compiles the library once for all.
fn shim(programs: &Programs) -> Result<Shim, String> {
    static COMPILED: OnceLock<Result<(tempfile::TempDir, Shim), String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let shim = Shim::compile(&programs.source, "disk", folder.path())?;
        Ok((folder, shim))
    });
    match compiled {
        Ok((_, shim)) => Ok(shim.clone()),
        Err(why) => Err(why.clone()),
    }
}

/// Rules for a coordinator that is yet to be started.
fn faulty_coordinator(programs: &Programs, cluster: &mut Cluster) -> Result<Faults> {
    let shim = shim(programs).map_err(anyhow::Error::msg)?;
    let faults = Faults::new(&shim, cluster.folder())?;
    cluster.coordinator_variables(faults.variables());
    Ok(faults)
}

/// A worker whose disk follows rules.
fn faulty_worker(
    programs: &Programs,
    cluster: &Cluster,
    name: &str,
    slots: u32,
) -> Result<(Faults, Process, std::path::PathBuf)> {
    let shim = shim(programs).map_err(anyhow::Error::msg)?;
    let folder = cluster.folder().join(format!("faults-{name}"));
    std::fs::create_dir_all(&folder)?;
    let faults = Faults::new(&shim, &folder)?;
    let described = cluster.worker(name, &cluster.address(), slots)?;
    let state = described.folder.join("state");
    let worker = cluster.start_described(&faults.apply(described), name)?;
    Ok((faults, worker, state))
}

/// A plan of tasks that note their start, wait before their door if they have one, print a line
/// and leave a file.
fn plan(
    cluster: &Cluster,
    ledger: &Ledger,
    gates: &Gates,
    tasks: &[(&str, bool)],
) -> Result<std::path::PathBuf> {
    let seed = cluster.folder().join("seed");
    std::fs::create_dir_all(&seed)?;
    std::fs::write(seed.join("README"), "seed\n")?;
    let mut text =
        "name: disk\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n".to_owned();
    for (name, gated) in tasks {
        let wait = if *gated {
            gates.wait(name)
        } else {
            "true".to_owned()
        };
        text.push_str(&format!(
            "  - name: {name}\n    run: |\n      {note}\n      {wait}\n      echo this is {name}\n      \
             echo {name} > {name}.txt\n",
            note = ledger.note(),
        ));
    }
    cluster.write_plan("disk.yaml", &text)
}

/// Insists that each task was begun once, in whichever attempt: a lease that never came to its
/// worker is an attempt that began nothing.
fn once_each(ledger: &Ledger, tasks: &[&str]) -> Result<()> {
    let lines = ledger.lines()?;
    let begun: Vec<&str> = lines
        .iter()
        .flat_map(|(line, count)| std::iter::repeat_n(line, *count))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let mut expected = tasks.to_vec();
    expected.sort_unstable();
    ensure!(begun == expected, "starts of attempts: {lines:?}");
    Ok(())
}

fn started(ledger: &Ledger, count: usize) -> Result<()> {
    until_true(&format!("{count} attempts run"), SOON, || {
        Ok(ledger.lines()?.len() >= count)
    })
}

fn bitten(faults: &Faults, rule: usize, count: u64) -> Result<()> {
    until_true(&format!("the disk has refused {count} times"), SOON, || {
        Ok(faults.counts(rule)?.1 >= count)
    })
}

fn succeeded(cluster: &Cluster, run: &str) -> Result<()> {
    let status = cluster.ended(run)?;
    ensure!(status.state() == "succeeded", "{}", status.json);
    Ok(())
}

/// Waits for the end of a coordinator and gives what it said.
fn ended_by_itself(cluster: &mut Cluster) -> Result<String> {
    let process = cluster.coordinator()?;
    let status = process.ended(SOON)?;
    let said = process.errors();
    ensure!(status.code() == Some(1), "{status}\n{said}");
    Ok(said)
}

fn says(text: &str, wanted: &[&str]) -> Result<()> {
    for wanted in wanted {
        ensure!(text.contains(wanted), "nothing of {wanted:?} in:\n{text}");
    }
    Ok(())
}

fn full_for_a_moment(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let faults = faulty_coordinator(programs, cluster)?;
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 2)?;
        let run = cluster.submit(&plan(
            cluster,
            &ledger,
            &gates,
            &[("a", true), ("b", true)],
        )?)?;
        started(&ledger, 2)?;
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

fn refused_sync(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
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

fn read_only_at_work(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let faults = faulty_coordinator(programs, cluster)?;
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 2)?;
        let run = cluster.submit(&plan(
            cluster,
            &ledger,
            &gates,
            &[("a", true), ("b", true)],
        )?)?;
        started(&ledger, 2)?;
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

fn full_repositories(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
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
        std::fs::create_dir(cluster.folder().join("seed"))?;
        std::fs::write(cluster.folder().join("seed/README"), "seed\n")?;
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
    muster_tests::process::Program::new(Path::new("git"), repository)
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

fn full_transcripts(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(Options::short_leases()), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
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

fn broken_outbox(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let (faults, worker, state) = faulty_worker(programs, cluster, "w", 2)?;
        let tasks = [("a", true), ("b", true), ("c", false)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        started(&ledger, 2)?;
        let state = state.canonicalize()?;
        // The probe of the disk fails as well.
        faults.set(0, &Rule::fail(disk::SYNC, disk::EIO, &state))?;
        gates.open("a")?;
        bitten(&faults, 0, 4)?;
        let status = cluster.status(&run)?;
        ensure!(
            ["leased", "running"].contains(&status.task_state("a")?),
            "it was told: {}",
            status.json
        );
        ensure!(
            ledger.lines()?.len() == 2,
            "a task was begun: {:?}",
            ledger.lines()?
        );
        says(&worker.errors(), &["taking nothing new", "free some space"])?;
        faults.clear(0)?;
        started(&ledger, 3)?;
        gates.open("b")?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["a", "b", "c"])
    })
}

fn short_writes(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let short = |below: &Path| Rule {
            calls: disk::WRITE,
            short_bytes: 11,
            below: below.to_owned(),
            ..Rule::default()
        };
        let coordinators = faulty_coordinator(programs, cluster)?;
        coordinators.set(0, &short(&cluster.home()))?;
        cluster.serve()?;
        let (workers, _worker, state) = faulty_worker(programs, cluster, "w", 2)?;
        workers.set(0, &short(&state.canonicalize()?))?;
        let run = cluster.submit(&plan(
            cluster,
            &ledger,
            &gates,
            &[("a", false), ("b", false)],
        )?)?;
        succeeded(cluster, &run)?;
        ensure!(
            coordinators.counts(0)?.1 > 0 && workers.counts(0)?.1 > 0,
            "no write was short"
        );
        let said = cluster.ask(["logs", &run, "a"])?.success()?;
        says(&said.out, &["this is a"])?;
        // What was written can be read.
        cluster.kill_coordinator()?;
        coordinators.clear(0)?;
        cluster.serve()?;
        succeeded(cluster, &run)
    })
}

fn stalled_sync(programs: &Programs) -> Result<()> {
    let options = Options {
        lease_ttl: Duration::from_secs(10),
        lease_grace: Duration::from_secs(1),
        heartbeat_interval: Duration::from_millis(500),
    };
    with_cluster(programs, Some(options), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let faults = faulty_coordinator(programs, cluster)?;
        cluster.serve()?;
        let (workers, _worker, state) = faulty_worker(programs, cluster, "w", 3)?;
        let state = state.canonicalize()?;
        let tasks = [("a", true), ("b", true), ("c", true)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        started(&ledger, 3)?;
        let slow = |below: &Path| Rule::slow_sync(Duration::from_millis(50), below);
        let stall = |below: &Path| Rule {
            times: 1,
            ..Rule::slow_sync(Duration::from_secs(5), below)
        };
        faults.set(1, &slow(&cluster.home()))?;
        workers.set(1, &slow(&state))?;
        // First the worker's disk, then the coordinator's; the others are at work meanwhile.
        workers.set(0, &stall(&state))?;
        gates.open("a")?;
        bitten(&workers, 0, 1)?;
        faults.set(0, &stall(&cluster.home()))?;
        gates.open("b")?;
        bitten(&faults, 0, 1)?;
        gates.open("c")?;
        succeeded(cluster, &run)?;
        let status = cluster.status(&run)?;
        for task in ["a", "b", "c"] {
            ensure!(status.attempts(task)?.len() == 1, "{}", status.json);
        }
        once_each(&ledger, &["a", "b", "c"])
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

fn full_home(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
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
        says(&refused.err, &["No space left on device"])?;
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
        let refused = cluster.server().run(&cluster.logs(), SOON)?;
        ensure!(refused.code() != 0, "it started: {}", refused.err);
        says(&refused.err, &[&home, "full"])?;
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

fn read_only_at_start(programs: &Programs) -> Result<()> {
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
        )
    })
}

fn full_worker(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 2)?;
        let state = described.folder.join("state");
        std::fs::create_dir(&state)?;
        let _disk = Mounted::small(&state, 48 << 20)?;
        let worker = cluster.start_described(&described, "w")?;
        let note = ledger.note();
        let filled = cluster.folder().join("filled");
        std::fs::create_dir(cluster.folder().join("seed"))?;
        std::fs::write(cluster.folder().join("seed/README"), "seed\n")?;
        let text = format!(
            "name: hog\nrepo: {{ from: ./seed }}\ndefaults: {{ timeout: 5m }}\ntasks:\n  - name: hog\n    \
             run: |\n      {note}\n      cat /dev/zero > $TMPDIR/ballast || true\n      touch {filled}\n      \
             {wait}\n      rm $TMPDIR/ballast\n  - name: neighbour\n    run: |\n      {note}\n      {next}\n      \
             echo done > work.txt || touch work.txt\n  - name: later\n    run: |\n      {note}\n",
            filled = filled.display(),
            wait = gates.wait("hog"),
            next = gates.wait("neighbour"),
        );
        let run = cluster.submit(&cluster.write_plan("hog.yaml", &text)?)?;
        started(&ledger, 2)?;
        until_true("the disk is full", SOON, || Ok(filled.exists()))?;
        until_true("the worker says so", SOON, || {
            Ok(worker.errors().contains("taking nothing new"))
        })?;
        gates.open("neighbour")?;
        until_true("the commit cannot be made", SOON, || {
            Ok(worker.errors().contains("waiting for the disk"))
        })?;
        ensure!(
            ledger.lines()?.len() == 2,
            "a task was begun: {:?}",
            ledger.lines()?
        );
        gates.open("hog")?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["hog", "neighbour", "later"])
    })
}
