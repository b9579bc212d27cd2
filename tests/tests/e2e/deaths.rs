//! Whoever is killed, whenever: nothing is lost and nothing counts twice.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::files::{Gates, Ledger};
use muster_tests::wait::{LONG, SOON, until_true};
use muster_tests::{Process, Programs};
use rustix::process::Signal;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_killed_coordinator_comes_back_and_nothing_runs_twice",
        served_coordinator,
    ),
    (
        "a_run_whose_embedded_coordinator_was_killed_is_resumed",
        embedded_coordinator,
    ),
    (
        "a_killed_worker_leaves_no_process_and_its_task_runs_elsewhere",
        killed_worker,
    ),
    (
        "a_frozen_worker_leaves_no_process_and_its_late_result_is_refused",
        frozen_worker,
    ),
    (
        "what_an_agent_finished_under_a_frozen_worker_counts_for_nothing_and_is_kept",
        late_result,
    ),
    (
        "a_machine_that_loses_power_goes_on_where_it_was",
        power_loss,
    ),
    (
        "an_interrupted_run_finishes_what_runs_and_is_resumed",
        interrupted_run,
    ),
    (
        "a_run_interrupted_twice_leaves_no_process_and_is_resumed",
        run_interrupted_twice,
    ),
    (
        "a_worker_that_is_told_to_end_finishes_what_it_holds",
        drained_worker,
    ),
];

pub(crate) const SHORT: Options = Options::short_leases();

/// Six tasks in two layers, each of which notes its start and waits before a door.
pub(crate) fn gated_plan(
    cluster: &Cluster,
    ledger: &Ledger,
    gates: &Gates,
) -> Result<std::path::PathBuf> {
    let mut plan =
        "name: gated\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n".to_owned();
    std::fs::create_dir_all(cluster.folder().join("seed"))?;
    std::fs::write(cluster.folder().join("seed/README"), "seed\n")?;
    for (name, after) in [
        ("a", ""),
        ("b", ""),
        ("c", ""),
        ("d", "a"),
        ("e", "b, c"),
        ("f", "c"),
    ] {
        plan.push_str(&format!(
            "  - name: {name}\n    depends_on: [{after}]\n    run: |\n      {note}\n      {wait}\n      \
             echo {name} > {name}.txt\n    verify: [test -e {name}.txt]\n",
            note = ledger.note(),
            wait = gates.wait(name),
        ));
    }
    plan.push_str("integrate:\n  verify: ['test $(ls *.txt | wc -l) -eq 6']\n");
    cluster.write_plan("gated.yaml", &plan)
}

fn all_once(ledger: &Ledger) -> Result<()> {
    let lines = ledger.lines()?;
    let expected = ["a 1", "b 1", "c 1", "d 1", "e 1", "f 1"];
    let once = lines
        .iter()
        .map(|(line, count)| (line.as_str(), *count))
        .collect::<Vec<_>>();
    ensure!(
        once == expected.map(|line| (line, 1)),
        "starts of attempts: {lines:?}"
    );
    Ok(())
}

pub(crate) fn started(ledger: &Ledger, count: usize) -> Result<()> {
    until_true(&format!("{count} attempts run"), SOON, || {
        Ok(ledger.lines()?.len() >= count)
    })
}

fn served_coordinator(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let _one = cluster.start_worker("one", 2)?;
        let _two = cluster.start_worker("two", 2)?;
        let run = cluster.submit(&gated_plan(cluster, &ledger, &gates)?)?;
        started(&ledger, 3)?;

        // One attempt ends while nobody is there to hear it; two are still at work.
        cluster.kill_coordinator()?;
        gates.open("a")?;
        cluster.serve()?;
        started(&ledger, 4)?;
        for gate in ["b", "c"] {
            gates.open(gate)?;
        }
        started(&ledger, 6)?;
        // Once more, with the second layer at work, and at once after the doors have opened.
        for gate in ["d", "e", "f"] {
            gates.open(gate)?;
        }
        cluster.kill_coordinator()?;
        cluster.serve()?;

        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        for task in ["a", "b", "c", "d", "e", "f"] {
            ensure!(status.attempts(task)?.len() == 1, "{}", status.task(task)?);
        }
        all_once(&ledger)?;
        // Events have no gap and no repetition over three lives of the coordinator.
        let watched = cluster.ask(["watch", &run, "--json"])?.success()?;
        let mut seqs = Vec::new();
        for line in watched.out.lines() {
            let event: serde_json::Value = serde_json::from_str(line)?;
            seqs.extend(event["seq"].as_u64());
        }
        // The last of them, that the run went to the archive, may be younger than `status`.
        let known = usize::try_from(status.json["last_seq"].as_u64().unwrap_or(u64::MAX))?;
        let expected: Vec<u64> = (1..=u64::try_from(seqs.len())?).collect();
        ensure!(
            seqs == expected && seqs.len() >= known,
            "{known} events, and {seqs:?}"
        );
        Ok(())
    })
}

