use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coordinator_core::command::{Heartbeat, Hello, Report};
use coordinator_core::event::{Outcome, Usage, Work};
use coordinator_core::plan::{Profile, RunSpec, Source, TaskSpec};
use coordinator_core::worker::{Offer, Requirement};
use coordinator_core::{
    AttemptNo, Command, CommitId, Epoch, Incarnation, LeaseId, Span, TaskIx, WorkerId, limits,
};
use muster_git::{
    CommitTime, Expected, Git, Identity, ObjectFormat, ObjectId, RefName, RefUpdate, Repository,
    Update,
};
use muster_proto::v1::AgentEvent;
use muster_proto::v1::agent_event::Kind;
use tokio::sync::mpsc;

use super::manifest::Manifest;
use super::{Claim, Error, HOME, UNFINISHED, make, restore};
use crate::auth::Authenticator;
use crate::engine::{self, SESSION_QUEUE, Started, ToSession};
use crate::git::repository::HostedRepository;
use crate::home::Home;
use crate::store::Store as _;
use crate::store::sqlite::SqliteStore;
use crate::transcript::{self, Place, Transcripts};

/// A home with a run: `a` has made a commit, `b` is at work.
struct World {
    folder: tempfile::TempDir,
    repository: Repository,
    base: ObjectId,
    made: ObjectId,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        drop(Authenticator::open(&home).unwrap());
        let git = Git::find().await.unwrap();
        let hosted = HostedRepository::open_or_init(&git, &home, "site", ObjectFormat::Sha1);
        let repository = hosted.await.unwrap().repository().clone();
        let base = commit(&repository, "base", &[]).await;
        let made = commit(&repository, "made", &[base]).await;
        let world = Self {
            folder,
            repository,
            base,
            made,
        };
        world.point("refs/muster/source/r-1", base).await;
        world.point("refs/muster/attempts/r-1/a/1", made).await;
        let started = world.start(&world.home());
        world.work(&started.handle).await;
        started.handle.stop().await;
        started.thread.join().unwrap().unwrap();
        let event = AgentEvent {
            number: 1,
            at_ms: 1,
            kind: Some(Kind::Note("hello".to_owned())),
        };
        let transcripts = Transcripts::start(world.home().join("transcripts")).unwrap();
        transcripts.append(place(), "w", vec![event]).await.unwrap();
        world
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn backup(&self) -> PathBuf {
        self.folder.path().join("backup")
    }

    fn restored(&self) -> PathBuf {
        self.folder.path().join("restored")
    }

    async fn point(&self, name: &str, commit: ObjectId) {
        let update = RefUpdate {
            name: RefName::parse(name).unwrap(),
            new: Some(commit),
            expected: Expected::Any,
        };
        let done = self.repository.update_refs(&[update]).await.unwrap();
        assert_eq!(done, Update::Done);
    }

    fn start(&self, home: &Path) -> Started {
        let store = SqliteStore::open(&home.join("journal.db")).unwrap();
        engine::start(Box::new(store), engine::Options::default()).unwrap()
    }

    async fn work(&self, engine: &engine::Handle) {
        let documents = vec![b"a".to_vec(), b"b".to_vec()];
        engine.put_specs("r-1".into(), documents).await.unwrap();
        engine.command(plan(self.base)).await.unwrap();
        let lease = joined(engine).await;
        let report = Report::Succeeded {
            outcome: Outcome::Commit(CommitId::new(&self.made.to_string())),
            usage: Usage::default(),
            summary: "".into(),
        };
        let worker = worker();
        let report = Command::Report {
            worker,
            lease,
            report,
        };
        engine.command(report).await.unwrap();
    }

    fn left_over(&self) -> Vec<String> {
        fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(UNFINISHED))
            .collect()
    }
}

fn worker() -> WorkerId {
    WorkerId::new("w-0")
}

fn place() -> Place {
    Place {
        run: "r-1".into(),
        task: "a".into(),
        work: Work::Attempt {
            task: TaskIx(0),
            attempt: AttemptNo(1),
        },
        lease: LeaseId(1),
    }
}

async fn commit(repository: &Repository, message: &str, parents: &[ObjectId]) -> ObjectId {
    let tree = repository.command().arg("mktree").run_ok().await.unwrap();
    let tree = ObjectId::parse(&tree.text()).unwrap();
    let identity = Identity::new("T", "t@example.com").unwrap();
    let time = CommitTime::from_unix_seconds(1);
    repository
        .commit_tree(tree, parents, message, &identity, time)
        .await
        .unwrap()
}

