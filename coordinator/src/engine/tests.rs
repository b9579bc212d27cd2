//! The engine over a memory store: what it tells, and when.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use coordinator_core::command::{Heartbeat, Hello, Report, ReportAnswer};
use coordinator_core::event::{Outcome, RunOutcome, Usage};
use coordinator_core::plan::{Profile, RunSpec, TaskSpec};
use coordinator_core::state::RunPhase;
use coordinator_core::worker::{Offer, Requirement};
use coordinator_core::{Command, Incarnation, LeaseId, Reply, RunId, Span, WorkerId, limits};
use tokio::sync::mpsc;

use super::{Error, Fatal, Handle, Options, SESSION_QUEUE, Started, ToSession, start};
use crate::store::Store as _;
use crate::store::memory::{Fault, MemoryStore};

const PATIENCE: Duration = Duration::from_secs(10);

fn open(store: &MemoryStore) -> Started {
    let options = Options {
        append_retries: 0,
        archive_pause: Span::from_ms(20),
        ..Options::default()
    };
    start(Box::new(store.clone()), options).unwrap()
}

fn plan(tasks: &[(&str, &[&str])]) -> Command {
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
    let spec = RunSpec {
        name: "r-1".into(),
        plan: "r".into(),
        source: None,
        integrate: None,
        max_parallel: NonZeroU32::new(8),
        tasks: tasks
            .iter()
            .map(|(name, depends_on)| TaskSpec {
                name: (*name).into(),
                depends_on: depends_on.iter().map(|name| Arc::from(*name)).collect(),
                priority: 0,
                paths: Vec::new(),
                profile: profile.clone(),
            })
            .collect(),
        submitted_by: "tests".into(),
    };
    Command::Submit {
        spec: Arc::new(spec),
        key: Some("k".into()),
        digest: "d".into(),
    }
}

fn worker() -> WorkerId {
    WorkerId::new("w-0")
}

async fn join(engine: &Handle, session: u64, held: Vec<LeaseId>) -> mpsc::Receiver<ToSession> {
    let offer = Offer {
        pool: "p".into(),
        slots: 4,
        agents: [Arc::from("command")].into(),
        host: "h".into(),
        ..Offer::default()
    };
    let hello = Hello {
        number: 0,
        worker: worker(),
        incarnation: Incarnation(1),
        session,
        offer: Arc::new(offer),
        held: held.clone(),
        draining: false,
        time_left: None,
    };
    let (out, orders) = mpsc::channel(SESSION_QUEUE);
    engine.open(hello, out).await.unwrap();
    beat(engine, session, held).await;
    orders
}

async fn beat(engine: &Handle, session: u64, held: Vec<LeaseId>) {
    let heartbeat = Heartbeat {
        worker: worker(),
        incarnation: Incarnation(1),
        session,
        seq: 1,
        free_slots: 4 - u32::try_from(held.len()).unwrap(),
        held,
        draining: false,
        looked: None,
        time_left: None,
    };
    engine.command(Command::Heartbeat(heartbeat)).await.unwrap();
}

async fn grants(orders: &mut mpsc::Receiver<ToSession>) -> Vec<LeaseId> {
    match tokio::time::timeout(PATIENCE, orders.recv())
        .await
        .unwrap()
        .unwrap()
    {
        ToSession::Grants(grants) => grants.iter().map(|grant| grant.lease).collect(),
        other => panic!("expected grants, got {other:?}"),
    }
}

async fn succeed(engine: &Handle, lease: LeaseId) -> Reply {
    let report = Report::Succeeded {
        outcome: Outcome::NoRepository,
        usage: Usage::default(),
        summary: "".into(),
    };
    engine
        .command(Command::Report {
            worker: worker(),
            lease,
            report,
        })
        .await
        .unwrap()
}

