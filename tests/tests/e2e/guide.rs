//! The guide of `deploy/`, followed line by line: each command of it is run here, in the order of the
//! guide, or named below with the reason why it cannot be.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use muster_tests::Programs;
use muster_tests::cluster::Cluster;
use muster_tests::process::{Output, Process, Program};
use muster_tests::wait::{LONG, SOON, until_true};
use rustix::process::Signal;

use crate::deployed::Machine;
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "each_command_of_the_operators_guide_is_run_in_its_order_or_named_with_a_reason",
    followed,
)];

/// Commands that are not run, by how they begin.
const NOT_HERE: &[(&str, &str)] = &[
    ("cargo build ", "the programs under test are there"),
    (
        "useradd ",
        "a machine's accounts are not a test's to change",
    ),
    (
        "userdel ",
        "a machine's accounts are not a test's to change",
    ),
    (
        "systemctl daemon-reload",
        "units are run as plain processes",
    ),
    ("docker ", "needs an engine: see `containers.rs`"),
    ("chown 10001 ", "needs an engine: see `containers.rs`"),
];

/// What a reader puts in for himself.
const READERS: [(&str, &str); 3] = [
    ("head.example.org", "127.0.0.1"),
    // One user stands for all.
    (" -o muster -g muster ", " "),
    ("-u muster ", ""),
];

/// A machine on which somebody follows the guide.
struct Reader<'c> {
    machine: Machine<'c>,
    cluster: &'c Cluster,
    /// Where the repository is.
    checkout: PathBuf,
    coordinator: Option<Process>,
    worker: Option<Process>,
}

