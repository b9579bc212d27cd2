use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coordinator_core::event::Work;
use coordinator_core::{AttemptNo, LeaseId, TaskIx};
use muster_proto::v1::activity::Kind as Doing;
use muster_proto::v1::agent_event::Kind;
use muster_proto::v1::{Activity, AgentEvent, ModelUsage};
use proptest::prelude::*;

use super::*;
use crate::transcript::{self, Transcripts};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn place(lease: u64) -> Place {
    Place {
        run: format!("run-{}", lease % 2).into(),
        task: format!("task-{}", lease % 3).into(),
        work: Work::Attempt {
            task: TaskIx(0),
            attempt: AttemptNo(u32::try_from(lease).unwrap()),
        },
        lease: LeaseId(lease),
    }
}

fn used(number: u64, model: &str, tokens: u64) -> AgentEvent {
    let usage = ModelUsage {
        model: model.to_owned(),
        input_tokens: tokens,
        cached_input_tokens: tokens / 2,
        output_tokens: 1,
        cost_micros: number.is_multiple_of(2).then_some(7),
        calls: 1,
        unknown_calls: u32::from(number.is_multiple_of(2)),
        ..ModelUsage::default()
    };
    AgentEvent {
        number,
        at_ms: 1_000 + number,
        kind: Some(Kind::Activity(Activity {
            turn: u32::try_from(number / 5).unwrap(),
            kind: Some(Doing::Usage(usage)),
        })),
    }
}

fn said(number: u64) -> AgentEvent {
    AgentEvent {
        number,
        at_ms: 1_000 + number,
        kind: Some(Kind::Note("x".repeat(40))),
    }
}

/// A stream of a lease: every third event is usage.
fn events(numbers: std::ops::RangeInclusive<u64>) -> Vec<AgentEvent> {
    let event = |number: u64| match number % 3 {
        0 => used(
            number,
            if number.is_multiple_of(2) {
                "gpt-5.4"
            } else {
                "gpt-5"
            },
            number,
        ),
        _ => said(number),
    };
    numbers.map(event).collect()
}

/// Everything in a ledger, in words.
fn dump(home: &Path) -> Vec<String> {
    let connection = database::open_to_read(&home.join(FILE_NAME), Beside::Writer).unwrap();
    let mut statement = connection
        .prepare(
            "SELECT lease, run, task, work, attempt, worker, path, number, at_ms, turn, model,
                    input, cached, cache_write, output, reasoning, calls, cost_micros
             FROM usage JOIN lease USING (lease) ORDER BY lease, number",
        )
        .unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values = (0..columns).map(|at| row.get::<_, rusqlite::types::Value>(at));
        Ok(format!("{:?}", values.collect::<Result<Vec<_>, _>>()?))
    });
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

/// What a ledger made from nothing would hold.
fn made_anew(home: &Path) -> Vec<String> {
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(home.join("transcripts"), other.path().join("transcripts")).unwrap();
    rebuild(other.path()).unwrap();
    dump(other.path())
}

struct World {
    home: tempfile::TempDir,
    ledger: Ledger,
    transcripts: Transcripts,
}

impl World {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    fn on(home: tempfile::TempDir) -> Self {
        let ledger = Ledger::start(home.path()).unwrap();
        let folder = home.path().join("transcripts");
        let transcripts = Transcripts::start_with(folder, Some(ledger.inbox())).unwrap();
        Self {
            home,
            ledger,
            transcripts,
        }
    }

    async fn append(&self, lease: u64, numbers: std::ops::RangeInclusive<u64>) {
        let events = events(numbers);
        let worker = format!("worker-{}", lease % 2);
        let appended = self.transcripts.append(place(lease), &worker, events);
        appended.await.unwrap();
    }

    async fn settled(&self) {
        let begun = Instant::now();
        while let Some(lag) = self.ledger.settle(PATIENCE).await {
            assert!(begun.elapsed() < PATIENCE, "{lag}");
        }
    }

    async fn restart(self) -> Self {
        let Self {
            home,
            ledger,
            transcripts,
        } = self;
        drop(transcripts);
        ledger.close().await;
        Self::on(home)
    }
}

