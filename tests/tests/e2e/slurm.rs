//! The Slurm provider against a real cluster.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use coordinator::pool::provider::{Error, Order, Provider as _, Sighted, Sighting};
use coordinator::pool::settings::SlurmSettings;
use coordinator::pool::slurm::{Coordinator, Limits, SlurmProvider};
use coordinator_core::pool::Policy;
use coordinator_core::worker::Offer;
use coordinator_core::{AllocationId, Span};
use muster_tests::Programs;
use muster_tests::login::LoginHost;
use muster_tests::slurm::Slurm;
use muster_tests::wait::{SOON, until, until_true};
use tokio::runtime::Runtime;

use crate::Scenario;

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "slurm_runs_an_array_of_workers_as_ordered_and_ends_them",
        an_array,
    ),
    (
        "slurm_starts_one_worker_on_each_node_of_an_allocation",
        several_nodes,
    ),
    (
        "a_requeued_job_stays_the_same_allocation_and_keeps_its_token",
        requeued,
    ),
    (
        "a_controller_that_is_away_leaves_everything_open",
        no_controller,
    ),
    (
        "slurm_refuses_what_it_cannot_do_and_takes_odd_names_as_they_are",
        refusals,
    ),
    (
        "a_site_has_a_script_and_setup_of_its_own_which_leave_when_told",
        own_script,
    ),
];

pub(crate) const LOGIN_SCENARIOS: &[(&str, Scenario)] = &[(
    "slurm_is_reached_over_a_login_host_whose_connection_is_cut",
    over_ssh,
)];

/// Why there can be no cluster behind a login host on this machine, if so.
pub(crate) fn without_login() -> Option<String> {
    muster_tests::slurm::missing().or_else(muster_tests::login::missing)
}

pub(crate) const SHELLCHECK_SCENARIOS: &[(&str, Scenario)] =
    &[("the_batch_script_passes_shellcheck", shellcheck)];

/// Why the script cannot be checked on this machine, if so.
pub(crate) fn without_shellcheck() -> Option<String> {
    let mut program = Command::new("shellcheck");
    let found = program.arg("--version").stdout(Stdio::null()).status();
    found
        .err()
        .map(|_| "needs the program shellcheck".to_owned())
}

/// Stands for a worker: writes down what it was started with and how it was told to leave.
const WORKER: &str = r#"#!/bin/bash
said() { echo "$SLURM_JOB_ID $SLURMD_NODENAME ${SLURM_RESTART_COUNT:-0} $*" >>"${0%/bin/*}/said"; }
# A cancelled job's processes all get TERM too, at the same moment: bash may lose one of two traps.
trap '' TERM
trap 'said leaves; kill -KILL $!; exit 0' USR1
token=$(cat "${@: $(($# - 2)):1}")
said "$token" "$@"
while :; do
    sleep 600 &
    wait $!
done
"#;

struct Site {
    folder: tempfile::TempDir,
    slurm: Slurm,
    runtime: Runtime,
    settings: SlurmSettings,
    workers: u32,
    pool: &'static str,
}