fn plan(base: ObjectId) -> Command {
    let profile = Profile {
        requirement: Requirement {
            agent: "command".into(),
            ..Requirement::default()
        },
        retries: 0,
        timeout: limits::TASK_TIMEOUT,
        verify: None,
        backoff: Span::from_ms(1),
        resumes: false,
        near: false,
    };
    let task = |name: &str, after: &[&str]| TaskSpec {
        name: name.into(),
        depends_on: after.iter().map(|name| Arc::from(*name)).collect(),
        priority: 0,
        paths: Vec::new(),
        profile: profile.clone(),
    };
    let spec = RunSpec {
        name: "r-1".into(),
        plan: "r".into(),
        source: Some(Source {
            repository: "site".into(),
            base: CommitId::new(&base.to_string()),
        }),
        integrate: None,
        max_parallel: None,
        tasks: vec![task("a", &[]), task("b", &["a"])],
        submitted_by: "tests".into(),
    };
    Command::Submit {
        spec: Arc::new(spec),
        key: None,
        digest: "d".into(),
    }
}

/// Lets a worker join and gives the first lease that it is granted.
async fn joined(engine: &engine::Handle) -> LeaseId {
    let offer = Offer {
        pool: "p".into(),
        slots: 4,
        agents: [Arc::from("command")].into(),
        host: "h".into(),
        ..Offer::default()
    };
    let hello = Hello {
        worker: worker(),
        incarnation: Incarnation(1),
        session: 1,
        number: 1,
        offer: Arc::new(offer),
        held: Vec::new(),
        draining: false,
        time_left: None,
    };
    let (out, mut orders) = mpsc::channel(SESSION_QUEUE);
    engine.open(hello, out).await.unwrap();
    let heartbeat = Heartbeat {
        worker: worker(),
        incarnation: Incarnation(1),
        session: 1,
        seq: 1,
        free_slots: 4,
        held: Vec::new(),
        draining: false,
        looked: None,
        time_left: None,
    };
    engine.command(Command::Heartbeat(heartbeat)).await.unwrap();
    match orders.recv().await.unwrap() {
        ToSession::Grants(grants) => grants[0].lease,
        other => panic!("expected a grant, got {other:?}"),
    }
}

async fn refs(home: &Path) -> Vec<(String, String)> {
    let git = Git::find().await.unwrap();
    let folder = home.join("repos/site.git");
    let repository = Repository::open_bare(&git, &folder).await.unwrap();
    let refs = repository.list_refs("refs").await.unwrap();
    refs.into_iter()
        .map(|(name, id)| (name.as_str().to_owned(), id.to_string()))
        .collect()
}

#[tokio::test]
async fn a_home_comes_back_whole_private_and_in_an_epoch_of_its_own() {
    let world = World::new().await;
    let figures = make(&world.home(), &world.backup()).await.unwrap();
    assert_eq!((figures.live_runs, figures.repositories), (1, 1));
    assert_eq!((figures.commits, figures.transcripts), (2, 1));
    let restored = restore(&world.backup(), &world.restored(), Claim::Copy)
        .await
        .unwrap();
    assert!(restored.epoch >= Epoch::RESTORED);
    assert_eq!(restored.figures, figures);
    for (home, root) in [(true, world.restored()), (false, world.backup())] {
        assert_eq!(
            fs::metadata(&root).unwrap().permissions().mode() & 0o777,
            0o700
        );
        for path in super::files::list(&root).unwrap() {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            let is_git = path.components().any(|part| part.as_os_str() == "repos");
            assert!(
                mode & 0o077 == 0 || is_git,
                "{home} {}: {mode:o}",
                path.display()
            );
        }
    }
    for name in ["secret.key", "admin.token", "tls/ca.pem", "tls/ca.key"] {
        let read = |home: PathBuf| fs::read(home.join(name)).unwrap();
        assert_eq!(read(world.home()), read(world.restored()), "{name}");
    }
    drop(Authenticator::open(&world.restored()).unwrap());
    let events = transcript::read(&world.restored().join("transcripts"), &place(), 0, 99).unwrap();
    assert_eq!(events.len(), 1);
    let started = world.start(&world.restored());
    assert_eq!(started.epoch, Epoch(restored.epoch.0 + 1));
    // The lost life may have given the ids that come next.
    let lease = joined(&started.handle).await;
    assert!(lease.0 > Epoch::RESTORED.0, "{lease}");
    started.handle.stop().await;
    started.thread.join().unwrap().unwrap();
}