fn embedded_coordinator(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let plan = gated_plan(cluster, &ledger, &gates)?;
        let mut first = cluster
            .call(["run", &plan.to_string_lossy(), "--slots", "4", "--json"])
            .start(&cluster.logs(), "run")?;
        started(&ledger, 3)?;
        first.kill()?;
        gates.open("a")?;
        let mut second = cluster
            .call(["run", "--resume", "--slots", "4", "--json"])
            .start(&cluster.logs(), "resume")?;
        for gate in ["b", "c", "d", "e", "f"] {
            gates.open(gate)?;
        }
        let ended = second.ended(LONG)?;
        ensure!(ended.success(), "{ended}: {}", second.errors());
        let printed = second.printed();
        let last: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap_or("?"))?;
        ensure!(
            last["state"] == "succeeded" && last["tasks"]["succeeded"] == 6,
            "{last}"
        );
        all_once(&ledger)
    })
}

fn power_loss(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let plan = gated_plan(cluster, &ledger, &gates)?;
        gates.open("a")?;
        let mut first = cluster
            .call(["run", &plan.to_string_lossy(), "--slots", "3", "--json"])
            .start(&cluster.logs(), "run")?;
        // One task has succeeded, three are at work.
        started(&ledger, 4)?;
        first.signal(Signal::STOP)?;
        cluster.kill_everything();
        ensure!(!first.ended(SOON)?.success(), "the run had ended");
        for gate in ["b", "c", "d", "e", "f"] {
            gates.open(gate)?;
        }
        resumed(cluster)?;
        let lines = ledger.lines()?;
        ensure!(
            lines.values().all(|count| *count == 1),
            "an attempt ran twice: {lines:?}"
        );
        ensure!(
            lines.contains_key("a 1") && !lines.contains_key("a 2"),
            "{lines:?}"
        );
        Ok(())
    })
}

fn interrupted_run(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let plan = gated_plan(cluster, &ledger, &gates)?;
        let mut first = cluster
            .call(["run", &plan.to_string_lossy(), "--slots", "3", "--json"])
            .start(&cluster.logs(), "run")?;
        started(&ledger, 3)?;
        first.signal(Signal::INT)?;
        // What runs goes on; what would follow does not begin.
        let said = || Ok(!first.errors().is_empty() && first.errors().contains("Ctrl-C"));
        until_true("the run says that it drains", SOON, said)?;
        for gate in ["a", "b", "c", "d", "e", "f"] {
            gates.open(gate)?;
        }
        let ended = first.ended(SOON)?;
        ensure!(ended.code() == Some(130), "{ended}: {}", first.errors());
        ensure!(
            ledger.lines()?.len() == 3,
            "something began: {:?}",
            ledger.lines()?
        );
        resumed(cluster)?;
        all_once(&ledger)
    })
}

fn run_interrupted_twice(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        let plan = gated_plan(cluster, &ledger, &gates)?;
        let mut first = cluster
            .call(["run", &plan.to_string_lossy(), "--slots", "3", "--json"])
            .start(&cluster.logs(), "run")?;
        started(&ledger, 3)?;
        first.signal(Signal::INT)?;
        let said = || Ok(first.errors().contains("Ctrl-C"));
        until_true("the run says that it drains", SOON, said)?;
        first.signal(Signal::INT)?;
        // Before the worker would have been left to itself.
        let ended = first.ended(Duration::from_secs(15))?;
        ensure!(ended.code() == Some(130), "{ended}: {}", first.errors());
        let gate = cluster
            .folder()
            .join("gates")
            .to_string_lossy()
            .into_owned();
        until_true("nothing of the run is left", SOON, || {
            Ok(muster_tests::traces::mentioning(&gate).is_empty())
        })?;
        for gate in ["a", "b", "c", "d", "e", "f"] {
            gates.open(gate)?;
        }
        resumed(cluster)
    })
}

