//! A transcript file of any bytes: what is read is a prefix in order, nothing sound before it is
//! lost by the next append, and what is appended is read.
#![no_main]

use std::sync::LazyLock;

use coordinator::transcript::{self, Place, Transcripts};
use coordinator_core::event::Work;
use coordinator_core::{AttemptNo, LeaseId, TaskIx};
use libfuzzer_sys::fuzz_target;
use muster_proto::v1::AgentEvent;
use muster_proto::v1::agent_event::Kind;

static ROOT: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a folder in memory"));
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
});

fuzz_target!(|bytes: &[u8]| {
    let root = ROOT.path();
    let place = Place {
        run: "r".into(),
        task: "t".into(),
        work: Work::Attempt {
            task: TaskIx(0),
            attempt: AttemptNo(1),
        },
        lease: LeaseId(9),
    };
    let folder = root.join("r/tasks/t");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("attempt-1-L9.events"), bytes).expect("a file");
    let before = transcript::read(root, &place, 0, usize::MAX).expect("a file that can be read");
    assert!(before.is_sorted_by_key(|event| event.number));

    let last = before.last().map_or(0, |event| event.number);
    let Some(number) = last.checked_add(1) else {
        return;
    };
    let event = AgentEvent {
        number,
        at_ms: 1,
        kind: Some(Kind::Note("appended".to_owned())),
    };
    let transcripts = Transcripts::start(root.to_owned()).expect("a thread");
    RUNTIME
        .block_on(transcripts.append(place.clone(), "worker", vec![event.clone()]))
        .expect("an append");
    let after = transcript::read(root, &place, 0, usize::MAX).expect("a file that can be read");
    assert_eq!(after.last(), Some(&event));
    assert_eq!(after[..after.len() - 1], before[..]);
    std::fs::remove_dir_all(&folder).expect("a folder");
});
