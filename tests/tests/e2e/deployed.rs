//! What `deploy/` describes for a site, really run: the units' own command lines, variables and
//! folders, as plain processes below a folder that stands for the machine's root.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::Cluster;
use muster_tests::process::{Process, Program};
use muster_tests::wait::{LONG, SOON, until_true};
use rustix::process::Signal;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "the_units_and_their_guide_make_a_site_that_works_backs_up_and_stops_in_order",
    site,
)];

/// Where units have their programs, state and configuration.
const MOVED: [&str; 4] = ["/usr/local/", "/var/lib/", "/etc/muster", "/etc/systemd/"];

/// A machine's root in a folder, with the two programs under their own names.
pub(crate) struct Machine<'c> {
    pub(crate) root: PathBuf,
    cluster: &'c Cluster,
}

/// A unit as systemd would start it.
pub(crate) struct Unit {
    pub(crate) start: Program,
    /// Commands after it.
    post: Vec<Program>,
}

impl<'c> Machine<'c> {
    pub(crate) fn new(cluster: &'c Cluster) -> Result<Self> {
        let root = cluster.folder().join("root");
        let programs = cluster.programs();
        std::fs::create_dir_all(root.join("usr/local/bin"))?;
        std::fs::create_dir_all(root.join("etc/muster"))?;
        std::fs::create_dir_all(root.join("credentials"))?;
        for (name, program) in [
            ("coordinator", &programs.coordinator),
            ("worker-agent", &programs.worker_agent),
        ] {
            std::os::unix::fs::symlink(program, root.join("usr/local/bin").join(name))?;
        }
        Ok(Self { root, cluster })
    }

    /// Gives a text with the paths of this machine, and the port of the test for the usual one.
    pub(crate) fn here(&self, text: &str) -> String {
        let mut text = text.replace("7733", &self.cluster.port().to_string());
        for path in MOVED {
            let moved = format!("{}{path}", self.root.display());
            text = text.replace(path, &moved);
        }
        text
    }

