//! What happens to jobs on a real Slurm cluster in mid-task: the right result every time.

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::hosts::{Connected, Hosts};
use muster_tests::slurm::Slurm;
use muster_tests::wait::{LONG, SOON, until_true};
use muster_tests::{Programs, RunStatus};

use crate::Scenario;
use crate::cluster::{Grid, Site, plain, usual};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_requeued_job_hands_its_work_over_and_comes_back_on_a_node_that_is_not_drained",
        requeued,
    ),
    (
        "work_of_a_preempted_job_goes_on_after_those_who_came_first",
        preempted,
    ),
    (
        "work_of_a_job_that_an_administrator_cancels_goes_on_in_another",
        cancelled,
    ),
    (
        "work_of_a_crashed_node_goes_on_from_its_last_snapshot",
        crashed,
    ),
    (
        "work_of_a_job_whose_time_is_over_goes_on_in_another",
        walltime,
    ),
    (
        "a_controller_that_is_killed_and_forgets_what_runs_changes_no_result",
        controller,
    ),
];

pub(crate) const HOST_SCENARIOS: &[(&str, Scenario)] = &[(
    "a_job_that_runs_on_in_a_cut_off_node_and_is_started_again_elsewhere_counts_once",
    cut_off,
)];

/// Why there can be no nodes with networks of their own on this machine, if so.
pub(crate) fn without_hosts() -> Option<String> {
    muster_tests::slurm::missing().or_else(muster_tests::hosts::missing)
}

/// An agent that can go on from its edits, and a program that cannot.
const TASKS: [&str; 2] = ["talk", "runs"];

fn whole_nodes<'a>(nodes: usize, max: u32, more: &'a str) -> Grid<'a> {
    Grid {
        nodes,
        max,
        slots: 2,
        cpus: 4,
        more,
    }
}

/// Has both tasks at work, with a snapshot of the agent's edits.
fn at_work(site: &mut Site) -> Result<String> {
    site.cluster.serve()?;
    let run = site.at_work(&plain(&TASKS), 2)?;
    kept(site, &run)?;
    Ok(run)
}

fn kept(site: &Site, run: &str) -> Result<()> {
    until_true("unfinished edits are kept", SOON, || {
        let refs = site.cluster.hosted_refs(&site.cluster.status(run)?)?;
        let kept = refs.iter().filter(|name| name.contains("/wip/"));
        Ok(kept.count() == TASKS.len())
    })
}

/// Insists that both tasks took two attempts, the first of which ended in one of these ways, and that
/// the agent went on from where it was.
fn went_on(status: &RunStatus, classes: &[&str]) -> Result<()> {
    for (task, continues) in [("talk", Some(1)), ("runs", None)] {
        let attempts = status.attempts(task)?;
        ensure!(attempts.len() == 2, "{}", status.task(task)?);
        let class = attempts[0]["failure"]["class"].as_str().unwrap_or("?");
        ensure!(classes.contains(&class), "{}", attempts[0]);
        ensure!(attempts[1]["continues"].as_u64() == continues, "{status:?}");
    }
    Ok(())
}

/// Insists on that, and on what is in the branch; then that nothing is left.
fn goes_on(site: &Site, run: &str, classes: &[&str]) -> Result<()> {
    site.begun(4)?;
    let status = site.succeeds(run)?;
    went_on(&status, classes)?;
    let diff = site.text(&["diff", run])?;
    let begun = |name: &str| {
        let (_, of_it) = diff.split_once(&format!("+++ b/{name}.begun\n"))?;
        let of_it = of_it.split("\ndiff ").next()?;
        let lines = of_it.lines().filter(|line| line.starts_with('+'));
        Some(lines.map(str::to_owned).collect::<Vec<_>>().join(" "))
    };
    ensure!(begun("talk").as_deref() == Some("+1 +2"), "{diff}");
    ensure!(begun("runs").as_deref() == Some("+2"), "{diff}");
    site.is_empty_again()
}

fn requeued(programs: &Programs) -> Result<()> {
    let more = usual(programs);
    Site::new(programs, &whole_nodes(2, 1, &more))?.try_out(|site| {
        // Nothing can run at first.
        for node in ["n1", "n2"] {
            drain(site, node, "drain")?;
        }
        site.cluster.serve()?;
        let run = site.cluster.submit(&site.plan(&plain(&TASKS))?)?;
        until_true("a job waits", SOON, || {
            let jobs = site.slurm.jobs()?;
            Ok(jobs.iter().any(|(state, _)| state == "PENDING"))
        })?;
        let told = "grid: 1 allocation";
        let why = site.text(&["explain", &run, "talk"])?;
        ensure!(why.contains(told), "{why}");
        for node in ["n1", "n2"] {
            drain(site, node, "resume")?;
        }
        site.begun(2)?;
        kept(site, &run)?;
        let (job, node) = site.the_job()?;
        // That alone changes nothing for what runs.
        drain(site, &format!("n{node}"), "drain")?;
        site.slurm.ask("scontrol", &["requeue", &job])?;
        site.begun(4)?;
        let (again, other) = site.the_job()?;
        ensure!(again == job && other != node, "{again} on {other}");
        let pool = site.pool()?;
        ensure!(
            pool["allocations"].as_array().map(Vec::len) == Some(1),
            "{pool}"
        );
        goes_on(site, &run, &["preempted"])
    })
}

