//! The Slurm provider against programs of Slurm's names that answer as a real cluster does not on
//! demand. What a real one does is tried end to end.

mod login;
mod shared;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coordinator::pool::provider::{Error, Order, Provider as _, Sighted, Sighting};
use coordinator::pool::settings::SlurmSettings;
use coordinator::pool::slurm::{Coordinator, Limits, SlurmProvider};
use coordinator_core::pool::Policy;
use coordinator_core::worker::Offer;
use coordinator_core::{AllocationId, Span};

const HOME: &str = "3f9a1c20";
const NO_QUEUE: &str = r#"echo '{"jobs": [], "errors": []}'"#;

/// A folder with programs, and what a provider is made of.
struct Site {
    folder: tempfile::TempDir,
    settings: SlurmSettings,
    limits: Limits,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::create_dir(folder.path().join("home")).unwrap();
        fs::write(folder.path().join("muster"), "the program of workers").unwrap();
        let settings = SlurmSettings {
            partition: None,
            account: None,
            qos: None,
            constraint: None,
            gres: None,
            time: Span::from_secs(3_600),
            cpus: None,
            memory_mib: None,
            directives: vec![],
            setup: vec![],
            login: None,
            ssh_options: vec![],
            directory: folder.path().join("shared folder"),
            worker: None,
            worker_args: vec![],
            coordinator: None,
            poll: Span::from_secs(10),
            hand_over: Span::from_secs(120),
        };
        let site = Self {
            folder,
            settings,
            limits: Limits {
                command: Duration::from_secs(60),
                retry: Duration::from_millis(10),
                ..Limits::default()
            },
        };
        site.program("squeue", NO_QUEUE);
        site.program("sbatch", "cat >\"$SITE/script\"; echo 100");
        site.program("scancel", "echo \"$@\" >>\"$SITE/cancelled\"");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.settings.directory.join(name)
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        let site = self.folder.path().display();
        fs::write(&path, format!("#!/bin/sh\nSITE='{site}'\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn provider(&self) -> SlurmProvider {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.path("bin").display());
        let variables: BTreeMap<OsString, OsString> = [
            ("PATH", path.as_str()),
            ("SLURM_CONF", "/etc/slurm/north.conf"),
            ("ANTHROPIC_API_KEY", "very secret"),
            ("SBATCH_PARTITION", "elsewhere"),
        ]
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
        let policy = Policy {
            priority: 0,
            min: 0,
            max: 8,
            template: Offer {
                slots: 2,
                ..Offer::default()
            },
            agents: None,
            workers: 1,
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
            home: HOME.into(),
            folder: self.path("home"),
            executable: self.path("muster"),
            address: "head:7733".to_owned(),
            variables,
        };
        let settings = self.settings.clone();
        SlurmProvider::new("gpu".into(), policy, settings, coordinator, self.limits).unwrap()
    }

    fn order(&self, first: u64, count: u32) -> Order {
        let tokens = (0..count).map(|index| {
            let path = self.path(&format!("token.{first}.{index}"));
            fs::write(&path, format!("secret-{first}-{index}\n")).unwrap();
            path
        });
        Order {
            pool: "gpu".into(),
            home: HOME.into(),
            first: AllocationId(first),
            count,
            known: vec![],
            tokens: tokens.collect(),
            exclude: vec![],
        }
    }

    /// Gives the names of what lies in a folder of the shared one.
    fn staged(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.shared(folder)).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn job(id: u64, first: u64, state: &str) -> String {
    let name = format!("muster-{HOME}-{first}-gpu");
    format!(
        r#"{{"job_id": {id}, "array_job_id": 0, "array_task_id": null, "name": "{name}",
        "job_state": "{state}", "nodes": "n1"}}"#
    )
}

fn queue(jobs: &[String]) -> String {
    let jobs = jobs.join(", ");
    format!("cat <<'END'\n{{\"jobs\": [{jobs}], \"errors\": []}}\nEND")
}