/// Resumes the last run and insists that it succeeds.
fn resumed(cluster: &Cluster) -> Result<()> {
    let output = cluster
        .ask(["run", "--resume", "--slots", "3", "--json"])?
        .success()?;
    let last = output.last_json()?;
    ensure!(
        last["state"] == "succeeded" && last["tasks"]["succeeded"] == 6,
        "{last}"
    );
    Ok(())
}

/// Two workers and a run of one task, whose first attempt edits a file, leaves processes in every
/// corner, and never ends; the second attempt succeeds at once.
pub(crate) struct Endless {
    run: String,
    pub(crate) mark: String,
    pub(crate) victim: Process,
    pub(crate) victim_name: &'static str,
    _other: Process,
}

fn endless(cluster: &mut Cluster) -> Result<Endless> {
    cluster.serve()?;
    let one = cluster.start_worker("one", 1)?;
    let two = cluster.start_worker("two", 1)?;
    endless_on(cluster, one, two)
}

/// Begins the run on workers named `one` and `two`; the victim is the one that got the task.
pub(crate) fn endless_on(cluster: &Cluster, one: Process, two: Process) -> Result<Endless> {
    std::fs::create_dir_all(cluster.folder().join("seed"))?;
    std::fs::write(cluster.folder().join("seed/README"), "seed\n")?;
    let mark = cluster.folder().to_string_lossy().into_owned();
    let plan = format!(
        r#"
name: endless
repo: {{ from: ./seed }}
defaults: {{ timeout: 5m }}
tasks:
  - name: hard
    env: {{ E2E_MARK: {mark} }}
    run: |
      if [ "$MUSTER_ATTEMPT" != 1 ]; then echo done > done.txt; exit 0; fi
      echo unfinished > draft.txt
      trap '' TERM
      (trap '' TERM HUP; setsid sh -c 'trap "" TERM HUP; while :; do sleep 1; done' &) &
      while [ ! -e {mark}/finish ]; do sleep 0.1; done
"#
    );
    let run = cluster.submit(&cluster.write_plan("endless.yaml", &plan)?)?;
    // The shell, the detached shell, and what each of them waits for.
    until_true(
        "the attempt and what it has detached are at work",
        SOON,
        || Ok(muster_tests::traces::with_variable("E2E_MARK", &mark)?.len() >= 4),
    )?;
    let id = cluster.status(&run)?.worker_of("hard")?.to_owned();
    let is_one = cluster
        .worker_named("one")?
        .is_some_and(|worker| worker["worker"] == id.as_str());
    let (victim, victim_name, other) = if is_one {
        (one, "one", two)
    } else {
        (two, "two", one)
    };
    Ok(Endless {
        run,
        mark,
        victim,
        victim_name,
        _other: other,
    })
}

/// Waits until nothing of the first attempt runs, and insists that this was before the lease's end.
pub(crate) fn gone_before_deadline(mark: &str, since: Instant) -> Result<()> {
    until_true("no descendant of the attempt runs", SOON, || {
        Ok(muster_tests::traces::with_variable("E2E_MARK", mark)?.is_empty())
    })?;
    let took = since.elapsed();
    let most = SHORT.lease_ttl + SHORT.lease_grace;
    ensure!(
        took < most,
        "descendants of the attempt ran for {took:?}; the lease was over after {most:?}"
    );
    Ok(())
}

pub(crate) fn runs_elsewhere(
    cluster: &Cluster,
    endless: &Endless,
) -> Result<muster_tests::RunStatus> {
    let status = cluster.ended(&endless.run)?;
    ensure!(status.state() == "succeeded", "{}", status.json);
    let attempts = status.attempts("hard")?;
    ensure!(attempts.len() == 2, "{}", status.task("hard")?);
    ensure!(
        attempts[0]["failure"]["class"] == "worker_lost",
        "{}",
        attempts[0]
    );
    ensure!(
        attempts[0]["worker"] != attempts[1]["worker"],
        "{}",
        status.task("hard")?
    );
    Ok(status)
}

