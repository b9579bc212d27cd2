//! Whole runs on a real Slurm cluster whose jobs the coordinator orders and ends.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::files::{Gates, Ledger};
use muster_tests::login::LoginHost;
use muster_tests::process::Program;
use muster_tests::slurm::Slurm;
use muster_tests::wait::{LONG, SOON, until, until_true};
use muster_tests::{Process, Programs, RunStatus, traces};
use serde_json::Value;

use crate::Scenario;

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "sixty_tasks_take_a_cluster_from_nothing_to_arrays_of_jobs_and_back",
        sixty,
    ),
    (
        "a_coordinator_killed_between_order_and_join_and_in_mid_run_starts_nothing_twice",
        killed,
    ),
    (
        "one_plan_uses_a_local_an_external_and_a_slurm_pool_and_each_says_why_not",
        three_pools,
    ),
    (
        "a_slurm_pool_whose_jobs_or_tasks_fail_at_once_is_left_and_the_run_goes_on_elsewhere",
        bad_nodes,
    ),
];

pub(crate) const LOGIN_SCENARIOS: &[(&str, Scenario)] = &[(
    "a_run_on_a_cluster_behind_a_login_host_survives_a_cut_connection",
    behind_login,
)];

/// A coordinator with a pool `grid` on a cluster of its own.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) slurm: Slurm,
    pub(crate) ledger: Ledger,
    pub(crate) gates: Gates,
    /// What coordinator and nodes share, and the nodes' scratch.
    folder: tempfile::TempDir,
}

/// What differs between the pools of tests.
pub(crate) struct Grid<'a> {
    pub(crate) nodes: usize,
    pub(crate) max: u32,
    pub(crate) slots: u32,
    /// Of a node's four.
    pub(crate) cpus: u32,
    /// Further lines of the pool.
    pub(crate) more: &'a str,
}

impl Site {
    pub(crate) fn new(programs: &Programs, grid: &Grid<'_>) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("muster-e2e-slurm-")
            .tempdir()?;
        let slurm = Slurm::start(&folder.path().join("cluster"), grid.nodes)?;
        let cluster = Cluster::new(programs, Some(Options::short_leases()))?;
        Self::of(cluster, slurm, folder, grid)
    }

    /// Puts a site together that was made elsewhere.
    pub(crate) fn of(
        mut cluster: Cluster,
        slurm: Slurm,
        folder: tempfile::TempDir,
        grid: &Grid<'_>,
    ) -> Result<Self> {
        let configuration = OsString::from(slurm.configuration());
        cluster.coordinator_variables([("SLURM_CONF".into(), configuration)]);
        let gates = Gates::new(cluster.folder())?;
        let ledger = Ledger::new(cluster.folder())?;
        let site = Self {
            cluster,
            slurm,
            ledger,
            gates,
            folder,
        };
        std::fs::create_dir(site.scratch())?;
        let Grid {
            max,
            slots,
            cpus,
            more,
            ..
        } = grid;
        site.configure(&format!(
            "[pools.grid]\nkind = \"slurm\"\nmax = {max}\nslots = {slots}\ncpus = {cpus}\n\
             memory = \"100 MiB\"\nbacklog = {max}\npoll = \"1s\"\nidle-timeout = \"4s\"\n\
             directory = {shared:?}\nsetup = [\"export TMPDIR={scratch}\"]\n\
             worker-args = [\"--wip-interval\", \"1s\"]\n{more}",
            shared = site.shared(),
            scratch = site.scratch().display(),
        ))?;
        Ok(site)
    }

    fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds to the coordinator's configuration.
    pub(crate) fn configure(&self, text: &str) -> Result<()> {
        let path = self.cluster.home().join("config.toml");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, format!("{before}{text}")).context("write the configuration")
    }

    /// Runs a test; when it fails, what everybody printed is part of the message.
    pub(crate) fn try_out(mut self, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        test(&mut self).map_err(|error| {
            let mut told = String::new();
            for folder in [
                self.shared().join("logs"),
                self.folder().join("cluster/log"),
            ] {
                for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                    let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    let from = lines.len().saturating_sub(25);
                    let last = lines.get(from..).unwrap_or_default().join("\n");
                    told.push_str(&format!("--- {}\n{last}\n", file.path().display()));
                }
            }
            anyhow::anyhow!("{error:#}\n{}{told}", self.cluster.story())
        })
    }

    /// Gives what `pool show grid` says.
    pub(crate) fn pool(&self) -> Result<Value> {
        self.pool_named("grid")
    }

    fn pool_named(&self, name: &str) -> Result<Value> {
        let shown = self.cluster.ask(["pool", "show", name, "--json"])?;
        shown.success()?.json()
    }

    pub(crate) fn text(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.cluster.ask(arguments.to_vec())?.success()?.out)
    }

    /// Writes a plan: each task notes its start, says that it is at work, and ends when the door `go`
    /// is open. Names that begin with `talk` are those of agents that can be gone on with.
    pub(crate) fn plan(&self, tasks: &[(&str, &str)]) -> Result<PathBuf> {
        self.cluster.seed()?;
        let mark = self.cluster.folder().display();
        let mut plan = format!(
            "name: grid\nrepo: {{ from: ./seed }}\n\
             defaults: {{ timeout: 10m, retries: 0, env: {{ E2E_MARK: {mark} }} }}\ntasks:\n"
        );
        for (name, more) in tasks {
            let work = format!(
                "case $PWD in */sick/*) kill -KILL $$;; esac\n      {note}\n      echo \"$MUSTER_ATTEMPT\" >> {name}.begun\n      {wait}\n      \
                 echo {name} > {name}.done\n",
                note = self.ledger.note(),
                wait = self.gates.wait("go"),
            );
            let talks = name.starts_with("talk");
            let (kind, before, after) = if talks {
                (
                    "    agent: scripted\n    prompt: Write two files.\n",
                    format!("read -r prompt; echo session {name} m\n      "),
                    "      echo done\n",
                )
            } else {
                ("", String::new(), "")
            };
            plan.push_str(&format!(
                "  - name: {name}\n{more}{kind}    run: |\n      {before}{work}{after}"
            ));
        }
        self.cluster.write_plan("grid.yaml", &plan)
    }

    /// Submits a plan and waits until so many attempts have begun.
    pub(crate) fn at_work(&self, tasks: &[(&str, &str)], begun: usize) -> Result<String> {
        let run = self.cluster.submit(&self.plan(tasks)?)?;
        self.begun(begun)?;
        Ok(run)
    }

    pub(crate) fn begun(&self, attempts: usize) -> Result<()> {
        // A conversation waits a minute for its own host before it goes on at another.
        until_true(&format!("{attempts} attempts have begun"), LONG, || {
            Ok(self.ledger.lines()?.len() >= attempts)
        })
        .with_context(|| {
            let why = |task: &str| self.text(&["explain", "@last", task]).unwrap_or_default();
            format!("{}{}", why("talk"), why("runs"))
        })
    }

    /// Gives id and node of each job that runs.
    pub(crate) fn running(&self) -> Result<Vec<(String, String)>> {
        let arguments = ["-h", "-r", "-t", "R", "-o", "%i %N"];
        let listed = self.slurm.ask("squeue", &arguments)?;
        let jobs = listed.lines().filter_map(|line| line.split_once(' '));
        Ok(jobs
            .map(|(id, node)| (id.to_owned(), node.to_owned()))
            .collect())
    }

    /// Waits for the one job that runs.
    pub(crate) fn the_job(&self) -> Result<(String, usize)> {
        let (id, node) = until("a job runs", SOON, || Ok(self.running()?.pop()))?;
        let node = node.strip_prefix('n').context("a strange node")?.parse()?;
        Ok((id, node))
    }

    /// Opens the door, and insists that the run succeeds with each task accepted once and no attempt
    /// started twice.
    pub(crate) fn succeeds(&self, run: &str) -> Result<RunStatus> {
        self.gates.open("go")?;
        let status = self.cluster.ended(run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        for task in status.tasks() {
            let attempts = task["attempts"].as_array().context("no attempts")?;
            let accepted = attempts.iter().filter(|of| of["state"] == "succeeded");
            ensure!(accepted.count() == 1, "{task}");
        }
        let twice: Vec<_> = self.ledger.lines()?.into_iter().collect();
        ensure!(twice.iter().all(|(_, starts)| *starts == 1), "{twice:?}");
        Ok(status)
    }

    /// Waits until nothing is left: allocation, job, process, token or temporary file.
    pub(crate) fn is_empty_again(&self) -> Result<()> {
        until_true("all jobs are given back", LONG, || {
            let held = self.pool()?["allocations"].as_array().map_or(0, Vec::len);
            Ok(held == 0 && self.slurm.jobs()?.is_empty())
        })?;
        self.nothing_runs()?;
        until_true("the tokens are gone", SOON, || {
            let left = std::fs::read_dir(self.shared().join("tokens"))?.count();
            Ok(left == 0)
        })?;
        let audit = self.cluster.ask(["audit", "--json"])?.success()?;
        let audit = audit.last_json()?;
        ensure!(audit["clean"] == true, "{audit}");
        ensure!(audit["checked"]["open_leases"] == 0, "{audit}");
        Ok(())
    }

    /// Insists that workers which were let go in peace have left nothing on their nodes.
    pub(crate) fn scratch_is_empty(&self) -> Result<()> {
        until_true("the nodes' scratch is empty", SOON, || {
            Ok(std::fs::read_dir(self.scratch())?.next().is_none())
        })
    }

    fn nothing_runs(&self) -> Result<()> {
        let shared = self.shared().to_string_lossy().into_owned();
        let mark = self.cluster.folder().to_string_lossy().into_owned();
        until_true("nothing of the jobs runs", SOON, || {
            let tasks = traces::with_variable("E2E_MARK", &mark)?;
            Ok(tasks.is_empty() && traces::mentioning(&shared).is_empty())
        })
    }

    /// Starts a worker of the pool `lab`, as people do.
    fn lab_worker(&self) -> Result<Process> {
        let cluster = &self.cluster;
        let token = ["token", "create", "--role", "worker", "--pool", "lab"];
        let told = cluster.ask(token.into_iter().chain(["--out", "lab.token"]))?;
        told.success()?;
        let worker = Program::new(&cluster.programs().worker_agent, cluster.folder())
            .args(["--coordinator", &cluster.address(), "--slots", "2"])
            .args(["--label", "site=lab", "--label", "name=lab"])
            .args(["--token-file", "lab.token", "--state-dir", "lab"])
            .var("HOME", cluster.folder());
        cluster.start_described(&worker, "lab")
    }
}

