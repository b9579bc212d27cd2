//! Pools of EC2 instances: a real coordinator drives a group, and real workers run on its instances.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::{Cluster, Options};
use muster_tests::ec2::{Boots, Capacity, Cloud, Notice};
use muster_tests::files::{Gates, Ledger};
use muster_tests::wait::{LONG, SOON, until_true};
use serde_json::{Value, json};

use crate::cluster::{Grid, Site, usual};
use crate::{Scenario, say};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "ec2_scales_a_group_from_zero_to_three_and_back",
        there_and_back,
    ),
    (
        "a_spot_notice_and_a_rebalance_notice_hand_tasks_over_within_thirty_seconds",
        notices,
    ),
    (
        "an_instance_that_never_joins_is_ended_after_its_deadline_and_counted",
        never_joins,
    ),
    (
        "a_pool_without_spot_capacity_says_so_waits_and_goes_on_by_itself",
        without_capacity,
    ),
];

pub(crate) const THREE_KINDS_SCENARIOS: &[(&str, Scenario)] = &[(
    "one_plan_uses_a_local_a_slurm_and_an_ec2_pool_at_once",
    three_kinds,
)];

/// How soon after a notice another worker has what the instance held.
const HAND_OVER: Duration = Duration::from_secs(30);

/// Why there can be no such pools here, if so.
pub(crate) fn missing(programs: &Programs) -> Option<String> {
    let words = [
        "--ec2",
        "--ca-file",
        "none",
        "--pool",
        "none",
        "--coordinator",
        "127.0.0.1:1",
    ];
    let said = Command::new(&programs.worker_agent).args(words).output();
    let can = said.is_ok_and(|said| {
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        said.contains("none") && !said.contains("without EC2")
    });
    if !can {
        return Some("needs programs that were built with EC2 pools".to_owned());
    }
    crate::machines::missing(programs)
}

/// Runs a test with a cluster and a cloud beside it; when it fails, the end of what everybody printed is
/// part of the message.
fn with_cloud(
    programs: &Programs,
    settings: &str,
    variables: &Value,
    test: impl FnOnce(&mut Cluster, &Cloud) -> Result<()>,
) -> Result<()> {
    let mut cluster = Cluster::new(programs, Some(Options::short_leases()))?;
    let cloud = Cloud::beside(&mut cluster, settings, variables)?;
    let tried = cluster.serve().and_then(|()| test(&mut cluster, &cloud));
    tried.map_err(|error| anyhow::anyhow!("{error:#}\n{}\n{}", cluster.story(), cloud.story()))
}

/// A plan of `count` tasks that begin at once and end when the gate `go` opens.
fn gated(cluster: &Cluster, ledger: &Ledger, gates: &Gates, count: usize) -> Result<String> {
    let mut plan = "name: gated\ntasks:\n".to_owned();
    for nth in 1..=count {
        plan.push_str(&format!(
            "  - name: t{nth}\n    pool: build\n    run: |\n      {}\n      {}\n      echo {nth} > t{nth}.txt\n",
            ledger.note(),
            gates.wait("go"),
        ));
    }
    cluster.submit(&cluster.write_plan("gated.yaml", &plan)?)
}

/// Files that tasks of another user may write.
fn shared(cluster: &Cluster) -> Result<(Ledger, Gates)> {
    let folder = cluster.folder().join("shared");
    std::fs::create_dir(&folder)?;
    let made = (Ledger::new(&folder)?, Gates::new(&folder)?);
    open_to_all(
        cluster,
        &[folder.clone(), folder.join("ledger"), folder.join("gates")],
    )?;
    Ok(made)
}

fn open_to_all(cluster: &Cluster, paths: &[PathBuf]) -> Result<()> {
    std::fs::set_permissions(cluster.folder(), Permissions::from_mode(0o711))?;
    for path in paths {
        std::fs::set_permissions(path, Permissions::from_mode(0o777))?;
    }
    Ok(())
}