fn externals(sightings: &[Sighting]) -> Vec<&str> {
    sightings.iter().map(|s| &*s.external).collect()
}

fn unclear<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::Unclear(why)) => why,
        other => panic!("expected an unclear answer, got {other:?}"),
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::Refused(why)) => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn an_order_becomes_an_array_with_its_tokens_and_the_program_beside_it() {
    let site = Site::new();
    site.program(
        "sbatch",
        "cat >\"$SITE/script\"; echo \"$@\" >\"$SITE/arguments\"; env >\"$SITE/environment\"; echo '100;north'",
    );
    let provider = site.provider();
    let started = provider.start(&site.order(17, 3)).await.unwrap();
    assert_eq!(externals(&started), ["100_0", "100_1", "100_2"]);
    assert!(started.iter().all(|s| s.state == Sighted::Queued));
    let name = format!("muster-{HOME}-17-gpu");
    for index in 0..3 {
        let token = site.shared(&format!("tokens/{name}.{index}"));
        assert_eq!(
            fs::read_to_string(&token).unwrap(),
            format!("secret-17-{index}\n")
        );
        assert_eq!(mode(&token), 0o600);
    }
    assert_eq!(mode(&site.shared("tokens")), 0o700);
    assert!(site.shared("logs").is_dir());
    let version = site.staged("bin").concat();
    let program = site.shared(&format!("bin/{version}/muster"));
    assert_eq!(
        fs::read_to_string(&program).unwrap(),
        "the program of workers"
    );
    assert_eq!(mode(&program), 0o700);
    let (script, environment) = (site.said("script"), site.said("environment"));
    assert!(
        script.contains(&format!("#SBATCH --job-name={name}\n#SBATCH --array=0-2\n")),
        "{script}"
    );
    assert!(!script.contains("secret-"), "{script}");
    assert!(
        !environment.contains("secret") && !environment.contains("elsewhere"),
        "{environment}"
    );
    assert!(
        environment.contains("SLURM_CONF=/etc/slurm/north.conf\n"),
        "{environment}"
    );
    assert_eq!(site.said("arguments"), "--parsable\n");
}

#[tokio::test]
async fn the_program_is_sent_once_and_again_only_if_it_is_not_whole() {
    let site = Site::new();
    let provider = site.provider();
    provider.start(&site.order(1, 1)).await.unwrap();
    let version = site.staged("bin").concat();
    let program = site.shared(&format!("bin/{version}/muster"));
    let made = fs::metadata(&program).unwrap().modified().unwrap();
    provider.start(&site.order(2, 1)).await.unwrap();
    assert_eq!(fs::metadata(&program).unwrap().modified().unwrap(), made);
    fs::write(&program, "half").unwrap();
    provider.start(&site.order(3, 1)).await.unwrap();
    assert_eq!(
        fs::read_to_string(&program).unwrap(),
        "the program of workers"
    );
    assert_eq!(site.staged(&format!("bin/{version}")), ["muster"]);
}

#[tokio::test]
async fn a_refused_order_leaves_nothing_behind() {
    let site = Site::new();
    for complaint in [
        "Batch job submission failed: Invalid account or account/partition combination specified",
        "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
    ] {
        site.program(
            "sbatch",
            &format!("echo \"sbatch: error: {complaint}\" >&2; exit 1"),
        );
        let why = refused(site.provider().start(&site.order(1, 2)).await);
        assert_eq!(why, format!("sbatch refused: sbatch: error: {complaint}"));
        assert_eq!(site.staged("tokens"), [""; 0]);
    }
    fs::remove_file(site.path("bin/sbatch")).unwrap();
    let mut none = site.provider();
    if Path::new("/usr/bin/sbatch").exists() {
        site.program("sbatch", "exit 127");
        none = site.provider();
    }
    refused(none.start(&site.order(1, 1)).await);
}

