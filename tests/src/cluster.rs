//! A coordinator with its home, workers beside it, and the commands of a person.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process::{Output, Process, Program};
use crate::run::RunStatus;
use crate::wait::{self, LONG, SOON};

/// Where the executables are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `coordinator`
    pub coordinator: PathBuf,
    /// `worker-agent`
    pub worker_agent: PathBuf,
    /// The forwarder.
    pub forward: PathBuf,
    /// The repository that this is tested in, for its plans.
    pub source: PathBuf,
}

impl Programs {
    /// Finds them in the folder of the program that runs, where cargo puts all that is built with it.
    ///
    /// # Errors
    /// One is missing.
    pub fn beside_this() -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let folder = own.parent().unwrap_or(Path::new("."));
        let find = |name: &str| {
            let path = folder.join(name);
            let found = path.is_file().then_some(path);
            found.with_context(|| {
                let release = if folder.ends_with("release") {
                    " --release"
                } else {
                    ""
                };
                format!(
                    "{} has no {name}; build all programs with `cargo build{release} -p muster-tests --bins`",
                    folder.display()
                )
            })
        };
        Ok(Self {
            coordinator: find("coordinator-under-test")?,
            worker_agent: find("worker-agent-under-test")?,
            forward: find("forward")?,
            source: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".."),
        })
    }
}

/// How long leases of a cluster live.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Time a lease lives without renewal.
    pub lease_ttl: Duration,
    /// What the coordinator waits beyond it.
    pub lease_grace: Duration,
    /// How often workers give a sign of life.
    pub heartbeat_interval: Duration,
}

impl Options {
    /// Short leases, for tests in which a worker is lost.
    #[must_use]
    pub const fn short_leases() -> Self {
        Self {
            lease_ttl: Duration::from_secs(6),
            lease_grace: Duration::from_secs(2),
            heartbeat_interval: Duration::from_secs(1),
        }
    }
}

/// A home, and everything that was started on it.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    folder: tempfile::TempDir,
    /// Folders of workers: apart from all that is the coordinator's.
    elsewhere: tempfile::TempDir,
    wrapper: Vec<OsString>,
    /// Variables of the coordinator alone, not of commands.
    coordinator_variables: Vec<(OsString, OsString)>,
    port: u16,
    listen: String,
    coordinator: Option<Process>,
    starts: AtomicU32,
}