/// Names as `at_work` takes them, of tasks that ask for nothing.
pub(crate) fn plain(names: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    names.iter().map(|name| (*name, "")).collect()
}

/// Settings of a pool with enough time for everything, and the worker as it was built.
pub(crate) fn usual(programs: &Programs) -> String {
    format!("time = \"1h\"\nworker = {:?}\n", programs.worker_agent)
}

fn sixty(programs: &Programs) -> Result<()> {
    let grid = Grid {
        nodes: 3,
        max: 6,
        slots: 3,
        cpus: 2,
        // The program is staged.
        more: "time = \"1h\"\n",
    };
    Site::new(programs, &grid)?.try_out(|site| {
        site.cluster.serve()?;
        ensure!(site.slurm.jobs()?.is_empty(), "before any work");
        let names: Vec<String> = (1..=60).map(|nth| format!("t{nth}")).collect();
        let tasks: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "")).collect();
        let run = site.at_work(&tasks, 18)?;
        let jobs = site.running()?;
        ensure!(jobs.len() == 6, "{jobs:?}");
        ensure!(jobs.iter().all(|(id, _)| id.contains('_')), "{jobs:?}");
        let nodes: BTreeSet<&str> = jobs.iter().map(|(_, node)| &**node).collect();
        ensure!(nodes.len() == 3, "{jobs:?}");
        let planned = site.text(&["pool", "plan"])?;
        ensure!(planned.contains("maximum of 6 allocations"), "{planned}");
        let status = site.succeeds(&run)?;
        ensure!(status.count("succeeded") == 60, "{}", status.json);
        for task in status.tasks() {
            ensure!(
                task["attempts"].as_array().map(Vec::len) == Some(1),
                "{task}"
            );
        }
        let diff = site.text(&["diff", &run])?;
        for name in &names {
            ensure!(
                diff.contains(&format!("+++ b/{name}.done\n")),
                "{name}: {diff}"
            );
        }
        site.is_empty_again()?;
        site.scratch_is_empty()?;
        let pool = site.pool()?;
        ensure!(pool["failures"] == 0, "{pool}");
        Ok(())
    })
}