fn there_and_back(programs: &Programs) -> Result<()> {
    let settings = "idle-timeout = \"2s\"\nburst = 10\n";
    let variables = json!({ "slots": 1, "max": 3 });
    with_cloud(programs, settings, &variables, |cluster, cloud| {
        let (ledger, gates) = shared(cluster)?;
        let begun = Instant::now();
        let run = gated(cluster, &ledger, &gates, 4)?;
        let ids = cloud
            .hypervisor
            .until_running(3)
            .with_context(|| cluster.story())?;
        until_true("three tasks run", LONG, || Ok(ledger.lines()?.len() == 3))?;
        say(&format!("0 to 3: {:.1} s", begun.elapsed().as_secs_f64()));
        ensure!(cloud.client().desired(&cloud.group)? == 3, "not three");
        // All of them have the host name of their image.
        let workers = cluster.workers()?;
        let hosts = workers.iter().filter_map(|worker| worker["host"].as_str());
        let hosts: BTreeSet<&str> = hosts.collect();
        let wanted: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        ensure!(hosts == wanted, "{hosts:?}");
        ensure!(cloud.running()?.len() == 3, "{:?}", cloud.running());

        // A coordinator that was killed finds its instances again and starts none twice.
        cluster.kill_coordinator()?;
        cluster.serve()?;
        gates.open("go")?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        cloud.hypervisor.until_running(0)?;
        say(&format!("and back: {:.1} s", begun.elapsed().as_secs_f64()));
        ensure!(
            cloud.client().desired(&cloud.group)? == 0,
            "the group wants some"
        );
        let ever = cloud.hypervisor.ever();
        ensure!(
            ever == ids.into_iter().collect::<BTreeSet<_>>(),
            "instances: {ever:?}"
        );
        let lines = ledger.lines()?;
        ensure!(
            lines.len() == 4 && lines.values().all(|count| *count == 1),
            "{lines:?}"
        );
        cloud.destroy()
    })
}

fn notices(programs: &Programs) -> Result<()> {
    let variables = json!({ "slots": 1, "max": 4 });
    with_cloud(programs, "", &variables, |cluster, cloud| {
        let (ledger, gates) = shared(cluster)?;
        let run = gated(cluster, &ledger, &gates, 2)?;
        let ids = cloud.hypervisor.until_running(2)?;
        until_true("both tasks run", LONG, || Ok(ledger.lines()?.len() == 2))?;
        for (id, notice, before) in [(&ids[0], Notice::Spot, 2), (&ids[1], Notice::Rebalance, 3)] {
            let begun = Instant::now();
            cloud.hypervisor.notice(id, notice)?;
            until_true("the worker has left", HAND_OVER, || {
                // Its instance may be ended already.
                let exits = cloud.hypervisor.with(id, |machine| machine.exits());
                Ok(exits.map_or(true, |exits| exits == [0]))
            })?;
            say(&format!(
                "{notice:?}: left after {:.1} s",
                begun.elapsed().as_secs_f64()
            ));
            until_true("another has its task", LONG, || {
                Ok(ledger.lines()?.len() > before)
            })?;
            say(&format!(
                "{notice:?}: goes on after {:.1} s",
                begun.elapsed().as_secs_f64()
            ));
        }
        gates.open("go")?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        // Given back, so it counts for nothing.
        for name in ["t1", "t2"] {
            ensure!(ended.attempts(name)?.len() == 2, "{}", ended.json);
        }
        Ok(())
    })
}

fn never_joins(programs: &Programs) -> Result<()> {
    let settings = "join-timeout = \"3s\"\nfailures = 2\nburst = 1\n";
    let variables = json!({ "slots": 1, "max": 1 });
    with_cloud(programs, settings, &variables, |cluster, cloud| {
        cloud.hypervisor.boots(Boots::Never);
        let (ledger, gates) = shared(cluster)?;
        gates.open("go")?;
        let run = gated(cluster, &ledger, &gates, 1)?;
        until_true("two instances were ended", LONG, || {
            Ok(cloud.hypervisor.ever().len() == 2 && cloud.running()?.is_empty())
        })?;
        until_true("the pool pauses itself", LONG, || {
            let shown = cluster.ask(["pool", "show", "build"])?.success()?.out;
            Ok(shown.contains("paused"))
        })?;
        ensure!(
            cloud.client().desired(&cloud.group)? == 0,
            "the group wants some"
        );

        cloud.hypervisor.boots(Boots::Normally);
        cluster.ask(["pool", "resume", "build"])?.success()?;
        until_true("a third one does the work", SOON, || {
            Ok(cloud.hypervisor.ever().len() == 3)
        })?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        Ok(())
    })
}