    /// Reads a unit of `deploy/systemd`, for the instance `1`.
    pub(crate) fn unit(&self, name: &str) -> Result<Unit> {
        let path = self
            .cluster
            .programs()
            .source
            .join("deploy/systemd")
            .join(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let text = text.replace("%%", "%").replace("%i", "1");
        let all = |key: &str| -> Vec<String> {
            let start = format!("{key}=");
            let values = text.lines().filter_map(|line| line.strip_prefix(&start));
            values.map(|value| self.here(value)).collect()
        };
        let mut variables = BTreeMap::new();
        for line in all("Environment") {
            for pair in line.split(' ') {
                let (name, value) = pair.split_once('=').context("Environment=")?;
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        for file in all("EnvironmentFile") {
            let lines = std::fs::read_to_string(file.trim_start_matches('-')).unwrap_or_default();
            for line in lines.lines() {
                let (name, value) = line.split_once('=').context("EnvironmentFile=")?;
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        for line in all("LoadCredential") {
            let (name, from) = line.split_once(':').context("LoadCredential=")?;
            let folder = self.root.join("credentials");
            std::fs::copy(from, folder.join(name))?;
            variables.insert(
                "CREDENTIALS_DIRECTORY".to_owned(),
                folder.to_string_lossy().into_owned(),
            );
        }
        for name in all("StateDirectory") {
            std::fs::create_dir_all(self.root.join("var/lib").join(name))?;
        }
        let programs = |key: &str| -> Result<Vec<Program>> {
            let lines = all(key);
            lines
                .iter()
                .map(|line| self.program(line, &variables))
                .collect()
        };
        let start = programs("ExecStart")?.into_iter().next();
        Ok(Unit {
            start: start.with_context(|| format!("{name} starts nothing"))?,
            post: programs("ExecStartPost")?,
        })
    }

    /// Splits a command as systemd does: `$NAME` as a word of its own becomes words, `${NAME}`
    /// stays in one.
    fn program(&self, line: &str, variables: &BTreeMap<String, String>) -> Result<Program> {
        let mut words = Vec::new();
        let (line, script) = match line.split_once(" -c '") {
            Some((shell, script)) => (shell, Some(script.trim_end_matches('\''))),
            None => (line, None),
        };
        for word in line.split(' ') {
            if let Some(value) = word.strip_prefix('$').and_then(|name| variables.get(name)) {
                words.extend(value.split_whitespace().map(str::to_owned));
                continue;
            }
            let mut word = word.to_owned();
            for (name, value) in variables {
                word = word.replace(&format!("${{{name}}}"), value);
            }
            ensure!(!word.contains('$'), "{word}: nothing gives its value");
            words.push(word);
        }
        if let Some(script) = script {
            words.extend(["-c".to_owned(), script.to_owned()]);
        }
        let path = words.first().context("an empty command")?;
        let mut program = Program::new(Path::new(path), &self.root).args(words.iter().skip(1));
        for (name, value) in variables {
            program = program.var(name, value);
        }
        Ok(program)
    }

    /// Writes the variables of the guide.
    pub(crate) fn write_variables(&self, source: &Path) -> Result<()> {
        let guide = std::fs::read_to_string(source.join("deploy/README.md"))?;
        let variables = guide
            .split("```")
            .find(|block| block.contains("\nWORKER_OPTIONS="));
        let variables = variables
            .and_then(|block| block.split_once('\n'))
            .context("worker.env")?;
        let variables = self
            .here(variables.1)
            .replace("head.example.org", "127.0.0.1");
        Ok(std::fs::write(
            self.root.join("etc/muster/worker.env"),
            variables,
        )?)
    }

    /// A command of an administrator, as the guide writes it.
    fn admin(&self, arguments: &[&str]) -> Program {
        let program = self.root.join("usr/local/bin/coordinator");
        Program::new(&program, &self.root)
            .args([
                "--home".into(),
                self.root.join("var/lib/muster").into_os_string(),
            ])
            .args(arguments)
    }

    /// Starts the coordinator's unit and waits until it answers.
    pub(crate) fn coordinator(&self) -> Result<Process> {
        let unit = self.unit("muster-coordinator.service")?;
        let mut process = unit.start.start(&self.cluster.logs(), "coordinator")?;
        until_true("the coordinator answers", SOON, || {
            ensure!(process.runs()?, "it ended by itself\n{}", process.errors());
            Ok(self.health()? == 0)
        })?;
        Ok(process)
    }

    /// Gives the exit code of the compose file's check.
    fn health(&self) -> Result<i32> {
        let compose = self.cluster.programs().source.join("deploy/compose.yaml");
        let compose = std::fs::read_to_string(compose)?;
        let test = compose.split("test: [CMD, coordinator, ").nth(1);
        let words = test
            .and_then(|test| test.split_once(']'))
            .context("no check")?;
        let words: Vec<&str> = words.0.split(", ").collect();
        Ok(self.admin(&words).run(&self.cluster.logs(), SOON)?.code())
    }

    pub(crate) fn workers(&self) -> Result<Vec<serde_json::Value>> {
        let listed = self
            .admin(&["workers", "--json"])
            .run(&self.cluster.logs(), SOON)?;
        let listed = listed.success()?.json()?;
        let list = listed.as_array().or_else(|| listed["workers"].as_array());
        Ok(list.cloned().unwrap_or_default())
    }
}

fn site(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let machine = Machine::new(cluster)?;
        let logs = cluster.logs();
        let mut coordinator = machine.coordinator()?;

        let arguments = [
            "token",
            "create",
            "--role",
            "worker",
            "--name",
            "workers of the site",
        ];
        let made = machine.admin(&arguments).run(&logs, SOON)?.success()?;
        let token = machine.root.join("etc/muster/worker.token");
        std::fs::write(&token, made.out)?;
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600))?;
        machine.write_variables(&programs.source)?;

        let unit = machine.unit("muster-worker@.service")?;
        let mut worker = unit.start.start(&logs, "worker")?;
        let joined = |slots: u64| {
            machine.workers().map(|workers| {
                workers.iter().any(|worker| {
                    worker["state"] == "connected" && worker["slots"].as_u64() == Some(slots)
                })
            })
        };
        until_true("the worker has joined with its slots", SOON, || joined(8))
            .with_context(|| format!("{:?}\n{}", machine.workers(), worker.errors()))?;
        let place = machine.root.join("var/lib/muster-worker/1/identity.json");
        ensure!(place.exists(), "its state is elsewhere");

        let plan = "name: site\ntasks:\n  - name: a\n    run: 'true'\n    resources: { gpus: 1 }\n";
        let plan = cluster.write_plan("site.yaml", plan)?;
        let plan = plan.to_string_lossy().into_owned();
        let submit = machine
            .admin(&["submit", &plan, "--json"])
            .run(&logs, SOON)?;
        let run = submit.success()?.last_json()?["run"]
            .as_str()
            .context("no run")?
            .to_owned();
        machine
            .admin(&["watch", &run, "--plain"])
            .run(&logs, LONG)?
            .success()?;

        for name in ["muster-backup.service", "muster-audit.service"] {
            let unit = machine.unit(name)?;
            unit.start.run(&logs, LONG)?.success()?;
            for post in unit.post {
                post.run(&logs, SOON)?.success()?;
            }
        }
        let backups = std::fs::read_dir(machine.root.join("var/lib/muster-backup"))?.count();
        ensure!(backups == 1, "{backups} backups are there");

        // It stops at once, and its worker stays and comes back.
        coordinator.signal(Signal::TERM)?;
        let status = coordinator.ended(SOON)?;
        ensure!(status.success(), "{status}\n{}", coordinator.errors());
        ensure!(
            machine.health()? == 4,
            "a check finds a coordinator that has ended"
        );
        let mut coordinator = machine.coordinator()?;
        until_true("the worker is back", SOON, || joined(8))?;
        worker.signal(Signal::TERM)?;
        let status = worker.ended(SOON)?;
        ensure!(status.success(), "{status}\n{}", worker.errors());

        // Another start does not mend a revoked token, and the unit knows its code.
        let listed = machine
            .admin(&["token", "list", "--json"])
            .run(&logs, SOON)?
            .success()?;
        let id = listed.json()?["tokens"].as_array().and_then(|tokens| {
            let of_site = tokens
                .iter()
                .find(|token| token["name"] == "workers of the site")?;
            of_site["id"].as_str().map(str::to_owned)
        });
        let id = id.with_context(|| format!("no token in {}", listed.out))?;
        machine
            .admin(&["token", "revoke", &id])
            .run(&logs, SOON)?
            .success()?;
        let refused = machine
            .unit("muster-worker@.service")?
            .start
            .run(&logs, SOON)?;
        refused.expect(3)?;
        coordinator.signal(Signal::TERM)?;
        let status = coordinator.ended(SOON)?;
        ensure!(status.success(), "{status}\n{}", coordinator.errors());
        Ok(())
    })
}
