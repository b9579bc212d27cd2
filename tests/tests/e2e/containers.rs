//! The image and the compose file of `deploy/`, on a container engine of the test's own.
//!
//! No registry is asked for anything. What the second stage of the Dockerfile is built upon is a tar
//! file that `.ci/base` has made, or that MUSTER_CONTAINER_BASE names, and the programs are those under
//! test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_tests::process::{Output, Process, Program};
use muster_tests::wait::{LONG, SOON, until_true};
use muster_tests::{Cluster, Programs};
use rustix::process::{Resource, Signal, getrlimit};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "the_compose_file_brings_up_a_coordinator_and_two_workers_that_finish_a_plan_as_nobody_special",
    brought_up,
)];

const BASE: &str = "MUSTER_CONTAINER_BASE";
/// Below the user of the image no container may run anything.
const USER: &str = "10001";

/// Says why these tests cannot run here.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to run a container engine".to_owned());
    }
    let lacks = |program: &str, argument: &str| {
        let ran = Command::new(program).arg(argument).output();
        let works = ran.is_ok_and(|output| output.status.success());
        (!works).then(|| format!("`{program} {argument}` does not work here"))
    };
    lacks("dockerd", "--version")
        .or_else(|| lacks("docker", "--version"))
        .or_else(|| lacks("unshare", "--version"))
        .or_else(|| {
            compose()
                .is_none()
                .then(|| "needs docker compose".to_owned())
        })
        .or_else(|| {
            base().is_none().then(|| {
                format!("{BASE} names no tar of a base image, and `.ci/base` has not made one")
            })
        })
}

/// Finds the tar of the base image.
fn base() -> Option<PathBuf> {
    // The programs under test are in a folder of the target folder.
    let made = std::env::current_exe().ok()?;
    let made = || Some(made.ancestors().nth(3)?.join("base.tar"));
    let named = std::env::var_os(BASE).map(PathBuf::from);
    named.or_else(made).filter(|base| base.is_file())
}

/// Words that begin a call of compose: the engine's own, or the program of its own that came before.
fn compose() -> Option<&'static [&'static str]> {
    let all: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
    all.into_iter().find(|words| {
        let mut command = Command::new(words[0]);
        let ran = command.args(&words[1..]).arg("version").output();
        ran.is_ok_and(|output| output.status.success())
    })
}

/// An engine in a network of its own; ended with all its containers when dropped.
struct Engine {
    process: Process,
    host: String,
    folder: PathBuf,
    logs: PathBuf,
}

impl Engine {
    fn start(cluster: &Cluster) -> Result<Self> {
        let folder = cluster.folder().join("engine");
        std::fs::create_dir_all(&folder)?;
        let host = format!("unix://{}/d.sock", folder.display());
        let at = |name: &str| folder.join(name).display().to_string();
        let script = format!(
            "ip link set lo up && exec dockerd -H {host} --data-root {} --exec-root {} -p {}",
            at("data"),
            at("exec"),
            at("docker.pid")
        );
        let process = Program::new(Path::new("unshare"), &folder)
            .args(["--net", "sh", "-c", &script])
            .start(&cluster.logs(), "engine")?;
        let mut engine = Self {
            process,
            host,
            folder,
            logs: cluster.logs(),
        };
        until_true("the engine answers", SOON, || {
            ensure!(engine.process.runs()?, "{}", engine.process.errors());
            Ok(engine.call(&["docker", "version"])?.code() == 0)
        })?;
        Ok(engine)
    }

    fn call(&self, words: &[&str]) -> Result<Output> {
        Program::new(Path::new(words[0]), &self.folder)
            .args(words[1..].iter().copied())
            .var("DOCKER_HOST", &self.host)
            .var("HOME", &self.folder)
            .run(&self.logs, LONG)
    }

    fn compose(&self, words: &[&str]) -> Result<Output> {
        let mut all = compose().context("no compose")?.to_vec();
        all.extend(["-p", "muster", "-f", "deploy/compose.yaml"]);
        all.extend(words);
        self.call(&all)
    }

    /// Builds the Dockerfile's second stage upon a base from here.
    fn build(&self, programs: &Programs) -> Result<()> {
        let base = base().context("no base")?;
        let base = base.to_string_lossy();
        let file = std::fs::read_to_string(programs.source.join("deploy/Dockerfile"))?;
        let stage = file.rfind("\nFROM ").context("one stage only")?;
        let mut stage = file[stage..].replace("\\\n", " ");
        let from = stage.lines().find_map(|line| line.strip_prefix("FROM "));
        let from = from.context("no base")?.to_owned();
        self.call(&["docker", "import", &base, &from])?.success()?;
        // What it would install is in the base, and what it would compile is here.
        let lines = stage
            .lines()
            .filter(|line| !line.starts_with("RUN apt-get "));
        let lines = lines.map(|line| match line.starts_with("COPY --from=build ") {
            true => "COPY coordinator worker-agent /usr/local/bin/",
            false => line,
        });
        stage = lines.collect::<Vec<_>>().join("\n");
        let context = self.folder.join("context");
        std::fs::create_dir(&context)?;
        std::fs::write(context.join("Dockerfile"), stage)?;
        for (name, program) in [
            ("coordinator", &programs.coordinator),
            ("worker-agent", &programs.worker_agent),
        ] {
            std::fs::copy(program, context.join(name))?;
        }
        self.call(&["docker", "build", "-t", "muster", "context"])?
            .success()?;
        Ok(())
    }

