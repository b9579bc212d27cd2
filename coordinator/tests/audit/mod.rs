//! A home made by real parts is damaged in one place at a time: the audit finds that and nothing
//! else, the repair mends what can be mended, and nothing is wrong afterwards.

mod home;
mod journal;
mod refs;
mod workers;

use std::path::{Path, PathBuf};
use std::process::Command;

use coordinator::audit::{Code, Depth, Level, Options, Report, audit, repair};
use coordinator::home::Home;
use coordinator::store::sqlite::inspect::Beside;
use muster_git::Git;
use muster_proto::v1;

use crate::service::world::{Worker, World, events_of, git, made_commit, within};

/// What becomes of a finding when it is repaired.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It is mended, and nothing is wrong.
    Clean,
    /// It stays.
    Stays,
    /// Whoever takes the home removes it, as every start does.
    Goes,
}

/// One damage and what is to be found.
struct Case {
    code: Code,
    damage: fn(&Place),
    then: Then,
}

const fn case(code: Code, then: Then, damage: fn(&Place)) -> Case {
    Case { code, damage, then }
}

/// A home that may be damaged, and a worker's folder beside it.
struct Place {
    folder: PathBuf,
}

const DONE: &str = "\
name: p
repo: .
tasks:
  - {name: a, run: 'true', agent: command}
  - {name: b, run: 'true', agent: command}
  - {name: c, run: 'true', agent: command, depends_on: [a, b]}
";

const LIVE: &str = "\
name: p
repo: .
tasks:
  - {name: a, run: 'true', agent: command}
  - {name: b, run: 'true', agent: command}
";

impl Place {
    fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    fn worker(&self) -> PathBuf {
        self.folder.join("worker")
    }

    fn journal(&self) -> PathBuf {
        self.home().join("journal.db")
    }

    fn repository(&self) -> PathBuf {
        self.home().join("repos/site.git")
    }

    fn git(&self, arguments: &[&str]) -> String {
        git(&self.repository(), arguments)
    }

    /// The run that has ended, and the one that has not.
    fn runs(&self) -> (String, String) {
        let text = std::fs::read_to_string(self.folder.join("runs")).unwrap();
        let (done, live) = text.split_once(' ').unwrap();
        (done.to_owned(), live.to_owned())
    }

    fn source(&self) -> String {
        self.git(&[
            "rev-parse",
            &format!("refs/muster/source/{}", self.runs().0),
        ])
    }

    /// The transcript of a task's first attempt in the run that has ended.
    fn transcript(&self, task: &str) -> PathBuf {
        let folder = self
            .home()
            .join("transcripts")
            .join(self.runs().0)
            .join("tasks")
            .join(task);
        let mut files = std::fs::read_dir(folder).unwrap();
        files.next().unwrap().unwrap().path()
    }

    fn sql(&self, sql: &str) {
        let journal = rusqlite::Connection::open(self.journal()).unwrap();
        journal.execute_batch(sql).unwrap();
        // So that the file alone is what it is now.
        drop(journal);
    }

    async fn look(&self) -> Report {
        let git = Git::find().await.unwrap();
        within(audit(&git, &self.options())).await
    }

    fn options(&self) -> Options {
        Options {
            home: self.home(),
            workers: vec![self.worker()],
            depth: Depth::Full,
            beside: Beside::Nobody,
        }
    }

    fn copy(&self, to: &Path) -> Self {
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&self.folder)
            .arg(to)
            .status()
            .unwrap();
        assert!(copied.success());
        Self {
            folder: to.join(self.folder.file_name().unwrap()),
        }
    }
}

/// What is wrong, by its codes; notes only where `wanted` is one.
fn codes(report: &Report, wanted: Option<Code>) -> Vec<&'static str> {
    let mut codes: Vec<_> = report
        .findings
        .iter()
        .map(|found| found.code)
        .filter(|code| code.level() != Level::Note || Some(*code) == wanted)
        .map(Code::as_str)
        .collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

/// Publishes for a grant, says something, and reports.
async fn finish(world: &World, worker: &mut Worker, grant: &v1::Grant) {
    worker.notes(events_of(grant), &[1, 2, 3]).await;
    let from = world.hosted().to_string_lossy().into_owned();
    let base = &grant.source.as_ref().unwrap().read_ref;
    git(&world.work(), &["fetch", "-q", &from, base]);
    let commit = world.publish(grant);
    worker
        .report(vec![(grant.lease, made_commit(&commit))])
        .await;
}