impl<'c> Reader<'c> {
    fn new(cluster: &'c Cluster) -> Result<Self> {
        let machine = Machine::new(cluster)?;
        let programs = cluster.programs();
        let checkout = machine.root.join("checkout");
        std::fs::create_dir_all(checkout.join("target/release"))?;
        std::os::unix::fs::symlink(programs.source.join("deploy"), checkout.join("deploy"))?;
        for (name, program) in [
            ("coordinator", &programs.coordinator),
            ("worker-agent", &programs.worker_agent),
        ] {
            let built = checkout.join("target/release").join(name);
            std::os::unix::fs::symlink(program, built)?;
        }
        std::fs::create_dir_all(machine.root.join("etc/systemd/system"))?;
        // What the section about the disk looks at.
        let kept = machine
            .root
            .join("var/lib/muster-worker/1/kept/RUN-TASK-1-7/work");
        let own = machine.root.join("home/a/checkout");
        for folder in [kept, own] {
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("a.txt"), "a")?;
        }
        std::fs::remove_dir_all(machine.root.join("etc/muster"))?;
        Ok(Self {
            machine,
            cluster,
            checkout,
            coordinator: None,
            worker: None,
        })
    }

    /// Runs a line in a shell.
    fn shell(&self, line: &str) -> Result<Output> {
        let bin = self.machine.root.join("usr/local/bin");
        let line = format!("PATH={}:$PATH\n{line}", bin.display());
        Program::new(Path::new("bash"), &self.checkout)
            .args(["-euo", "pipefail", "-c", &line])
            .var("HOME", self.machine.root.join("home"))
            // Whoever has a home of his own needs no `--home`.
            .var("MUSTER_HOME", self.machine.root.join("var/lib/muster"))
            .var(
                "CREDENTIALS_DIRECTORY",
                self.machine.root.join("credentials"),
            )
            .run(&self.cluster.logs(), LONG)
    }

    /// Does what a line of the guide says.
    fn follow(&mut self, line: &str) -> Result<()> {
        let line = line.replace("sudo ", "");
        if NOT_HERE.iter().any(|(start, _)| line.starts_with(start)) {
            return Ok(());
        }
        if let Some(words) = line.strip_prefix("systemctl ") {
            return self.systemctl(words);
        }
        let mut line = line;
        for (shown, own) in READERS {
            line = line.replace(shown, own);
        }
        if let Some((_, command)) = line.split_once("systemd-run ") {
            let script = command.split('\'').nth(1).context("no command in quotes")?;
            let token = self.machine.root.join("etc/muster/worker.token");
            std::fs::copy(token, self.machine.root.join("credentials/token"))?;
            line = script.to_owned();
        }
        if let Some((before, _)) = line.split_once("token revoke ") {
            let listed = self.shell("coordinator token list --json")?.success()?;
            let tokens = listed.json()?;
            let tokens = tokens["tokens"].as_array().context("no tokens")?;
            let gpu = tokens.iter().find(|token| token["pool"] == "gpu");
            let id = gpu.and_then(|token| token["id"].as_str());
            line = format!(
                "{before}token revoke {}",
                id.context("no token of the pool")?
            );
        }
        let line = self.machine.here(&line);
        if line.starts_with("rm ") {
            let root = format!("{}/", self.machine.root.display());
            let mut paths = line.split(' ').skip(1).filter(|word| *word != "-r");
            ensure!(
                paths.all(|path| path.starts_with(&root)),
                "it would remove what is not its own"
            );
        }
        self.shell(&line)?.success()?;
        if line.contains("/etc/muster/worker.token") && line.contains("token create") {
            self.machine
                .write_variables(&self.cluster.programs().source)?;
        }
        Ok(())
    }

    /// Does with plain processes what it would do with units.
    fn systemctl(&mut self, words: &str) -> Result<()> {
        match words {
            "stop muster-coordinator" => stop(&mut self.coordinator),
            "disable --now muster-worker@1" => {
                // It has outlived the home that was put back, and is its worker.
                self.joined()?;
                stop(&mut self.worker)
            }
            _ if words.starts_with("disable --now muster-coordinator.service ") => {
                stop(&mut self.coordinator)
            }
            "start muster-coordinator" => {
                self.coordinator = Some(self.machine.coordinator()?);
                Ok(())
            }
            _ if words.starts_with("enable --now muster-coordinator.service ") => {
                for unit in words.split(' ').skip(2) {
                    let installed = self.machine.root.join("etc/systemd/system").join(unit);
                    ensure!(installed.is_file(), "{unit} was not installed");
                }
                self.coordinator = Some(self.machine.coordinator()?);
                Ok(())
            }
            "enable --now muster-worker@1" => {
                let installed = "etc/systemd/system/muster-worker@.service";
                ensure!(self.machine.root.join(installed).is_file(), "no unit");
                let unit = self.machine.unit("muster-worker@.service")?;
                self.worker = Some(unit.start.start(&self.cluster.logs(), "worker")?);
                self.joined()
            }
            _ => bail!("nobody knows how to do that here"),
        }
    }

    fn joined(&self) -> Result<()> {
        until_true("the worker is connected", SOON, || {
            let workers = self.machine.workers()?;
            Ok(workers.iter().any(|worker| worker["state"] == "connected"))
        })
    }
}

fn followed(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let guide = std::fs::read_to_string(programs.source.join("deploy/README.md"))?;
        let mut reader = Reader::new(cluster)?;
        let mut commands = 0;
        // Every second piece is a block; other blocks than these are contents of files.
        for block in guide.split("```").skip(1).step_by(2) {
            let Some(block) = block.strip_prefix("console\n") else {
                continue;
            };
            for line in block.lines().filter(|line| !line.trim().is_empty()) {
                let line = line.trim().strip_prefix("$ ");
                let line = line.with_context(|| format!("no command in {block}"))?;
                reader.follow(line).with_context(|| line.to_owned())?;
                commands += 1;
            }
        }
        ensure!(commands > 30, "only {commands} commands were found");
        for (start, _) in NOT_HERE {
            ensure!(
                guide.contains(start),
                "{start}: the guide has no such command"
            );
        }
        for folder in ["var/lib", "usr/local/bin", "etc/systemd/system"] {
            let left = std::fs::read_dir(reader.machine.root.join(folder))?.count();
            ensure!(left == 0, "{left} things are left in {folder}");
        }
        Ok(())
    })
}

/// Stops as `systemctl stop` does.
fn stop(process: &mut Option<Process>) -> Result<()> {
    let mut process = process.take().context("nothing to stop")?;
    process.signal(Signal::TERM)?;
    let status = process.ended(SOON)?;
    ensure!(status.success(), "{status}\n{}", process.errors());
    Ok(())
}