/// Lets a pool want an allocation, and gives how many there are.
async fn pooled(engine: &engine::Handle) -> usize {
    use coordinator_core::pool::{Policy, PoolCommand};
    let policy = Policy {
        priority: 0,
        min: 1,
        max: 1,
        template: Offer::default(),
        agents: None,
        workers: 1,
        idle_timeout: limits::SOON,
        backlog: 1,
        burst: 1,
        join_timeout: limits::SOON,
        walltime: None,
        failures_max: 3,
        quarantine: false,
        stays: false,
    };
    let policies = [("gpu".into(), policy)].into();
    for command in [PoolCommand::Configure { policies }, PoolCommand::Plan] {
        engine.command(Command::Pool(command)).await.unwrap();
    }
    held(engine).await
}

async fn held(engine: &engine::Handle) -> usize {
    let held = engine.query(|state, _| state.allocations().len());
    held.await.unwrap()
}

#[tokio::test]
async fn a_copy_neither_lists_nor_ends_what_the_original_has_started() {
    let world = World::new().await;
    let started = world.start(&world.home());
    assert_eq!(pooled(&started.handle).await, 1);
    started.handle.stop().await;
    started.thread.join().unwrap().unwrap();
    make(&world.home(), &world.backup()).await.unwrap();
    let name = |home: &Path| Authenticator::open(home).unwrap().home_id().to_owned();
    let original = name(&world.home());

    let restored = restore(&world.backup(), &world.restored(), Claim::Copy).await;
    assert_eq!(restored.unwrap().allocations, Some(1));
    let copy = name(&world.restored());
    assert_ne!(copy, original, "by it providers tell whose a job is");
    let started = world.start(&world.restored());
    let home = world.restored();
    crate::pool::disown(&started.handle, &home).await.unwrap();
    assert_eq!(held(&started.handle).await, 0);
    // What it orders itself is its own, whenever it starts again.
    assert_eq!(pooled(&started.handle).await, 1);
    crate::pool::disown(&started.handle, &home).await.unwrap();
    assert_eq!(held(&started.handle).await, 1);
    started.handle.stop().await;
    started.thread.join().unwrap().unwrap();

    let again = world.folder.path().join("again");
    let restored = restore(&world.backup(), &again, Claim::Copy).await;
    restored.unwrap();
    assert!(![copy.clone(), original.clone()].contains(&name(&again)));

    // A backup of a copy has the copy's name, for its successor.
    let (backup, next) = (
        world.folder.path().join("b2"),
        world.folder.path().join("h2"),
    );
    make(&home, &backup).await.unwrap();
    let restored = restore(&backup, &next, Claim::Successor).await;
    assert_eq!(restored.unwrap().allocations, Some(1));
    assert_eq!(name(&next), copy);
    let started = world.start(&next);
    crate::pool::disown(&started.handle, &next).await.unwrap();
    assert_eq!(held(&started.handle).await, 1);
    started.handle.stop().await;
    started.thread.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_damaged_name_of_a_home_is_not_passed_over() {
    let world = World::new().await;
    fs::write(world.home().join("home.id"), "3f9a").unwrap();
    let refused = Authenticator::open(&world.home()).unwrap_err();
    assert!(
        crate::causes::chain(&refused).contains("is damaged"),
        "{refused}"
    );
}

#[tokio::test]
async fn refs_are_as_the_journal_has_them_whatever_was_pushed_since() {
    let world = World::new().await;
    let later = commit(&world.repository, "later", &[world.made]).await;
    for name in [
        // The journal knows the attempt, so its snapshot is kept.
        "refs/muster/wip/r-1/a/1",
        // It does not know these: the same names will be given again.
        "refs/muster/attempts/r-1/a/2",
        "refs/muster/wip/r-1/a/2",
        "refs/muster/source/r-2",
        "refs/muster/candidate/r-1/1",
        // It says that these are something else.
        "refs/muster/attempts/r-1/a/1",
        "refs/heads/muster/r-1/tasks/a",
        // Not ours.
        "refs/heads/theirs",
    ] {
        world.point(name, later).await;
    }
    make(&world.home(), &world.backup()).await.unwrap();
    let found = refs(&world.backup().join(HOME)).await;
    let wanted = [
        ("refs/heads/muster/r-1/tasks/a", world.made),
        ("refs/heads/theirs", later),
        ("refs/muster/attempts/r-1/a/1", world.made),
        ("refs/muster/source/r-1", world.base),
        ("refs/muster/wip/r-1/a/1", later),
    ];
    let wanted = wanted.map(|(name, id)| (name.to_owned(), id.to_string()));
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn any_damage_of_a_backup_is_named_before_anything_is_written() {
    let world = World::new().await;
    make(&world.home(), &world.backup()).await.unwrap();
    let manifest = Manifest::read(&world.backup()).unwrap();
    assert!(manifest.files.len() > 10);
    for file in &manifest.files {
        let path = world.backup().join(HOME).join(&file.path);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        if let Some(byte) = flipped.get_mut(whole.len() / 2) {
            *byte ^= 1;
        }
        let longer = [&whole[..], b"x"].concat();
        let shorter = whole.get(1..).unwrap_or(b"x").to_vec();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for spoiled in [flipped, longer, shorter] {
            if spoiled == whole {
                continue;
            }
            fs::write(&path, spoiled).unwrap();
            refused_naming(&world, &file.path).await;
        }
        fs::remove_file(&path).unwrap();
        refused_naming(&world, &file.path).await;
        fs::write(&path, whole).unwrap();
    }
    restore(&world.backup(), &world.restored(), Claim::Copy)
        .await
        .unwrap();
}

async fn refused_naming(world: &World, file: &str) {
    let error = restore(&world.backup(), &world.restored(), Claim::Copy)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { path, .. } if path.ends_with(file)),
        "{file}: {error}"
    );
    assert!(!world.restored().exists());
}