    /// Asks for something of every container of the project.
    fn inspect(&self, what: &str) -> Result<Vec<String>> {
        let all = self.call(&["docker", "ps", "-aq"])?.success()?;
        let mut words = vec!["docker", "inspect", "-f", what];
        words.extend(all.out.split_whitespace());
        let found = self.call(&words)?.success()?;
        Ok(found.out.lines().map(str::to_owned).collect())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It ends its containers and unmounts their disks; a test that has failed has said why.
        let _ = self.process.signal(Signal::TERM);
        let _ = self.process.ended(SOON);
    }
}

fn brought_up(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let engine = Engine::start(cluster)?;
        engine.build(programs)?;
        let deploy = engine.folder.join("deploy");
        std::fs::create_dir(&deploy)?;
        let file = std::fs::read_to_string(programs.source.join("deploy/compose.yaml"))?;
        // The older compose knows no name; checks every half minute would be waited for; and no
        // container has more open files than this machine.
        let files = getrlimit(Resource::Nofile).maximum.unwrap_or(65_536);
        let file = file
            .replace("\nname: muster\n", "\n")
            .replace("interval: 10s", "interval: 1s")
            .replace("interval: 60s", "interval: 1s")
            .replace("nofile: 65536", &format!("nofile: {}", files.min(65_536)));
        std::fs::write(deploy.join("compose.yaml"), file)?;
        let token = deploy.join("worker.token");
        std::fs::write(&token, "")?;

        // As the guide has it.
        let words = "run --rm coordinator coordinator token create --role worker";
        let words: Vec<&str> = words.split(' ').collect();
        let made = engine.compose(&words)?.success()?;
        std::fs::write(&token, made.out.trim())?;
        let owner = USER.parse()?;
        std::os::unix::fs::chown(&token, Some(owner), None)?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&token, private)?;
        let up = ["up", "--no-build", "--detach", "--scale", "worker=2"];
        engine.compose(&up)?.success()?;
        until_true("all three are healthy", SOON, || {
            let all = engine.inspect("{{.State.Health.Status}}")?;
            Ok(all == ["healthy", "healthy", "healthy"])
        })
        .with_context(|| format!("{:?}", engine.inspect("{{json .State}}")))?;

        let inside = |words: &[&str]| {
            let mut all = vec!["exec", "-T", "coordinator"];
            all.extend(words);
            engine.compose(&all)?.success()
        };
        let plan = format!(
            "name: contained\ntasks:\n  - {{ name: a, run: 'test $(id -u) = {USER}' }}\n  - {{ name: b, run: \
             'test $(id -u) = {USER}' }}\n  - {{ name: c, run: git --version, depends_on: [a, b] }}\n"
        );
        let submit = "printf %s \"$1\" > /tmp/plan.yaml; coordinator submit /tmp/plan.yaml --json";
        let submitted = inside(&["sh", "-c", submit, "sh", &plan])?.last_json()?;
        let run = submitted["run"].as_str().context("no run")?;
        inside(&["coordinator", "watch", run, "--plain"])?;
        let status = inside(&["coordinator", "status", run, "--json"])?.json()?;
        ensure!(status["state"] == "succeeded", "{status}");

        // A worker whose coordinator has gone is not well, and the coordinator is without workers.
        engine.compose(&["stop", "coordinator"])?.success()?;
        let health =
            "{{index .Config.Labels \"com.docker.compose.service\"}} {{.State.Health.Status}}";
        until_true("the workers are not well", LONG, || {
            let all = engine.inspect(health)?;
            Ok(all.iter().filter(|one| *one == "worker unhealthy").count() == 2)
        })
        .with_context(|| format!("{:?}", engine.inspect(health)))?;
        engine.compose(&["start", "coordinator"])?.success()?;
        until_true("all three are healthy again", LONG, || {
            let all = engine.inspect("{{.State.Health.Status}}")?;
            Ok(all == ["healthy", "healthy", "healthy"])
        })?;
        // The home has stayed.
        inside(&["coordinator", "status", run, "--json"])?;
        engine.compose(&["stop", "worker"])?.success()?;
        inside(&["coordinator", "workers", "--json"])?;
        engine.compose(&["stop"])?.success()?;
        let ended = engine.inspect("{{.Config.User}} {{.State.ExitCode}}")?;
        ensure!(ended == ["muster 0", "muster 0", "muster 0"], "{ended:?}");
        engine.compose(&["down"])?.success()?;
        let kept = ["docker", "volume", "ls", "-q"];
        let kept = engine.call(&kept)?.success()?.out;
        ensure!(kept.trim() == "muster_home", "volumes: {kept}");
        engine.compose(&["down", "--volumes"])?.success()?;
        Ok(())
    })
}