fn ids(pool: &Value) -> Vec<&Value> {
    let allocations = pool["allocations"].as_array().into_iter().flatten();
    allocations.map(|held| &held["external"]).collect()
}

fn killed(programs: &Programs) -> Result<()> {
    let usual = usual(programs);
    let grid = Grid {
        nodes: 2,
        max: 2,
        slots: 2,
        cpus: 4,
        more: &usual,
    };
    Site::new(programs, &grid)?.try_out(|site| {
        site.cluster.serve()?;
        let run = site
            .cluster
            .submit(&site.plan(&plain(&["t1", "t2", "t3", "t4"]))?)?;
        // Its job is in the queue; the answer may not have been read yet.
        until_true("a job is ordered", SOON, || {
            Ok(!site.slurm.jobs()?.is_empty())
        })?;
        site.cluster.kill_coordinator()?;
        let ordered = site.slurm.jobs()?;
        site.cluster.serve()?;
        site.begun(4)?;
        let pool = site.pool()?;
        ensure!(
            pool["allocations"].as_array().map(Vec::len) == Some(2),
            "{pool}"
        );
        site.cluster.kill_coordinator()?;
        site.cluster.serve()?;
        until_true("its workers are back", SOON, || {
            let workers = site.cluster.workers()?;
            let back = workers.iter().filter(|of| of["state"] == "connected");
            Ok(back.count() == 2)
        })?;
        let after = site.pool()?;
        ensure!(ids(&after) == ids(&pool), "{pool}\n{after}");
        let now: BTreeSet<String> = site.slurm.jobs()?.into_iter().map(|job| job.1).collect();
        let then: BTreeSet<String> = ordered.into_iter().map(|job| job.1).collect();
        ensure!(now == then, "{now:?} {then:?}");
        let status = site.succeeds(&run)?;
        for task in status.tasks() {
            ensure!(
                task["attempts"].as_array().map(Vec::len) == Some(1),
                "{task}"
            );
        }
        site.is_empty_again()
    })
}

const LAB: &str = "\n[pools.lab]\nkind = \"external\"\nlabels = [\"site=lab\"]\n";
const NEAR: &str = "\n[pools.near]\nkind = \"local\"\nmax = 1\nslots = 2\nidle-timeout = \"4s\"\n\
    labels = [\"site=near\"]\n";

/// A pool like `grid` in whose jobs tasks fail.
const SICK: &str = "[pools.sick]\nkind = \"slurm\"\nmax = 1\nslots = 2\ncpus = 4\n\
    memory = \"100 MiB\"\npoll = \"1s\"\nidle-timeout = \"4s\"\ntime = \"1h\"\nfailures = 1\n\
    directory = \"@shared\"\nworker = \"@worker\"\npriority = 1\n\
    setup = [\"mkdir -p @scratch/sick\", \"export TMPDIR=@scratch/sick\"]\n";