#[tokio::test]
async fn only_a_backup_is_restored_and_only_to_a_free_home() {
    let world = World::new().await;
    make(&world.home(), &world.backup()).await.unwrap();
    let refused = make(&world.home(), &world.backup()).await;
    assert!(matches!(refused, Err(Error::NotEmpty(_))), "{refused:?}");
    let refused = make(&world.backup(), &world.restored()).await;
    assert!(matches!(refused, Err(Error::NoHome(_))), "{refused:?}");
    let refused = restore(&world.home(), &world.restored(), Claim::Copy).await;
    assert!(matches!(refused, Err(Error::Foreign(_))), "{refused:?}");
    let refused = restore(&world.backup(), &world.home(), Claim::Copy).await;
    assert!(matches!(refused, Err(Error::NotEmpty(_))), "{refused:?}");
    let owned = Home::own(&world.home()).unwrap();
    let refused = restore(&world.backup(), &world.home(), Claim::Copy).await;
    let own = Some(std::process::id());
    assert!(matches!(refused, Err(Error::InUse { pid, .. }) if pid == own));
    drop(owned);
    // An empty folder is free.
    fs::create_dir(world.restored()).unwrap();
    restore(&world.backup(), &world.restored(), Claim::Copy)
        .await
        .unwrap();
    assert!(world.left_over().is_empty());
}

#[tokio::test]
async fn a_name_that_no_new_folder_can_take_is_refused_before_anything_is_copied() {
    let world = World::new().await;
    let inside = world.home().join("transcripts").join("backup");
    let refused = make(&world.home(), &inside).await;
    assert!(matches!(refused, Err(Error::Inside { .. })), "{refused:?}");
    let link = world.folder.path().join("link");
    for to in [world.folder.path().join("nowhere"), world.home()] {
        std::os::unix::fs::symlink(to, &link).unwrap();
        let refused = make(&world.home(), &link).await;
        let expected = matches!(refused, Err(Error::Link(_) | Error::Inside { .. }));
        assert!(expected, "{refused:?}");
        fs::remove_file(&link).unwrap();
    }
    // Another file system is mounted there everywhere.
    let refused = make(&world.home(), Path::new("/proc")).await;
    assert!(matches!(refused, Err(Error::MountPoint(_))), "{refused:?}");
    make(&world.home(), &world.backup()).await.unwrap();
    let inside = world.backup().join(HOME).join("home");
    let refused = restore(&world.backup(), &inside, Claim::Copy).await;
    assert!(matches!(refused, Err(Error::Inside { .. })), "{refused:?}");
    assert!(world.left_over().is_empty());
}