fn refs_of_first(cluster: &Cluster, status: &muster_tests::RunStatus, kind: &str) -> Result<usize> {
    let end = "/hard/1";
    let start = format!("refs/muster/{kind}/");
    let refs = cluster.hosted_refs(status)?;
    Ok(refs
        .iter()
        .filter(|name| name.starts_with(&start) && name.ends_with(end))
        .count())
}

fn killed_worker(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let mut endless = endless(cluster)?;
        endless.victim.kill()?;
        gone_before_deadline(&endless.mark, Instant::now())?;
        let status = runs_elsewhere(cluster, &endless)?;
        ensure!(
            refs_of_first(cluster, &status, "attempts")? == 0,
            "the lost attempt was published"
        );

        // The worker's folder is still there: once it is back, the unfinished edits are handed in.
        let name = endless.victim_name;
        let _back = cluster.start_worker(name, 1)?;
        kept(cluster, &endless.run)
    })
}

fn kept(cluster: &Cluster, run: &str) -> Result<()> {
    until_true(
        "the unfinished edits are kept in salvage or wip",
        SOON,
        || {
            let status = cluster.status(run)?;
            Ok(refs_of_first(cluster, &status, "salvage")?
                + refs_of_first(cluster, &status, "wip")?
                > 0)
        },
    )
}

fn frozen_worker(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let endless = endless(cluster)?;
        endless.victim.signal(Signal::STOP)?;
        gone_before_deadline(&endless.mark, Instant::now())?;
        wakes_up_in_vain(cluster, &endless)
    })
}

fn late_result(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let endless = endless(cluster)?;
        endless.victim.signal(Signal::STOP)?;
        std::fs::write(cluster.folder().join("finish"), "")?;
        wakes_up_in_vain(cluster, &endless)
    })
}

/// Waits until the task has run elsewhere, wakes the frozen worker, and insists as below.
fn wakes_up_in_vain(cluster: &Cluster, endless: &Endless) -> Result<()> {
    runs_elsewhere(cluster, endless)?;
    comes_back_in_vain(cluster, endless, || endless.victim.signal(Signal::CONT))
}

/// Insists that nothing a lost worker still has to say changes anything once it is back, and that
/// its edits are kept.
pub(crate) fn comes_back_in_vain(
    cluster: &Cluster,
    endless: &Endless,
    bring_back: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = cluster.status(&endless.run)?.task("hard")?.clone();
    bring_back()?;
    let name = endless.victim_name;
    until_true("the worker is back and holds nothing", SOON, || {
        Ok(cluster
            .worker_named(name)?
            .is_some_and(|worker| worker["state"] == "connected" && worker["leases"] == 0))
    })?;
    kept(cluster, &endless.run)?;
    let after = cluster.status(&endless.run)?;
    let task = after.task("hard")?;
    ensure!(*task == before, "{before} became {task}");
    ensure!(
        refs_of_first(cluster, &after, "attempts")? == 0,
        "a late push was taken"
    );
    Ok(())
}

fn drained_worker(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let mut one = cluster.start_worker("one", 3)?;
        let run = cluster.submit(&gated_plan(cluster, &ledger, &gates)?)?;
        started(&ledger, 3)?;
        one.signal(Signal::TERM)?;
        until_true("the worker drains", SOON, || {
            Ok(cluster
                .worker_named("one")?
                .is_some_and(|worker| worker["state"] == "draining"))
        })?;
        for gate in ["a", "b", "c", "d", "e", "f"] {
            gates.open(gate)?;
        }
        let ended = one.ended(SOON + Duration::from_secs(30))?;
        ensure!(ended.success(), "{ended}: {}", one.errors());
        ensure!(
            ledger.lines()?.len() == 3,
            "a draining worker began something: {:?}",
            ledger.lines()?
        );
        let _two = cluster.start_worker("two", 3)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        all_once(&ledger)
    })
}