/// Makes a home with a run that has ended and one in which a task has succeeded and one is leased.
async fn built() -> (World, Place) {
    let mut world = World::start().await;
    let done = world.submit_with_repository(DONE, "done").await;
    let mut worker = Worker::join(&world, "w").await;
    for grant in worker.grants().await {
        finish(&world, &mut worker, &grant).await;
    }
    worker.beat(Vec::new()).await;
    let last = worker.grant().await;
    finish(&world, &mut worker, &last).await;
    world.until(&done, |run| run.archived).await;
    let live = world.submit_with_repository(LIVE, "live").await;
    let grants = worker.grants().await;
    finish(&world, &mut worker, &grants[0]).await;
    worker.notes(events_of(&grants[1]), &[1, 2]).await;
    let branch = format!("refs/heads/muster/{live}/tasks/{}", grants[0].task);
    let shown = || world.ls_remote().unwrap().contains(&branch);
    assert!(shown());
    drop(worker);
    world.stop().await;
    let place = Place {
        folder: world.folder.path().to_owned(),
    };
    std::fs::write(place.folder.join("runs"), format!("{done} {live}")).unwrap();
    workers::make(&place, &grants[1]);
    (world, place)
}

/// Homes of these tests have runs of the same names, and audits look at all processes of the host:
/// whoever starts one that is to be found holds this alone.
static PROCESSES: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

/// Damages copies of one home, each in one place.
async fn try_all(cases: &[Case]) {
    let _nobodys = PROCESSES.read().await;
    let (_world, sound) = built().await;
    let report = sound.look().await;
    assert_eq!(codes(&report, None), [""; 0], "{:#?}", report.findings);
    let git = Git::find().await.unwrap();
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        let place = sound.copy(folder.path());
        (case.damage)(&place);
        let name = case.code.as_str();
        let report = place.look().await;
        assert_eq!(
            codes(&report, Some(case.code)),
            [name],
            "{:#?}",
            report.findings
        );
        let home = Home::own(&place.home()).unwrap();
        let done = within(repair::repair(&git, &home, &place.options())).await;
        let left = codes(&done.report, None);
        match case.then {
            Then::Clean => {
                assert!(
                    done.steps.iter().any(|step| step.finding.code == case.code),
                    "{name}"
                );
                assert_eq!(left, [""; 0], "{name}: {:#?}", done.report.findings);
            }
            Then::Goes => assert_eq!(left, [""; 0], "{name}: {:#?}", done.report.findings),
            Then::Stays => {
                let stays = case.code.level() == Level::Note || left == [name];
                assert!(stays, "{name}: {:#?}", done.report.findings);
            }
        }
    }
}

/// Codes that unit tests beside their checks provoke.
const ELSEWHERE: &[Code] = &[
    Code::LeaseTwice,
    Code::AttemptTwice,
    Code::LeaseClosedTwice,
    Code::ResultTwice,
    Code::AcceptedTwice,
];

#[test]
fn every_kind_of_finding_is_provoked() {
    let provoked: Vec<Code> = [journal::CASES, refs::CASES, workers::CASES, home::CASES]
        .into_iter()
        .flatten()
        .map(|case| case.code)
        .chain(ELSEWHERE.iter().copied())
        .chain(journal::OTHERS.iter().copied())
        .collect();
    let missing: Vec<_> = Code::ALL
        .iter()
        .filter(|code| !provoked.contains(code))
        .map(|code| code.as_str())
        .collect();
    assert_eq!(missing, [""; 0]);
}

fn command(home: &Path, arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_coordinator"))
        .arg("--home")
        .arg(home)
        .args(arguments)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_running_coordinator_an_audit_tells_no_lies_and_a_repair_is_refused() {
    let mut world = World::start().await;
    let run = world.submit_with_repository(LIVE, "live").await;
    let mut worker = Worker::join(&world, "w").await;
    let grants = worker.grants().await;
    finish(&world, &mut worker, &grants[0]).await;
    let home = world.folder.path().join("home");

    let audited = command(&home, &["audit", "--run", &run, "--json"]);
    assert_eq!(audited.status.code(), Some(0), "{audited:?}");
    let text = String::from_utf8(audited.stdout).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["clean"], true);
    assert_eq!(last["coordinator_runs"], true);
    assert_eq!(last["checked"]["leases"], 2);

    let refused = command(&home, &["doctor", "--repair"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("another coordinator") && said.contains("end it first"),
        "{said}"
    );

    // What is really wrong stays wrong, however often it is looked at.
    let source = format!("refs/muster/source/{run}");
    git(
        &world.hosted(),
        &["update-ref", "refs/heads/topic", &source],
    );
    let audited = command(&home, &["audit"]);
    assert_eq!(audited.status.code(), Some(1), "{audited:?}");
    let text = String::from_utf8(audited.stdout).unwrap();
    assert!(text.contains("ref-unknown"), "{text}");
    world.stop().await;
}