fn three_pools(programs: &Programs) -> Result<()> {
    let more = format!("{}labels = [\"site=grid\"]\n{LAB}{NEAR}", usual(programs));
    let grid = Grid {
        nodes: 2,
        max: 1,
        slots: 2,
        cpus: 4,
        more: &more,
    };
    Site::new(programs, &grid)?.try_out(|site| {
        site.cluster.serve()?;
        let (near, lab, grid) = (
            "    labels: [site=near]\n",
            "    labels: [site=lab]\n",
            "    pool: grid\n",
        );
        let tasks = [
            ("near1", near),
            ("near2", near),
            ("near3", near),
            ("lab1", lab),
            ("grid1", grid),
            ("grid2", grid),
            ("grid3", grid),
            ("lost", "    labels: [site=moon]\n"),
        ];
        let run = site.at_work(&tasks, 4)?;
        let planned = site.text(&["pool", "plan"])?;
        for wanted in [
            "near: starts and ends nothing",
            "grid: starts and ends nothing",
            "it starts no more: it has its maximum of 1 allocations",
            "do not carry label site=moon",
        ] {
            ensure!(planned.contains(wanted), "{wanted:?} is not in\n{planned}");
        }
        // Pool by pool, for what waits for a place, for people and for ever.
        let status = site.cluster.status(&run)?;
        let waits = |prefix: &str| {
            let mut waiting = status.tasks().filter(|task| task["state"] == "ready");
            let of = |task: &&Value| task["name"].as_str().is_some_and(|n| n.starts_with(prefix));
            let name = waiting.find(of).and_then(|task| task["name"].as_str());
            name.map(str::to_owned).context("none waits")
        };
        let (waiting_near, waiting_grid) = (waits("near")?, waits("grid")?);
        for (task, wanted) in [
            (&*waiting_near, "near: it has its maximum of 1 allocations"),
            (
                &waiting_near,
                "grid: never: its workers do not carry label site=near",
            ),
            (
                &waiting_near,
                "lab: never: its workers do not carry label site=near",
            ),
            (&waiting_grid, "grid: it has its maximum of 1 allocations"),
            (&waiting_grid, "near: never"),
            (
                "lab1",
                "lab: people start its workers, and none that is free fits",
            ),
            ("lab1", "near: never"),
            ("lab1", "grid: never"),
            ("lost", "near: never"),
            ("lost", "lab: never"),
            ("lost", "grid: never"),
        ] {
            let why = site.text(&["explain", &run, task])?;
            ensure!(why.contains(wanted), "{wanted:?} is not in\n{why}");
        }
        let _lab = site.lab_worker()?;
        site.begun(5)?;
        site.gates.open("go")?;
        let most = "all but one task are done";
        let status =
            site.cluster.until(
                &run,
                most,
                LONG,
                |status| Ok(status.count("succeeded") == 7),
            )?;
        let workers = site.cluster.workers()?;
        for (task, _) in &tasks[..7] {
            let worker = status.worker_of(task)?;
            let found = workers.iter().find(|known| known["worker"] == worker);
            let pool = found.map_or(&Value::Null, |known| &known["pool"]);
            let pool = pool.as_str().unwrap_or_default();
            ensure!(
                task.starts_with(pool),
                "{task} ran in {pool:?}: {workers:?}"
            );
        }
        site.cluster.ask(["cancel", &run])?.success()?;
        site.cluster.ended(&run)?;
        site.is_empty_again()
    })
}