async fn end(started: Started) {
    started.handle.stop().await;
    started.thread.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_run_goes_through_and_leaves_memory_for_the_archive() {
    let store = MemoryStore::new();
    let started = open(&store);
    let engine = started.handle.clone();
    engine
        .command(plan(&[("a", &[]), ("b", &["a"])]))
        .await
        .unwrap();
    let mut orders = join(&engine, 1, Vec::new()).await;
    for _ in 0..2 {
        for lease in grants(&mut orders).await {
            assert_eq!(
                succeed(&engine, lease).await,
                Reply::Report(ReportAnswer::Recorded)
            );
        }
    }
    let mut committed = engine.notices().committed();
    let ended = engine
        .query(|state, _| state.run(RunId(1)).map(|run| run.phase.clone()))
        .await;
    assert!(matches!(
        ended.unwrap(),
        Some(RunPhase::Ended {
            outcome: RunOutcome::Succeeded,
            ..
        })
    ));
    // A refusal is not for ever.
    store.refuse_next_archive();
    engine.archive(RunId(1)).await.unwrap();
    let gone = async {
        while engine
            .query(|state, _| state.run(RunId(1)).is_some())
            .await
            .unwrap()
        {
            committed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    let image = store
        .reader()
        .unwrap()
        .archived_image(RunId(1))
        .unwrap()
        .unwrap();
    assert!(image.run.is_ended());
    end(started).await;
}

#[tokio::test]
async fn nothing_is_said_before_it_is_written() {
    let store = MemoryStore::new();
    let started = open(&store);
    let engine = started.handle.clone();
    let mut orders = join(&engine, 1, Vec::new()).await;
    store.fail_next_append(Fault::Lost);
    let refused = engine.command(plan(&[("a", &[])])).await;
    assert!(matches!(refused, Err(Error::Stopped)));
    assert!(
        orders.recv().await.is_none(),
        "no grant leaves after a failed commit"
    );
    assert!(matches!(
        started.thread.join().unwrap(),
        Err(Fatal::Append(_))
    ));
    let again = open(&store);
    let runs = again
        .handle
        .query(|state, _| state.runs().len())
        .await
        .unwrap();
    assert_eq!(runs, 0, "what was not written has not happened");
    end(again).await;
}

#[tokio::test]
async fn a_commit_that_was_made_although_it_failed_is_there_after_the_restart() {
    let store = MemoryStore::new();
    let started = open(&store);
    store.fail_next_append(Fault::Torn);
    let refused = started.handle.command(plan(&[("a", &[])])).await;
    assert!(matches!(refused, Err(Error::Stopped)));
    assert!(started.thread.join().unwrap().is_err());
    let again = open(&store);
    // The client repeats its submission with the same key and gets the run that is there.
    let reply = again.handle.command(plan(&[("a", &[])])).await.unwrap();
    assert_eq!(
        reply,
        Reply::Submitted {
            run: RunId(1),
            fresh: false
        }
    );
    end(again).await;
}

#[tokio::test]
async fn a_restart_keeps_what_runs_and_runs_nothing_twice() {
    let store = MemoryStore::new();
    let started = open(&store);
    started.handle.command(plan(&[("a", &[])])).await.unwrap();
    let mut orders = join(&started.handle, 1, Vec::new()).await;
    let leases = grants(&mut orders).await;
    let lease = leases[0];
    let begun = Command::Report {
        worker: worker(),
        lease,
        report: Report::Started,
    };
    started.handle.command(begun).await.unwrap();
    end(started).await;

    let again = open(&store);
    let mut orders = join(&again.handle, 1, leases.clone()).await;
    assert_eq!(
        succeed(&again.handle, lease).await,
        Reply::Report(ReportAnswer::Recorded)
    );
    assert_eq!(
        succeed(&again.handle, lease).await,
        Reply::Report(ReportAnswer::AlreadyRecorded)
    );
    let attempts = again
        .handle
        .query(|state, _| state.run(RunId(1)).map(|run| run.tasks[0].attempts().len()))
        .await
        .unwrap();
    assert_eq!(attempts, Some(1));
    assert!(orders.try_recv().is_err(), "nothing was granted again");
    end(again).await;
}

#[tokio::test]
async fn while_holding_nothing_new_is_granted() {
    let store = MemoryStore::new();
    let started = open(&store);
    let engine = started.handle.clone();
    let mut orders = join(&engine, 1, Vec::new()).await;
    engine.hold(true).await.unwrap();
    engine.command(plan(&[("a", &[])])).await.unwrap();
    assert_eq!(
        engine.query(|state, _| state.leases().len()).await.unwrap(),
        0
    );
    engine.hold(false).await.unwrap();
    assert_eq!(grants(&mut orders).await.len(), 1);
    end(started).await;
}

#[tokio::test]
async fn snapshots_shorten_the_way_back_and_change_nothing() {
    let store = MemoryStore::new();
    let options = Options {
        snapshot_every: 1,
        ..Options::default()
    };
    let started = start(Box::new(store.clone()), options).unwrap();
    started
        .handle
        .command(plan(&[("a", &[]), ("b", &["a"])]))
        .await
        .unwrap();
    let mut orders = join(&started.handle, 1, Vec::new()).await;
    let lease = grants(&mut orders).await[0];
    succeed(&started.handle, lease).await;
    let before = started
        .handle
        .query(|state, _| state.image().runs)
        .await
        .unwrap();
    end(started).await;
    let again = open(&store);
    let after = again
        .handle
        .query(|state, _| state.image().runs)
        .await
        .unwrap();
    assert_eq!(before, after);
    end(again).await;
}