impl Site {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let slurm = Slurm::start(&folder.path().join("slurm"), 2)?;
        fs::write(folder.path().join("muster"), WORKER)?;
        let settings = SlurmSettings {
            partition: Some("debug".to_owned()),
            account: None,
            qos: None,
            constraint: None,
            gres: None,
            time: Span::from_secs(600),
            cpus: Some(1),
            memory_mib: Some(100),
            directives: vec![],
            setup: vec!["export GREETING='hello there'".to_owned()],
            login: None,
            ssh_options: vec![],
            directory: folder.path().join("shared folder"),
            worker: None,
            worker_args: vec!["--secret".to_owned(), "it's $HOME".to_owned()],
            coordinator: None,
            poll: Span::from_secs(1),
            hand_over: Span::from_secs(60),
        };
        Ok(Self {
            folder,
            slurm,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?,
            settings,
            workers: 1,
            pool: "gpu big",
        })
    }

    fn provider(&self) -> Result<SlurmProvider> {
        let mut variables: BTreeMap<_, _> = std::env::vars_os().collect();
        let configuration = self.slurm.configuration();
        variables.insert("SLURM_CONF".into(), configuration.into());
        let policy = Policy {
            priority: 0,
            min: 0,
            max: 8,
            template: Offer {
                slots: 2,
                ..Offer::default()
            },
            agents: None,
            workers: self.workers,
            idle_timeout: Span::from_secs(300),
            backlog: 4,
            burst: 4,
            join_timeout: Span::from_secs(300),
            walltime: None,
            failures_max: 3,
            quarantine: true,
            stays: false,
        };
        let coordinator = Coordinator {
            home: "3f9a1c20".into(),
            folder: self.folder.path().join("home"),
            executable: self.folder.path().join("muster"),
            address: "head:7733".to_owned(),
            variables,
        };
        let (settings, limits) = (self.settings.clone(), Limits::default());
        let provider = SlurmProvider::new(self.pool.into(), policy, settings, coordinator, limits);
        Ok(provider?)
    }

    fn order(&self, first: u64, count: u32) -> Result<Order> {
        let tokens: Result<Vec<PathBuf>> = (0..count)
            .map(|index| {
                let path = self.folder.path().join(format!("{first}.{index}"));
                fs::write(&path, format!("token-{first}-{index}\n"))?;
                Ok(path)
            })
            .collect();
        Ok(Order {
            pool: self.pool.into(),
            home: "3f9a1c20".into(),
            first: AllocationId(first),
            count,
            known: vec![],
            tokens: tokens?,
            exclude: vec![],
        })
    }

    fn start(&self, provider: &SlurmProvider, order: &Order) -> Result<Vec<Sighting>, Error> {
        self.runtime.block_on(provider.start(order))
    }

    fn list(&self, provider: &SlurmProvider) -> Result<Vec<Sighting>, Error> {
        self.runtime.block_on(provider.list(&[]))
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.settings.directory.join(name)
    }

    /// Gives what the workers wrote down, once there are so many lines.
    fn said(&self, lines: usize) -> Result<Vec<String>> {
        let logs = || {
            let logs = fs::read_dir(self.shared("logs")).into_iter().flatten();
            let texts = logs.flatten().map(|log| fs::read_to_string(log.path()));
            texts.flatten().collect::<Vec<_>>().join("\n")
        };
        until("the workers write down what they saw", SOON, || {
            let said = fs::read_to_string(self.shared("said")).unwrap_or_default();
            let said: Vec<String> = said.lines().map(str::to_owned).collect();
            Ok((said.len() >= lines).then_some(said))
        })
        .with_context(logs)
    }

    /// Waits until each of the listed is in such a state.
    fn wait_for(
        &self,
        provider: &SlurmProvider,
        count: usize,
        is: impl Fn(&Sighted) -> bool,
    ) -> Result<Vec<Sighting>> {
        until("the jobs change their state", SOON, || {
            let listed = self.list(provider)?;
            let all = listed.iter().filter(|s| is(&s.state)).count() == count;
            Ok(all.then_some(listed))
        })
    }
}

fn is_running(state: &Sighted) -> bool {
    matches!(state, Sighted::Running { .. })
}