#[tokio::test]
async fn an_answer_that_does_not_come_leaves_the_order_open_and_nothing_running() {
    let mut site = Site::new();
    site.limits.command = Duration::from_secs(2);
    site.program("sbatch", "sleep 3600 & echo $! >\"$SITE/pid\"; wait");
    let provider = site.provider();
    let why = unclear(provider.start(&site.order(1, 1)).await);
    assert_eq!(
        why,
        "no answer from this host in 2 s while submitting with sbatch"
    );
    let stat = PathBuf::from(format!("/proc/{}/stat", site.said("pid").trim()));
    let gone = async {
        // The system may take a while to forget one that has ended.
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .unwrap();
    // It may still arrive, and then needs its token.
    provider.list(&[]).await.unwrap();
    assert_eq!(site.staged("tokens").len(), 1);
    for garbage in [
        "echo hello",
        "true",
        "kill -9 $$",
        "echo 7; echo 8",
        "echo 7; exit 1",
    ] {
        site.program("sbatch", garbage);
        unclear(site.provider().start(&site.order(1, 1)).await);
    }
}

#[tokio::test]
async fn no_answer_about_the_queue_is_never_an_empty_queue() {
    let mut site = Site::new();
    site.limits.command = Duration::from_secs(2);
    let no_controller = r#"echo '{"errors": [{"description": "Failed while looking for jobs",
        "error": "Unspecified error"}], "jobs": []}'"#;
    for (answer, said) in [
        ("true", "the answer of squeue is empty"),
        (
            no_controller,
            "squeue says: Failed while looking for jobs: Unspecified error",
        ),
        (
            "sleep 3600",
            "no answer from this host in 2 s while asking squeue for the queue",
        ),
        (
            "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
            "squeue failed: slurm_load_jobs error: Unable to contact slurm controller",
        ),
        (
            "echo '{\"jobs\": [{'",
            "line 1 of the answer of squeue is not understood: \"{\\\"jobs\\\": [{\"",
        ),
        ("kill -9 $$", "squeue failed: ended by a signal"),
    ] {
        site.program("squeue", answer);
        assert_eq!(unclear(site.provider().list(&[]).await), said, "{answer}");
        unclear(site.provider().end(&["1".into()]).await);
    }
    site.program("squeue", NO_QUEUE);
    assert_eq!(site.provider().list(&[]).await.unwrap(), []);
    assert_eq!(site.said("cancelled"), "");
}

#[tokio::test]
async fn a_queue_without_json_or_with_too_much_of_it_is_read_as_text() {
    for no_json in [
        "echo \"squeue: unrecognized option '--json'\" >&2; exit 1",
        "echo 'squeue: error: serializer_g_init: no plugin' >&2; exit 1",
        "head -c 34000000 /dev/zero",
        r#"echo '{"jobs": {"1": {}}}'"#,
    ] {
        let site = Site::new();
        let id = "printf 'JOBID|STATE|REASON|NODELIST|NAME\\n\
            7_1|RUNNING|None|n2|muster-3f9a1c20-5-gpu\\n'";
        let squeue =
            format!("case \"$*\" in *--json*) echo >>\"$SITE/json\"; {no_json};; *) {id};; esac");
        site.program("squeue", &squeue);
        let provider = site.provider();
        for _ in 0..2 {
            let listed = provider.list(&[]).await.unwrap();
            assert_eq!(externals(&listed), ["7_1"], "{no_json}");
        }
        // A form that is merely not understood is tried again: another Slurm may answer tomorrow.
        let asked = if no_json.starts_with("echo '{") { 2 } else { 1 };
        assert_eq!(site.said("json").lines().count(), asked, "{no_json}");
    }
}

#[tokio::test]
async fn only_jobs_that_bear_a_name_of_ours_are_cancelled() {
    let site = Site::new();
    let stranger = job(2, 9, "RUNNING").replace("-gpu\"", "-cpu\"");
    site.program(
        "squeue",
        &queue(&[
            job(1, 8, "RUNNING"),
            stranger,
            job(3, 10, "COMPLETED"),
            job(4, 11, "PENDING"),
        ]),
    );
    let provider = site.provider();
    let asked = ["1", "2", "3", "4", "5"].map(Box::from);
    provider.end(&asked).await.unwrap();
    assert_eq!(site.said("cancelled"), "1 4\n");
    site.program("scancel", "echo 'scancel: error: Kill job error on job id 1: Job/step already completing or completed' >&2; exit 1");
    provider.end(&asked).await.unwrap();
    site.program("scancel", "echo 'scancel: error: Kill job error on job id 1: Unable to contact slurm controller (connect failure)' >&2; exit 8");
    unclear(provider.end(&asked).await);
}