fn without_capacity(programs: &Programs) -> Result<()> {
    let variables = json!({ "slots": 1, "max": 3 });
    with_cloud(programs, "failures = 1\n", &variables, |cluster, cloud| {
        cloud.moto.capacity(Capacity::None)?;
        let (ledger, gates) = shared(cluster)?;
        gates.open("go")?;
        let run = gated(cluster, &ledger, &gates, 3)?;
        let mut told = String::new();
        until_true("the reason is told of each", LONG, || {
            told = cluster.ask(["pool", "show", "build"])?.success()?.out;
            Ok(told.matches("Unable to fulfill capacity").count() == 3)
        })
        .map_err(|error| error.context(told.clone()))?;
        ensure!(!told.contains("paused"), "{told}");
        cloud.moto.capacity(Capacity::Available)?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        checked_there(cluster)?;
        ensure!(cloud.hypervisor.ever().len() <= 3, "more than three");
        Ok(())
    })
}

/// What an operator types on an instance to see whether it can do a worker's work. It claims nothing, so the
/// worker beside it is not disturbed.
fn checked_there(cluster: &Cluster) -> Result<()> {
    let plan = r#"tasks:
  - name: check
    pool: build
    run: |
      . /etc/muster/worker.env
      /usr/local/bin/worker-agent --coordinator "$MUSTER_COORDINATOR" --ca-file /etc/muster/ca.pem --ec2 \
        --pool "$MUSTER_POOL" --state-dir "$TMPDIR/state" --check
"#;
    let run = cluster.submit(&cluster.write_plan("check.yaml", plan)?)?;
    let ended = cluster.ended(&run)?;
    let logs = cluster.ask(["logs", &run, "check"])?.success()?;
    ensure!(ended.state() == "succeeded", "{}", logs.out);
    let claimed = "not claimed; as i-";
    ensure!(logs.out.contains(claimed), "{}", logs.out);
    let reached = |line: &str| line.starts_with("coordinator") && line.contains(" ok ");
    ensure!(
        logs.out.lines().any(|line| reached(line.trim())),
        "{}",
        logs.out
    );
    Ok(())
}

fn three_kinds(programs: &Programs) -> Result<()> {
    let near = "[pools.near]\nkind = \"local\"\nmax = 1\nslots = 2\nidle-timeout = \"4s\"\n";
    let grid = Grid {
        nodes: 1,
        max: 1,
        slots: 2,
        cpus: 4,
        more: &format!("{}{near}", usual(programs)),
    };
    let mut site = Site::new(programs, &grid)?;
    let variables = json!({ "slots": 2, "max": 1 });
    let cloud = Cloud::beside(&mut site.cluster, "idle-timeout = \"4s\"\n", &variables)?;
    let tried = site.try_out(|site| {
        let folder = site.cluster.folder();
        open_to_all(
            &site.cluster,
            &[folder.join("ledger"), folder.join("gates")],
        )?;
        site.cluster.serve()?;
        let tasks = [
            ("near1", "    pool: near\n"),
            ("near2", "    pool: near\n"),
            ("grid1", "    pool: grid\n"),
            ("grid2", "    pool: grid\n"),
            ("build1", "    pool: build\n"),
            ("build2", "    pool: build\n"),
        ];
        // All at once.
        let run = site.at_work(&tasks, tasks.len())?;
        let status = site.cluster.status(&run)?;
        for (task, _) in tasks {
            let worker = status.worker_of(task)?;
            let is_of = match task {
                "grid1" | "grid2" => worker.starts_with("n1-"),
                "build1" | "build2" => worker.contains("-i-"),
                _ => !worker.starts_with("n1-") && !worker.contains("-i-"),
            };
            ensure!(is_of, "{task} is on {worker}");
        }
        site.succeeds(&run)?;
        cloud.hypervisor.until_running(0)?;
        until_true("nothing is left of any pool", LONG, || {
            let listed: Value = site.cluster.ask(["pool", "list", "--json"])?.json()?;
            let pools = listed["pools"].as_array().context("no pools")?;
            let empty = |pool: &Value| pool["allocations"].as_array().is_some_and(Vec::is_empty);
            Ok(pools.len() == 3 && pools.iter().all(empty) && site.slurm.jobs()?.is_empty())
        })?;
        cloud.destroy()
    });
    tried.with_context(|| cloud.story())
}