fn drain(site: &Site, node: &str, state: &str) -> Result<()> {
    let node = format!("nodename={node}");
    let state = format!("state={state}");
    let arguments = ["update", &*node, &state, "reason=test"];
    site.slurm.ask("scontrol", &arguments).map(drop)
}

fn preempted(programs: &Programs) -> Result<()> {
    let more = usual(programs);
    Site::new(programs, &whole_nodes(1, 1, &more))?.try_out(|site| {
        let run = at_work(site)?;
        let urgent = ["-p", "hi", "-c", "4", "-o", "/dev/null", "-J", "urgent"];
        let urgent = urgent.into_iter().chain(["--wrap", "sleep 3"]);
        site.slurm.ask("sbatch", &urgent.collect::<Vec<_>>())?;
        until_true("those who come first run", SOON, || {
            let running = ("RUNNING".to_owned(), "urgent".to_owned());
            Ok(site.slurm.jobs()?.contains(&running))
        })?;
        goes_on(site, &run, &["preempted"])
    })
}

fn cancelled(programs: &Programs) -> Result<()> {
    let more = usual(programs);
    Site::new(programs, &whole_nodes(1, 1, &more))?.try_out(|site| {
        let run = at_work(site)?;
        let (job, _) = site.the_job()?;
        site.slurm.ask("scancel", &[&job])?;
        goes_on(site, &run, &["preempted"])?;
        ensure!(site.pool()?["failures"] == 0, "{}", site.pool()?);
        site.scratch_is_empty()
    })
}

fn crashed(programs: &Programs) -> Result<()> {
    let more = usual(programs);
    let grid = Grid {
        cpus: 2,
        ..whole_nodes(2, 2, &more)
    };
    Site::new(programs, &grid)?.try_out(|site| {
        let run = at_work(site)?;
        let (_, node) = site.the_job()?;
        site.slurm.crash_node(node)?;
        goes_on(site, &run, &["lost", "worker_lost"])
    })
}

fn walltime(programs: &Programs) -> Result<()> {
    // Slurm tells of the end up to a minute earlier than it is asked to.
    let more = format!(
        "time = \"2m\"\nhand-over = \"30s\"\nworker = {:?}\n",
        programs.worker_agent
    );
    Site::new(programs, &whole_nodes(1, 1, &more))?.try_out(|site| {
        let run = at_work(site)?;
        until_true("the time is over", LONG, || {
            Ok(site.ledger.lines()?.len() >= 4)
        })?;
        goes_on(site, &run, &["walltime"])?;
        site.scratch_is_empty()
    })
}

fn controller(programs: &Programs) -> Result<()> {
    let more = usual(programs);
    Site::new(programs, &whole_nodes(2, 2, &more))?.try_out(|site| {
        site.cluster.serve()?;
        let run = site.at_work(&plain(&["t1", "t2", "t3", "t4"]), 2)?;
        // It may not have written down yet that they run.
        site.slurm.kill_controller()?;
        until_true("the pool tells its trouble", SOON, || {
            let told = site.text(&["pool", "show", "grid"])?;
            Ok(told.contains("failed to list allocations"))
        })?;
        site.slurm.begin_controller()?;
        site.begun(4)?;
        let status = site.succeeds(&run)?;
        for task in status.tasks() {
            ensure!(
                task["attempts"].as_array().is_some_and(|of| of.len() <= 2),
                "{task}"
            );
        }
        site.is_empty_again()
    })
}

fn cut_off(programs: &Programs) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("muster-e2e-slurm-")
        .tempdir()?;
    let names = ["head", "n1", "n2"];
    let hosts = Hosts::new(&names, folder.path())?;
    let slurm = Slurm::start_on(&folder.path().join("cluster"), &hosts, &names)?;
    let mut cluster = Cluster::new(programs, Some(Options::short_leases()))?;
    cluster.run_behind(hosts.inside("head").into_iter().map(Into::into).collect());
    let more = format!(
        "{}coordinator = \"{}:{}\"\n",
        usual(programs),
        Hosts::address(0),
        cluster.port()
    );
    let grid = Grid {
        cpus: 2,
        ..whole_nodes(2, 1, &more)
    };
    Site::of(cluster, slurm, folder, &grid)?.try_out(|site| {
        let run = at_work(site)?;
        let (job, node) = site.the_job()?;
        hosts.connect(node, Connected::No)?;
        // Slurm gives the node up and starts the job once more, beside the old copy.
        site.begun(4)?;
        let (again, other) = site.the_job()?;
        ensure!(again == job && other != node, "{again} on {other}");
        hosts.connect(node, Connected::Yes)?;
        goes_on(site, &run, &["lost", "worker_lost"]).context("after the cut")
    })
}