impl Cluster {
    /// Makes an empty home; nothing runs yet.
    ///
    /// # Errors
    /// Folders or a port cannot be had.
    pub fn new(programs: &Programs, options: Option<Options>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-e2e-").tempdir()?;
        let elsewhere = tempfile::Builder::new()
            .prefix("muster-e2e-worker-")
            .tempdir()?;
        for name in ["home", "user", "logs"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        std::fs::set_permissions(
            folder.path().join("home"),
            std::fs::Permissions::from_mode(0o700),
        )?;
        if let Some(options) = options {
            let text = format!(
                "lease-ttl = \"{}ms\"\nlease-grace = \"{}ms\"\nheartbeat-interval = \"{}ms\"\n",
                options.lease_ttl.as_millis(),
                options.lease_grace.as_millis(),
                options.heartbeat_interval.as_millis()
            );
            std::fs::write(folder.path().join("home/config.toml"), text)?;
        }
        // A port of its own that stays the same over restarts. It is free again at once, since
        // nothing has connected to it.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self {
            programs: programs.clone(),
            folder,
            elsewhere,
            wrapper: Vec::new(),
            coordinator_variables: Vec::new(),
            port,
            listen: format!("127.0.0.1:{port}"),
            coordinator: None,
            starts: AtomicU32::new(0),
        })
    }

    /// Lets the coordinator and all commands run behind `wrapper`, listening at any address.
    pub fn run_behind(&mut self, wrapper: Vec<OsString>) {
        self.wrapper = wrapper;
        self.listen = format!("0.0.0.0:{}", self.port);
    }

    /// Leaves all folders where they are when it is dropped; they are the caller's to remove.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        self.elsewhere.disable_cleanup(true);
    }

    /// Gives the folders in which everything of it lies.
    #[must_use]
    pub fn folders(&self) -> [&Path; 2] {
        [self.folder.path(), self.elsewhere.path()]
    }

    /// Sets variables of the coordinator that are not those of commands.
    pub fn coordinator_variables(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) {
        self.coordinator_variables.extend(variables);
    }

    /// Describes `coordinator serve`.
    #[must_use]
    pub fn server(&self) -> Program {
        let mut program = self.call(["serve", "--listen", &self.listen]);
        program
            .variables
            .extend(self.coordinator_variables.iter().cloned());
        program
    }

    /// Gives the executables.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Gives a folder for whatever a test needs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives `MUSTER_HOME`.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Gives the folder of what processes print.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// Gives the coordinator's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives the coordinator's address on loopback.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Names a plan of the repository.
    #[must_use]
    pub fn plan(&self, name: &str) -> PathBuf {
        self.programs.source.join("tests/plans").join(name)
    }

    /// Writes a plan of the test's own.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_plan(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A call of `coordinator` as a person makes it.
    #[must_use]
    pub fn call<T: Into<OsString>>(&self, arguments: impl IntoIterator<Item = T>) -> Program {
        let mut program = Program::new(&self.programs.coordinator, self.folder.path())
            .args(arguments)
            .var("HOME", self.folder.path().join("user"))
            .var("MUSTER_HOME", self.home());
        program.wrapper.clone_from(&self.wrapper);
        program
    }

    /// Runs a command of `coordinator` to its end, whatever its exit code.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn ask<T: Into<OsString>>(&self, arguments: impl IntoIterator<Item = T>) -> Result<Output> {
        self.call(arguments).run(&self.logs(), LONG)
    }

    /// Starts `coordinator serve` and waits until it answers.
    ///
    /// # Errors
    /// It ends, or does not answer in time.
    pub fn serve(&mut self) -> Result<()> {
        let mut process = self.server().start(&self.logs(), "serve")?;
        wait::until_true("the coordinator answers", SOON, || {
            anyhow::ensure!(process.runs()?, "it ended by itself\n{}", process.errors());
            Ok(self.ask(["status"])?.code() == 0 && self.home().join("address.json").exists())
        })?;
        self.coordinator = Some(process);
        Ok(())
    }

    /// Gives the coordinator's process.
    ///
    /// # Errors
    /// None was started.
    pub fn coordinator(&mut self) -> Result<&mut Process> {
        self.coordinator
            .as_mut()
            .context("no coordinator was started")
    }

    /// Kills the coordinator without warning and waits until it is gone.
    ///
    /// # Errors
    /// It had ended by itself.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.coordinator()?.kill()?;
        self.coordinator = None;
        Ok(())
    }

    /// Makes a token and gives the file that holds it.
    ///
    /// # Errors
    /// The command fails.
    pub fn token(&self, role: &str) -> Result<PathBuf> {
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.path().join(format!("{role}-{number}.token"));
        let arguments: [OsString; 6] = [
            "token".into(),
            "create".into(),
            "--role".into(),
            role.into(),
            "--out".into(),
            file.clone().into(),
        ];
        self.ask(arguments)?.success()?;
        Ok(file)
    }

    /// Describes a worker named `name`, with a state folder of its own. Only `address` and a token
    /// file lead it to the coordinator.
    ///
    /// # Errors
    /// No token can be made.
    pub fn worker(&self, name: &str, address: &str, slots: u32) -> Result<Program> {
        let state = self.elsewhere.path().join(name);
        std::fs::create_dir_all(&state)?;
        let token = state.join("token");
        if !token.exists() {
            // A copy, as a person carries one to another host.
            std::fs::copy(self.token("worker")?, &token)?;
        }
        Ok(Program::new(&self.programs.worker_agent, &state)
            .args(["--coordinator", address, "--slots", &slots.to_string()])
            .args(["--label", &format!("name={name}")])
            .args([OsString::from("--token-file"), token.into()])
            .args([OsString::from("--state-dir"), state.join("state").into()])
            .var("HOME", &state))
    }

    /// Starts a worker on this host and waits until the coordinator lists it.
    ///
    /// # Errors
    /// It ends, or is not listed in time.
    pub fn start_worker(&self, name: &str, slots: u32) -> Result<Process> {
        self.start_described(&self.worker(name, &self.address(), slots)?, name)
    }

    /// Starts a worker that was described before and waits until it is connected.
    ///
    /// # Errors
    /// As [`Cluster::start_worker`].
    pub fn start_described(&self, program: &Program, name: &str) -> Result<Process> {
        let mut process = program.start(&self.logs(), &format!("worker-{name}"))?;
        wait::until_true(&format!("worker {name} is connected"), SOON, || {
            anyhow::ensure!(process.runs()?, "it ended by itself\n{}", process.errors());
            Ok(self
                .worker_named(name)?
                .is_some_and(|worker| worker["state"] == "connected"))
        })
        .with_context(|| process.errors())?;
        Ok(process)
    }

    /// Finds what `workers --json` says about a worker, by the label that carries its name.
    ///
    /// # Errors
    /// The command fails.
    pub fn worker_named(&self, name: &str) -> Result<Option<Value>> {
        let label = Value::from(format!("name={name}"));
        Ok(self.workers()?.into_iter().find(|worker| {
            worker["labels"]
                .as_array()
                .is_some_and(|labels| labels.contains(&label))
        }))
    }

    /// Lists the workers.
    ///
    /// # Errors
    /// The command fails.
    pub fn workers(&self) -> Result<Vec<Value>> {
        let listed = self.ask(["workers", "--json"])?.success()?.json()?;
        let list = listed.as_array().or_else(|| listed["workers"].as_array());
        Ok(list.cloned().unwrap_or_default())
    }

    /// Makes the folder `seed`, for plans with `repo: { from: ./seed }`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn seed(&self) -> Result<()> {
        let seed = self.folder().join("seed");
        std::fs::create_dir_all(&seed)?;
        std::fs::write(seed.join("README"), "seed\n").context("write the seed of a repository")
    }

    /// Submits a plan and gives the run's name.
    ///
    /// # Errors
    /// The plan is refused.
    pub fn submit(&self, plan: &Path) -> Result<String> {
        let arguments: [OsString; 3] = ["submit".into(), plan.into(), "--json".into()];
        let last = self.ask(arguments)?.success()?.last_json()?;
        last["run"]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("no run in {last}"))
    }

    /// Asks for a run.
    ///
    /// # Errors
    /// The command fails.
    pub fn status(&self, run: &str) -> Result<RunStatus> {
        Ok(RunStatus {
            json: self.ask(["status", run, "--json"])?.success()?.json()?,
        })
    }

    /// Waits until a run has ended.
    ///
    /// # Errors
    /// It has not in time.
    pub fn ended(&self, run: &str) -> Result<RunStatus> {
        self.until(run, "the run has ended", LONG, |status| Ok(status.ended()))
    }

    /// Waits until a run is as wanted.
    ///
    /// # Errors
    /// It is not in time.
    pub fn until(
        &self,
        run: &str,
        what: &str,
        deadline: Duration,
        mut reached: impl FnMut(&RunStatus) -> Result<bool>,
    ) -> Result<RunStatus> {
        let mut last = String::new();
        wait::until(&format!("{run}: {what}"), deadline, || {
            let status = self.status(run)?;
            last = status.json.to_string();
            Ok(reached(&status)?.then_some(status))
        })
        .with_context(|| format!("last seen: {last}"))
    }

    /// Lists the refs of a run in the hosted repository, as git itself reads them there.
    ///
    /// # Errors
    /// The run has no repository, or git fails.
    pub fn hosted_refs(&self, status: &RunStatus) -> Result<Vec<String>> {
        let name = status.json["repository"]
            .as_str()
            .context("the run has no repository")?;
        let path = self.hosted(name)?;
        let program = Program::new(Path::new("git"), &path)
            .args(["for-each-ref", "--format=%(refname)"])
            .var("HOME", self.folder.path().join("user"))
            .var("GIT_DIR", path.clone());
        let printed = program.run(&self.logs(), SOON)?.success()?.out;
        Ok(printed.lines().map(str::to_owned).collect())
    }

    /// Finds a hosted repository.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn hosted(&self, name: &str) -> Result<PathBuf> {
        let mut folders = vec![self.home()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                if path
                    .file_name()
                    .is_some_and(|file| file == format!("{name}.git").as_str())
                {
                    return Ok(path);
                }
                if path.is_dir() && folders.len() < 1_000 && !path.join("HEAD").exists() {
                    folders.push(path);
                }
            }
        }
        anyhow::bail!("no hosted repository {name}")
    }

    /// Kills everything that has to do with this cluster, without warning: also local workers and
    /// supervisors, which are in groups of their own and outlive those who started them.
    pub fn kill_everything(&self) {
        for _ in 0..20 {
            let folders = [self.folder.path(), self.elsewhere.path()];
            let left: Vec<u32> = folders
                .iter()
                .flat_map(|folder| crate::traces::mentioning(&folder.to_string_lossy()))
                .collect();
            if left.is_empty() {
                return;
            }
            for id in left {
                let id = i32::try_from(id)
                    .ok()
                    .and_then(rustix::process::Pid::from_raw);
                if let Some(id) = id {
                    // It may have ended by itself.
                    let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
                }
            }
        }
    }

    /// Gives the last lines of what all processes have printed, for a test that failed.
    #[must_use]
    pub fn story(&self) -> String {
        let mut story = String::new();
        let mut files: Vec<PathBuf> = vec![self.home().join("worker.log")];
        if let Ok(entries) = std::fs::read_dir(self.logs()) {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(30);
            if !lines.is_empty() {
                story.push_str(&format!("--- {}\n", file.display()));
                story.push_str(&lines.get(from..).unwrap_or_default().join("\n"));
                story.push('\n');
            }
        }
        story
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.coordinator = None;
        self.kill_everything();
    }
}