#[tokio::test]
async fn every_usage_that_is_in_a_transcript_is_one_row_whatever_is_sent_again() {
    let world = World::new();
    for lease in 1..=4 {
        world.append(lease, 1..=10).await;
        world.append(lease, 4..=10).await;
        world.append(lease, 8..=20).await;
    }
    world.settled().await;
    let rows = dump(world.home.path());
    assert_eq!(rows.len(), 4 * 6);
    assert_eq!(rows, made_anew(world.home.path()));
    assert!(rows[0].contains("worker-1"), "{}", rows[0]);
    let world = world.restart().await;
    world.append(1, 1..=23).await;
    world.settled().await;
    assert_eq!(dump(world.home.path()).len(), 4 * 6 + 1);
}

#[tokio::test]
async fn a_deleted_ledger_is_made_again_and_is_the_same() {
    let world = World::new();
    for lease in 1..=3 {
        world.append(lease, 1..=30).await;
    }
    world.settled().await;
    let before = dump(world.home.path());
    world.ledger.close().await;
    for end in ["", "-wal", "-shm"] {
        let path = world.home.path().join(format!("{FILE_NAME}{end}"));
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let world = world.restart().await;
    world.settled().await;
    assert_eq!(dump(world.home.path()), before);
}

#[tokio::test]
async fn a_ledger_of_nonsense_or_of_another_form_is_made_anew() {
    let world = World::new();
    world.append(1, 1..=9).await;
    world.settled().await;
    let before = dump(world.home.path());
    let path = world.home.path().join(FILE_NAME);
    let mut world = world;
    for spoil in [
        |path: &Path| std::fs::write(path, vec![b'x'; 10_000]).unwrap(),
        |path: &Path| {
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.pragma_update(None, "user_version", 99).unwrap();
        },
    ] {
        world.ledger.close().await;
        spoil(&path);
        world = world.restart().await;
        world.settled().await;
        assert_eq!(dump(world.home.path()), before);
    }
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_lags_says_so_and_catches_up() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(FILE_NAME);
    std::fs::create_dir(&path).unwrap();
    let world = World::on(home);
    world.append(1, 1..=9).await;
    let lag = world.ledger.settle(PATIENCE).await.unwrap();
    assert!(lag.contains("ledger"), "{lag}");
    // Transcripts are taken all the same.
    assert_eq!(
        transcript::read(
            &world.home.path().join("transcripts"),
            &place(1),
            0,
            usize::MAX
        )
        .unwrap()
        .len(),
        9
    );
    std::fs::remove_dir(&path).unwrap();
    world.settled().await;
    assert_eq!(dump(world.home.path()).len(), 3);
}

#[tokio::test]
async fn news_that_found_no_room_are_read_from_the_transcripts() {
    let world = World::new();
    world.settled().await;
    let deaf = Transcripts::start(world.home.path().join("transcripts")).unwrap();
    deaf.append(place(5), "w", events(1..=6)).await.unwrap();
    world.ledger.inbox.missed.store(true, Ordering::Release);
    world.settled().await;
    assert_eq!(dump(world.home.path()).len(), 2);
    // Of one whose news were missed, the next ones find the rest.
    deaf.append(place(5), "w", events(7..=9)).await.unwrap();
    world.append(5, 10..=12).await;
    world.settled().await;
    assert_eq!(dump(world.home.path()).len(), 4);
}

#[tokio::test]
async fn rows_of_transcripts_that_are_gone_or_were_put_back_older_go_too() {
    let world = World::new();
    world.append(1, 1..=9).await;
    world.settled().await;
    let folder = world.home.path().join("transcripts");
    let (first, second) = (place(1).path(&folder), place(2).path(&folder));
    let older = std::fs::read(&first).unwrap();
    world.append(1, 10..=18).await;
    world.append(2, 1..=9).await;
    world.settled().await;
    assert_eq!(dump(world.home.path()).len(), 9);
    std::fs::write(&first, older).unwrap();
    std::fs::remove_file(second).unwrap();
    let world = world.restart().await;
    world.settled().await;
    assert_eq!(dump(world.home.path()).len(), 3);
    assert_eq!(dump(world.home.path()), made_anew(world.home.path()));
}

#[tokio::test]
async fn usage_is_summed_up_by_whatever_is_asked_for() {
    let world = World::new();
    for lease in 1..=4 {
        world.append(lease, 1..=12).await;
    }
    world.settled().await;
    let ask = |filter: Filter, by| {
        let ledger = world.ledger.clone();
        async move { ledger.usage(filter, by, 100).await.unwrap() }
    };
    let all = ask(Filter::default(), GroupBy::Run).await;
    let names: Vec<_> = all.groups.iter().map(|group| group.run.clone()).collect();
    assert_eq!(names, [Some("run-0".to_owned()), Some("run-1".to_owned())]);
    let total = all.total.sums();
    assert_eq!((total.events, total.calls, total.output), (16, 16, 16));
    assert_eq!(total.unknown_calls, 8);
    assert_eq!(total.input, 4 * (3 + 6 + 9 + 12));
    assert_eq!(
        (total.agents_cost_micros, total.without_agents_cost),
        (56, 8)
    );
    assert_eq!((total.first_ms, total.last_ms), (1_003, 1_012));
    let models: Vec<_> = all.total.models.iter().map(|(model, _)| model).collect();
    assert_eq!(models, ["gpt-5", "gpt-5.4"]);

    for (by, count) in [
        (GroupBy::Task, 4),
        (GroupBy::Attempt, 4),
        (GroupBy::Turn, 12),
        (GroupBy::Call, 16),
        (GroupBy::Model, 2),
        (GroupBy::Worker, 2),
    ] {
        let usage = ask(Filter::default(), by).await;
        assert_eq!(usage.groups.len(), count, "{by:?}");
        let mut sum = Sums::default();
        usage.groups.iter().for_each(|group| sum.add(&group.sums()));
        assert_eq!(sum, total, "{by:?}");
    }
    let attempt = &ask(Filter::default(), GroupBy::Attempt).await.groups[0];
    assert_eq!(attempt.lease, Some(LeaseId(4)));
    assert_eq!((attempt.turn, attempt.attempt), (None, Some(4)));
    assert_eq!(attempt.work, Some(WorkKind::Attempt));

    for (filter, events) in [
        (
            Filter {
                run: Some("run-1".into()),
                ..Filter::default()
            },
            8,
        ),
        (
            Filter {
                task: Some("task-1".into()),
                ..Filter::default()
            },
            8,
        ),
        (
            Filter {
                model: Some("GPT 5.4".into()),
                ..Filter::default()
            },
            8,
        ),
        (
            Filter {
                worker: Some("worker-0".into()),
                ..Filter::default()
            },
            8,
        ),
        (
            Filter {
                since_ms: Some(1_010),
                ..Filter::default()
            },
            4,
        ),
        (
            Filter {
                run: Some("run-9".into()),
                ..Filter::default()
            },
            0,
        ),
    ] {
        let usage = ask(filter.clone(), GroupBy::Call).await;
        assert_eq!(usage.total.sums().events, events, "{filter:?}");
    }
    let few = world
        .ledger
        .usage(Filter::default(), GroupBy::Call, 3)
        .await
        .unwrap();
    assert_eq!((few.groups.len(), few.more), (3, true));
    assert_eq!(few.total.sums(), total);
}

#[tokio::test]
async fn a_model_without_a_price_has_no_cost_beside_one_that_has() {
    let world = World::new();
    let of = |number, model| used(number, model, 1_000_000);
    let events = vec![of(1, "gpt-5.4"), of(3, "nobody-knows-1")];
    world
        .transcripts
        .append(place(1), "w", events)
        .await
        .unwrap();
    world.settled().await;
    let usage = world
        .ledger
        .usage(Filter::default(), GroupBy::Call, 9)
        .await
        .unwrap();
    let prices = prices::Prices::default();
    let (cost, unpriced) = usage.total.cost(&prices);
    // Half a million at 2.5, as many at 0.25 and one token at 15 dollars a million.
    assert_eq!(cost.unwrap().nanos(), 1_375_015_000);
    assert_eq!(unpriced, ["nobody-knows-1"]);
    assert_eq!(
        usage.groups[1].cost(&prices),
        (None, vec!["nobody-knows-1"])
    );
}

#[tokio::test]
async fn sums_of_liars_fit_their_columns() {
    let world = World::new();
    let mut event = used(1, "m", u64::MAX);
    event.at_ms = u64::MAX;
    let events = (1..=50).map(|number| AgentEvent {
        number,
        ..event.clone()
    });
    let events = events.collect();
    world
        .transcripts
        .append(place(1), "w", events)
        .await
        .unwrap();
    world.settled().await;
    let usage = world
        .ledger
        .usage(Filter::default(), GroupBy::Run, 9)
        .await
        .unwrap();
    assert_eq!(usage.total.sums().input, 50 * TOKENS_MAX);
    assert_eq!(clipped(&"é".repeat(300)).len(), MODEL_BYTES_MAX);
}

/// Something that happens to a home.
#[derive(Clone, Debug)]
enum Step {
    /// So many more events of a lease, of which the first few were sent before.
    Append {
        lease: u64,
        more: u64,
        again: u64,
    },
    /// The ledger's thread dies before it has written anything of late.
    Killed,
    /// The ledger is as it was after some step, the transcripts are not.
    LedgerPutBack(usize),
    LedgerDeleted,
    /// A lease's transcript is replaced, as mending does.
    Replaced(u64),
    Settled,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4_u64, 1..12_u64, 0..6_u64)
            .prop_map(|(lease, more, again)| Step::Append { lease, more, again }),
        1 => Just(Step::Killed),
        1 => (0..8_usize).prop_map(Step::LedgerPutBack),
        1 => Just(Step::LedgerDeleted),
        1 => (1..4_u64).prop_map(Step::Replaced),
        2 => Just(Step::Settled),
    ]
}