fn is_ended(state: &Sighted) -> bool {
    matches!(state, Sighted::Ended { .. })
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

fn an_array(_: &Programs) -> Result<()> {
    let site = Site::new()?;
    let provider = site.provider()?;
    let started = site.start(&provider, &site.order(17, 3)?)?;
    ensure!(started.len() == 3, "{started:?}");
    let listed = site.wait_for(&provider, 3, is_running)?;
    for (index, sighting) in listed.iter().enumerate() {
        let known = started.iter().any(|s| s.external == sighting.external);
        ensure!(known, "{sighting:?} at {index} was not ordered");
    }
    let said = site.said(3)?;
    for index in 0..3 {
        let token = format!(" token-17-{index} worker ");
        let of_it: Vec<_> = said.iter().filter(|line| line.contains(&token)).collect();
        ensure!(of_it.len() == 1, "{token}: {said:?}");
        ensure!(
            of_it[0].contains("--coordinator head:7733 --pool gpu big --slots 2"),
            "{of_it:?}"
        );
        ensure!(of_it[0].contains("--secret it's $HOME"), "{of_it:?}");
        let ends = of_it[0].rsplit_once("--ends-at @").context("no end")?.1;
        let left = ends.parse::<i64>()? - jiff::Timestamp::now().as_second();
        ensure!((500..=600).contains(&left), "{left}");
    }
    let token = site.shared("tokens/muster-3f9a1c20-17-gpu big.1");
    ensure!(mode(&token)? == 0o600);
    // One of them, then the others: each is told to hand over, and its token goes.
    let ended: Vec<Box<str>> = started.iter().map(|s| s.external.clone()).collect();
    site.runtime.block_on(provider.end(&ended[1..2]))?;
    site.wait_for(&provider, 2, is_running)?;
    until_true("the token of the ended one goes", SOON, || {
        site.list(&provider)?;
        Ok(!token.exists())
    })?;
    site.runtime.block_on(provider.end(&ended))?;
    site.wait_for(&provider, 0, |state| !is_ended(state))?;
    site.runtime.block_on(provider.end(&ended))?;
    let said = site.said(6)?;
    let left = said.iter().filter(|line| line.ends_with(" leaves")).count();
    ensure!(left == 3, "{said:?}");
    let tokens = fs::read_dir(site.shared("tokens"))?.count();
    ensure!(tokens == 0 && site.slurm.jobs()?.is_empty());
    Ok(())
}

fn several_nodes(_: &Programs) -> Result<()> {
    let mut site = Site::new()?;
    site.workers = 2;
    let provider = site.provider()?;
    let started = site.start(&provider, &site.order(1, 1)?)?;
    let listed = site.wait_for(&provider, 1, is_running)?;
    let host = "n[1-2]".into();
    ensure!(listed[0].state == Sighted::Running { host }, "{listed:?}");
    let mut said = site.said(2)?;
    said.sort();
    ensure!(
        said[0].contains(" n1 ") && said[1].contains(" n2 "),
        "{said:?}"
    );
    site.runtime
        .block_on(provider.end(&[started[0].external.clone()]))?;
    let said = site.said(4)?;
    let left = said.iter().filter(|line| line.ends_with(" leaves")).count();
    ensure!(left == 2, "{said:?}");
    Ok(())
}

fn requeued(_: &Programs) -> Result<()> {
    let site = Site::new()?;
    let provider = site.provider()?;
    let started = site.start(&provider, &site.order(1, 2)?)?;
    site.wait_for(&provider, 2, is_running)?;
    site.said(2)?;
    site.slurm
        .ask("scontrol", &["requeue", &started[1].external])?;
    let is_queued = |state: &Sighted| *state == Sighted::Queued;
    let listed = site.wait_for(&provider, 1, is_queued)?;
    ensure!(listed.len() == 2, "{listed:?}");
    let queued = listed.iter().find(|s| is_queued(&s.state));
    let queued = queued.context("not queued")?;
    ensure!(
        queued.external == started[1].external && queued.index == 1,
        "{queued:?}"
    );
    let token = site.shared("tokens/muster-3f9a1c20-1-gpu big.1");
    ensure!(token.exists(), "the token went while its job waited");
    Ok(())
}

fn no_controller(_: &Programs) -> Result<()> {
    let mut site = Site::new()?;
    let provider = site.provider()?;
    site.start(&provider, &site.order(1, 1)?)?;
    site.wait_for(&provider, 1, is_running)?;
    site.slurm.kill_controller()?;
    let listed = site.list(&provider);
    ensure!(matches!(listed, Err(Error::Unclear(_))), "{listed:?}");
    let started = site.start(&provider, &site.order(2, 1)?);
    ensure!(matches!(started, Err(Error::Unclear(_))), "{started:?}");
    site.slurm.begin_controller()?;
    let back = |state: &Sighted| is_running(state) || *state == Sighted::Queued;
    until_true("the controller knows the job again", SOON, || {
        let listed = site.list(&provider).unwrap_or_default();
        Ok(listed.len() == 1 && back(&listed[0].state))
    })
}

fn refusals(_: &Programs) -> Result<()> {
    let mut site = Site::new()?;
    type Change = fn(&mut SlurmSettings);
    let cases: [(Change, &str); 4] = [
        (
            |s| s.partition = Some("nope".to_owned()),
            "Invalid partition name specified",
        ),
        (
            |s| s.gres = Some("gpu:9".to_owned()),
            "Invalid generic resource (gres) specification",
        ),
        (
            |s| s.constraint = Some("warp".to_owned()),
            "Invalid feature specification",
        ),
        (
            |s| s.directives = vec!["--no-such-thing".to_owned()],
            "unrecognized option",
        ),
    ];
    let usual = site.settings.clone();
    for (change, wanted) in cases {
        change(&mut site.settings);
        let started = site.start(&site.provider()?, &site.order(1, 1)?);
        match started {
            Err(Error::Refused(why)) if why.contains(wanted) => {}
            other => anyhow::bail!("{wanted}: {other:?}"),
        }
        site.settings = usual.clone();
    }
    ensure!(site.slurm.jobs()?.is_empty());
    // As odd as a name can be.
    site.pool = r##"a b'c"d\e#f$(g)`h`%j;*&|<>é"##;
    let provider = site.provider()?;
    let order = Order {
        exclude: vec![Arc::from("n1.cluster.example"), Arc::from("laptop")],
        ..site.order(5, 2)?
    };
    site.start(&provider, &order)?;
    let listed = site.wait_for(&provider, 2, is_running)?;
    for sighting in &listed {
        let there = Sighted::Running { host: "n2".into() };
        ensure!(sighting.state == there, "{sighting:?}");
        ensure!(*sighting.name.pool == *site.pool, "{sighting:?}");
    }
    site.said(2)?;
    Ok(())
}

fn own_script(programs: &Programs) -> Result<()> {
    let mut site = Site::new()?;
    let folder = site.folder.path().display().to_string();
    let (began, went) = (format!("{folder}/began"), format!("{folder}/went"));
    site.settings.setup.extend([
        format!("touch '{began}'"),
        format!("[ -e '{went}' ] || while [ -z \"$told\" ]; do sleep 0.1; done"),
    ]);
    // The script of the house with one more line, as a site would write it.
    let script = fs::read_to_string(programs.source.join("slurm/worker.sbatch"))?;
    let before = "command=(\"${worker[@]}\"";
    ensure!(script.contains(before), "{script}");
    let told = "echo \"$GREETING from this site\" >>\"${tokens%/tokens/*}/said\"";
    let script = script.replacen(before, &format!("{told}\n{before}"), 1);
    fs::create_dir_all(&site.settings.directory)?;
    fs::write(site.shared("worker.sbatch"), script)?;
    let provider = site.provider()?;
    let started = site.start(&provider, &site.order(1, 1)?)?;
    until_true("the setup is under way", SOON, || {
        Ok(Path::new(&began).exists())
    })?;
    let job = &*started[0].external;
    site.slurm
        .ask("scancel", &["--batch", "--signal=USR1", job])?;
    let ended = site.wait_for(&provider, 1, is_ended)?;
    let log = site.shared(&format!("logs/muster-3f9a1c20-1-gpu big-{job}.log"));
    let detail = format!("COMPLETED; its log is {}", log.display()).into();
    ensure!(ended[0].state == Sighted::Ended { detail }, "{ended:?}");
    ensure!(log.exists() && !site.shared("said").exists());
    fs::write(&went, "")?;
    site.start(&provider, &site.order(2, 1)?)?;
    let said = site.said(2)?;
    ensure!(said[0] == "hello there from this site", "{said:?}");
    ensure!(said[1].contains(" token-2-0 worker "), "{said:?}");
    // Another one could have written it.
    fs::set_permissions(
        site.shared("worker.sbatch"),
        fs::Permissions::from_mode(0o664),
    )?;
    let refused = site.start(&provider, &site.order(3, 1)?);
    ensure!(
        matches!(&refused, Err(Error::Refused(why)) if why.contains("run chmod go-w on it")),
        "{refused:?}"
    );
    Ok(())
}

fn over_ssh(_: &Programs) -> Result<()> {
    let mut site = Site::new()?;
    let configuration = site.slurm.configuration().display().to_string();
    let variables = [("SLURM_CONF", &*configuration), ("SBATCH_PARTITION", "hi")];
    let mut host = LoginHost::start(&site.folder.path().join("login"), &variables)?;
    // Its shell greets, as many do.
    let greeting = "echo 'Welcome, 4711'; printf 'no line' >&2\n";
    fs::write(site.folder.path().join("login/.bashrc"), greeting)?;
    site.settings.login = Some(host.address());
    site.settings.ssh_options = host.options();
    let provider = site.provider()?;
    let started = site.start(&provider, &site.order(1, 2)?)?;
    site.wait_for(&provider, 2, is_running)?;
    let said = site.said(2)?;
    ensure!(
        said.iter().all(|line| line.contains(" token-1-")),
        "{said:?}"
    );
    let partitions = site.slurm.ask("squeue", &["-h", "-o", "%P"])?;
    ensure!(partitions == "debug\ndebug\n", "{partitions}");
    host.cut()?;
    let listed = site.list(&provider);
    ensure!(matches!(listed, Err(Error::Unclear(_))), "{listed:?}");
    let lost = site.start(&provider, &site.order(3, 1)?);
    ensure!(matches!(lost, Err(Error::Unclear(_))), "{lost:?}");
    host.begin()?;
    // Nothing of the lost order has arrived, and the rest has not noticed anything.
    let listed = site.list(&provider)?;
    ensure!(
        listed.len() == 2 && listed.iter().all(|s| is_running(&s.state)),
        "{listed:?}"
    );
    let all: Vec<Box<str>> = started.iter().map(|s| s.external.clone()).collect();
    site.runtime.block_on(provider.end(&all))?;
    site.wait_for(&provider, 0, |state| !is_ended(state))?;
    Ok(())
}

fn shellcheck(programs: &Programs) -> Result<()> {
    let template = fs::read_to_string(programs.source.join("slurm/worker.sbatch"))?;
    let names = ["directives", "worker", "tokens", "seconds", "setup"];
    let script = names.into_iter().fold(template, |script, name| {
        script.replace(&format!("@{{{name}}}"), "")
    });
    let file = tempfile::NamedTempFile::new()?;
    fs::write(&file, script)?;
    let output = Command::new("shellcheck").arg(file.path()).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}