#[tokio::test]
async fn many_jobs_are_cancelled_with_few_commands() {
    let site = Site::new();
    let jobs: Vec<String> = (1..=1_200).map(|id| job(id, id, "PENDING")).collect();
    site.program("squeue", &queue(&jobs));
    let all: Vec<Box<str>> = (1..=1_200).map(|id| id.to_string().into()).collect();
    site.provider().end(&all).await.unwrap();
    let cancelled = site.said("cancelled");
    assert_eq!(cancelled.lines().count(), 3);
    assert_eq!(cancelled.split_whitespace().count(), 1_200);
}

#[tokio::test]
async fn a_token_goes_with_its_allocation_also_when_another_coordinator_process_left_it() {
    let site = Site::new();
    let provider = site.provider();
    provider.start(&site.order(1, 1)).await.unwrap();
    provider.start(&site.order(2, 2)).await.unwrap();
    let foreign = site.shared("tokens/muster-00000000-1-gpu.0");
    fs::write(&foreign, "theirs").unwrap();
    let second = job(7, 2, "RUNNING").replace(
        "\"array_job_id\": 0, \"array_task_id\": null",
        "\"array_job_id\": 6, \"array_task_id\": 1",
    );
    site.program("squeue", &queue(&[job(5, 1, "PENDING"), second]));
    let live = [
        format!("muster-{HOME}-1-gpu.0"),
        format!("muster-{HOME}-2-gpu.1"),
    ];
    let with_theirs = |ours: &[String]| {
        let theirs = "muster-00000000-1-gpu.0".to_owned();
        [&[theirs], ours].concat()
    };
    assert_eq!(externals(&provider.list(&[]).await.unwrap()), ["5", "6_1"]);
    assert_eq!(site.staged("tokens"), with_theirs(&live));
    site.program("squeue", &queue(&[job(5, 1, "COMPLETED")]));
    site.provider().list(&[]).await.unwrap();
    assert_eq!(site.staged("tokens"), with_theirs(&[]));
}

#[tokio::test]
async fn a_site_may_have_a_script_of_its_own() {
    let site = Site::new();
    fs::create_dir(&site.settings.directory).unwrap();
    let own = site.shared("worker.sbatch");
    fs::write(
        &own,
        "#!/bin/sh\n@{directives}\nexec apptainer run @{worker}\n",
    )
    .unwrap();
    let provider = site.provider();
    provider.start(&site.order(1, 1)).await.unwrap();
    assert!(
        site.said("script").contains("\nexec apptainer run '"),
        "{}",
        site.said("script")
    );
    fs::write(&own, "#!/bin/sh\n@{directive}\n").unwrap();
    let why = refused(provider.start(&site.order(2, 1)).await);
    assert!(why.contains("@{directive}"), "{why}");
}

#[tokio::test]
async fn hosts_in_quarantine_are_excluded_by_the_names_that_slurm_has_for_them() {
    let site = Site::new();
    site.program("sinfo", "printf 'n1 n1\\nn2 n2\\nc3 host3\\n'");
    let hosts = ["n2.cluster.example", "host3", "laptop"].map(Arc::from);
    let order = Order {
        exclude: hosts.to_vec(),
        ..site.order(1, 1)
    };
    site.provider().start(&order).await.unwrap();
    let script = site.said("script");
    assert!(script.contains("\n#SBATCH --exclude=c3,n2\n"), "{script}");
    site.program("sinfo", "exit 1");
    unclear(site.provider().start(&order).await);
}