fn ledger_files(home: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    ["", "-wal"]
        .map(|end| home.join(format!("{FILE_NAME}{end}")))
        .map(|path| (path.clone(), std::fs::read(path).ok()))
        .into()
}

fn put_back(files: &[(PathBuf, Option<Vec<u8>>)], home: &Path) {
    drop(std::fs::remove_file(home.join(format!("{FILE_NAME}-shm"))));
    for (path, bytes) in files {
        match bytes {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => drop(std::fs::remove_file(path)),
        }
    }
}

async fn live_through(steps: Vec<Step>) {
    let mut world = World::new();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut copies = vec![ledger_files(world.home.path())];
    for step in steps {
        match step {
            Step::Append { lease, more, again } => {
                let last = last.entry(lease).or_default();
                let first = (*last + 1).saturating_sub(again).max(1);
                *last += more;
                world.append(lease, first..=*last).await;
            }
            Step::Settled => world.settled().await,
            Step::Killed | Step::LedgerPutBack(_) | Step::LedgerDeleted | Step::Replaced(_) => {
                let before = ledger_files(world.home.path());
                world.ledger.close().await;
                let home = world.home.path();
                match step {
                    Step::Killed => put_back(&before, home),
                    Step::LedgerPutBack(at) => put_back(&copies[at % copies.len()], home),
                    Step::LedgerDeleted => {
                        let none = |(path, _)| (path, None);
                        let none: Vec<_> = before.iter().cloned().map(none).collect();
                        put_back(&none, home);
                    }
                    Step::Replaced(lease) => {
                        let path = place(lease).path(&home.join("transcripts"));
                        if path.exists() {
                            let other = path.with_extension("other");
                            std::fs::copy(&path, &other).unwrap();
                            std::fs::rename(other, path).unwrap();
                        }
                    }
                    Step::Append { .. } | Step::Settled => unreachable!(),
                }
                copies.push(before);
                world = world.restart().await;
            }
        }
    }
    world.settled().await;
    let home = world.home.path();
    assert_eq!(dump(home), made_anew(home));
    let wanted: u64 = last.values().map(|last| last / 3).sum();
    assert_eq!(dump(home).len() as u64, wanted);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_between_two_steps_the_ledger_is_what_the_transcripts_say(
        steps in prop::collection::vec(step(), 1..14),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(live_through(steps));
    }
}