#[tokio::test]
async fn a_transcript_that_is_a_link_is_not_left_out_in_silence() {
    let world = World::new().await;
    let transcript = place().path(&world.home().join("transcripts"));
    let elsewhere = world.folder.path().join("elsewhere");
    fs::rename(&transcript, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &transcript).unwrap();
    let refused = make(&world.home(), &world.backup()).await;
    assert!(
        matches!(&refused, Err(Error::Link(path)) if *path == transcript),
        "{refused:?}"
    );
    assert!(world.left_over().is_empty());
}

#[tokio::test]
async fn a_lost_commit_is_named_and_leaves_no_backup() {
    let world = World::new().await;
    let id = world.made.to_string();
    let object = world
        .repository
        .folder()
        .join("objects")
        .join(&id[..2])
        .join(&id[2..]);
    fs::remove_file(object).unwrap();
    let error = make(&world.home(), &world.backup()).await.unwrap_err();
    assert!(
        matches!(&error, Error::MissingCommit { commit, .. } if *commit == id),
        "{error}"
    );
    assert!(!world.backup().exists() && world.left_over().is_empty());
}

#[tokio::test]
async fn what_only_an_audit_counts_refuses_a_backup_too() {
    for (damage, code) in [
        ("DELETE FROM spec", "documents-missing"),
        ("DELETE FROM journal_run", "index-differs"),
        ("UPDATE epoch SET epoch = 0", "epoch-fell"),
    ] {
        let world = World::new().await;
        let journal = rusqlite::Connection::open(world.home().join("journal.db")).unwrap();
        journal.execute_batch(damage).unwrap();
        drop(journal);
        let error = make(&world.home(), &world.backup()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Unsound { code: found, .. } if *found == code),
            "{damage}: {error}"
        );
        assert!(!world.backup().exists() && world.left_over().is_empty());
    }
}

#[tokio::test]
async fn a_run_whose_repository_is_gone_refuses_a_backup() {
    let world = World::new().await;
    fs::remove_dir_all(world.repository.folder()).unwrap();
    let error = make(&world.home(), &world.backup()).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Unsound {
                code: "repository-missing",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn the_transcript_of_a_lease_that_the_journal_does_not_know_stays_behind() {
    let world = World::new().await;
    let known = place().path(&world.home().join("transcripts"));
    let later = known.with_file_name("attempt-2-L99.events");
    fs::copy(&known, &later).unwrap();
    let figures = make(&world.home(), &world.backup()).await.unwrap();
    assert_eq!((figures.transcripts, figures.damaged_transcripts), (1, 0));
    let mut bytes = fs::read(&known).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&known, bytes).unwrap();
    let second = world.folder.path().join("second");
    let figures = make(&world.home(), &second).await.unwrap();
    assert_eq!((figures.transcripts, figures.damaged_transcripts), (1, 1));
}

#[tokio::test]
async fn a_journal_of_a_newer_program_is_refused_with_both_versions() {
    let world = World::new().await;
    rusqlite::Connection::open(world.home().join("journal.db"))
        .unwrap()
        .execute_batch("PRAGMA user_version = 9; UPDATE meta SET value = '8.1.0'")
        .unwrap();
    let error = make(&world.home(), &world.backup()).await.unwrap_err();
    assert!(
        error.to_string().contains("Muster 8.1.0 in format 9")
            && error.to_string().contains("format 1"),
        "{error}"
    );
}

#[tokio::test]
async fn a_coordinator_that_writes_meanwhile_is_saved_as_of_one_moment() {
    let world = World::new().await;
    let started = world.start(&world.home());
    let enough = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (engine, enough) = (started.handle.clone(), Arc::clone(&enough));
        async move {
            let mut drains = 0_u64;
            while !enough.load(Ordering::Relaxed) {
                let draining = drains.is_multiple_of(2);
                let by = "tests".into();
                let (worker, drain) = (worker(), draining);
                let command = Command::Drain {
                    worker,
                    draining: drain,
                    by,
                };
                engine.command(command).await.unwrap();
                drains += 1;
            }
            drains
        }
    });
    let mut last = 0;
    for number in 0..4 {
        let backup = world.folder.path().join(format!("backup-{number}"));
        let figures = make(&world.home(), &backup).await.unwrap();
        assert!(figures.last_batch > last, "nothing was written meanwhile");
        last = figures.last_batch;
        let mut store = SqliteStore::open(&backup.join(HOME).join("journal.db")).unwrap();
        assert_eq!(store.load().unwrap().next.0, last + 1);
    }
    enough.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() >= last.saturating_sub(20));
    started.handle.stop().await;
    started.thread.join().unwrap().unwrap();
}