fn bad_nodes(programs: &Programs) -> Result<()> {
    // On the first pool no worker can start. On the second every task fails, and nobody knows whose
    // fault that is until several have.
    let others = format!("{NEAR}priority = -1\n{SICK}");
    let grid = Grid {
        nodes: 2,
        max: 1,
        slots: 2,
        cpus: 4,
        more: "time = \"1h\"\nworker = \"/nowhere/worker-agent\"\nfailures = 2\npriority = 2\n",
    };
    Site::new(programs, &grid)?.try_out(|site| {
        let others = others.replace("@shared", &site.shared().to_string_lossy());
        let others = others.replace("@scratch", &site.scratch().to_string_lossy());
        let worker = programs.worker_agent.to_string_lossy();
        site.configure(&others.replace("@worker", &worker))?;
        site.cluster.serve()?;
        let names = ["talk1", "talk2", "talk3", "talk4", "talk5", "talk6"];
        let tasks = names.map(|name| (name, "    retries: 9\n"));
        let run = site.cluster.submit(&site.plan(&tasks)?)?;
        for (pool, wanted) in [
            ("grid", "2 starts in a row failed, the last one so:"),
            (
                "sick",
                "1 of its hosts are in quarantine: attempts fail at once",
            ),
        ] {
            until_true(&format!("{pool} has paused itself"), SOON, || {
                Ok(!site.pool_named(pool)?["paused"].is_null())
            })?;
            let reason = site.pool_named(pool)?["paused"]["reason"].to_string();
            ensure!(reason.contains(wanted), "{reason}");
            let planned = site.text(&["pool", "plan"])?;
            let told = format!("it starts no more: it is paused: {wanted}");
            ensure!(planned.contains(&told), "{told:?} is not in\n{planned}");
        }
        let status = site.succeeds(&run)?;
        let workers = site.cluster.workers()?;
        for name in names {
            let worker = status.worker_of(name)?;
            let found = workers.iter().find(|known| known["worker"] == worker);
            let pool = found.map_or(&Value::Null, |known| &known["pool"]);
            ensure!(pool == "near", "{name} ran in {pool}");
        }
        site.is_empty_again()
    })
}

fn behind_login(programs: &Programs) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("muster-e2e-slurm-")
        .tempdir()?;
    let slurm = Slurm::start(&folder.path().join("cluster"), 2)?;
    let configuration = slurm.configuration().display().to_string();
    let variables = [("SLURM_CONF", &*configuration)];
    let mut host = LoginHost::start(&folder.path().join("login"), &variables)?;
    let more = format!(
        "{}login = {:?}\nssh-options = {:?}\n",
        usual(programs),
        host.address(),
        host.options()
    );
    let grid = Grid {
        nodes: 2,
        max: 2,
        slots: 1,
        cpus: 4,
        more: &more,
    };
    let cluster = Cluster::new(programs, Some(Options::short_leases()))?;
    Site::of(cluster, slurm, folder, &grid)?.try_out(|site| {
        site.cluster.serve()?;
        let run = site.at_work(&plain(&["t1", "t2", "t3", "t4"]), 2)?;
        host.cut()?;
        // Work goes on and is taken in while the cluster cannot be asked.
        until_true("the pool tells its trouble", SOON, || {
            let told = site.text(&["pool", "show", "grid"])?;
            Ok(told.contains("failed to list allocations"))
        })?;
        site.succeeds(&run)?;
        let pool = site.pool()?;
        ensure!(
            pool["allocations"].as_array().map(Vec::len) == Some(2),
            "{pool}"
        );
        host.begin()?;
        site.is_empty_again()?;
        // Once more, cut off while there is something to order.
        host.cut()?;
        let run = site.cluster.submit(&site.plan(&plain(&["u1", "u2"]))?)?;
        until_true("the pool tells its trouble again", SOON, || {
            let told = site.text(&["pool", "show", "grid"])?;
            Ok(told.contains("failed to"))
        })?;
        host.begin()?;
        site.succeeds(&run)?;
        site.is_empty_again()
    })
}
