//! A worker's folder, made by hand in the form that a worker gives it.

use std::path::Path;

use coordinator::audit::Code;
use muster_proto::v1;
use prost::Message as _;

use super::Then::Stays;
use super::{Case, Place, case, try_all};

/// A record as it lies in a worker's files.
fn record(body: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(body.len() as u64).to_le_bytes());
    hasher.update(body);
    let mut whole = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    whole.extend_from_slice(&hasher.finalize().as_bytes()[..4]);
    whole.extend_from_slice(body);
    whole
}

fn events(numbers: &[u64]) -> Vec<u8> {
    let one = |number: &u64| {
        let event = v1::AgentEvent {
            number: *number,
            at_ms: 0,
            kind: Some(v1::agent_event::Kind::Note("x".to_owned())),
        };
        let mut body = vec![0; 12];
        event.encode(&mut body).unwrap();
        record(&body)
    };
    numbers.iter().flat_map(one).collect()
}

/// Makes the folder of a worker that holds one lease.
pub(super) fn make(place: &Place, grant: &v1::Grant) {
    let worker = place.worker();
    std::fs::create_dir_all(worker.join("leases")).unwrap();
    let identity = r#"{"worker":"w","incarnation":1}"#;
    std::fs::write(worker.join("identity.json"), identity).unwrap();
    std::fs::write(worker.join("outbox.log"), "").unwrap();
    std::fs::write(worker.join("held"), grant.lease.to_string()).unwrap();
    lease(&worker, grant);
    super::git(
        &place.folder,
        &["init", "-q", "--bare", "worker/cache/x.git"],
    );
    std::fs::write(worker.join("cache/x.git/muster-complete"), "").unwrap();
}

fn lease(worker: &Path, grant: &v1::Grant) -> std::path::PathBuf {
    let folder = worker.join("leases").join(grant.lease.to_string());
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("grant"), grant.encode_to_vec()).unwrap();
    std::fs::write(folder.join("events"), events(&[1, 2, 3])).unwrap();
    folder
}

/// The folder of the lease that the worker holds.
fn held(place: &Place) -> std::path::PathBuf {
    let number = std::fs::read_to_string(place.worker().join("held")).unwrap();
    place.worker().join("leases").join(number)
}

/// What the first lease was, which was closed long ago.
fn closed(place: &Place) -> v1::Grant {
    v1::Grant {
        lease: 3,
        run: place.runs().0,
        task: "c".to_owned(),
        ..v1::Grant::default()
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut whole = std::fs::read(path).unwrap();
    whole.extend_from_slice(bytes);
    std::fs::write(path, whole).unwrap();
}

fn launch(lease: &Path, mark: &str) -> std::path::PathBuf {
    let folder = lease.join("launch-1");
    std::fs::create_dir(&folder).unwrap();
    let text = format!(
        r#"{{"argv":["true"],"cwd":"/","env":{{}},"deadline":1,"term_grace_ms":1,"output_bytes_max":1,"cgroup":"never","mark":"{mark}"}}"#
    );
    std::fs::write(folder.join("launch.json"), text).unwrap();
    folder
}

pub(super) const CASES: &[Case] = &[
    case(Code::WorkerUnreadable, Stays, |place| {
        std::fs::write(place.worker().join("identity.json"), "{").unwrap();
    }),
    case(Code::OutboxDamaged, Stays, |place| {
        let mut bytes = record(b"\x01x");
        bytes[8] ^= 4;
        append(&place.worker().join("outbox.log"), &bytes);
    }),
    case(Code::RecordTorn, Stays, |place| {
        append(&place.worker().join("outbox.log"), &record(b"\x01x")[..5]);
    }),
    case(Code::ReportLeft, Stays, |place| {
        let report = v1::Report {
            number: 1,
            lease: 1,
            kind: Some(v1::report::Kind::Started(v1::Empty {})),
        };
        let body = [&[1], &report.encode_to_vec()[..]].concat();
        append(&place.worker().join("outbox.log"), &record(&body));
    }),
    case(Code::SpoolDamaged, Stays, |place| {
        let mut bytes = events(&[4]);
        bytes[9] ^= 1;
        append(&held(place).join("events"), &bytes);
    }),
    case(Code::TranscriptAhead, Stays, |place| {
        std::fs::write(held(place).join("events"), events(&[1])).unwrap();
    }),
    case(Code::GrantUnreadable, Stays, |place| {
        std::fs::write(held(place).join("grant"), [0xff; 9]).unwrap();
    }),
    case(Code::LeaseUnknown, Stays, |place| {
        let grant = v1::Grant {
            lease: 777,
            ..closed(place)
        };
        lease(&place.worker(), &grant);
    }),
    case(Code::LeaseLeft, Stays, |place| {
        lease(&place.worker(), &closed(place));
    }),
    case(Code::LaunchUnreadable, Stays, |place| {
        let folder = launch(&held(place), &"a".repeat(32));
        std::fs::write(folder.join("launch.json"), "{").unwrap();
    }),
    case(Code::BorrowingBroken, Stays, |place| {
        let info = held(place).join("workspace/control.git/objects/info");
        std::fs::create_dir_all(&info).unwrap();
        std::fs::write(info.join("alternates"), "/nowhere/objects\n").unwrap();
    }),
    case(Code::CacheDamaged, Stays, |place| {
        let folder = place.worker().join("cache/x.git/refs/muster/kept");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("x"), "1".repeat(40)).unwrap();
    }),
    case(Code::CacheLeftover, Stays, |place| {
        let lock = place.worker().join("cache/x.git/packed-refs.lock");
        std::fs::write(lock, "").unwrap();
    }),
    case(Code::DeletionUnfinished, Stays, |place| {
        std::fs::create_dir(place.worker().join("leases/deleted-3")).unwrap();
    }),
    case(Code::EditsKept, Stays, |place| {
        std::fs::create_dir_all(place.worker().join("kept/p-a-1-3")).unwrap();
    }),
    case(Code::OtherCoordinator, Stays, |place| {
        std::fs::create_dir(place.worker().join("other-coordinator-1")).unwrap();
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_a_workers_disk_is_found() {
    try_all(CASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_and_a_cgroup_of_a_closed_lease_are_found() {
    let _alone = super::PROCESSES.write().await;
    let (_world, place) = super::built().await;
    let mark = uuid::Uuid::new_v4().simple().to_string();
    let folder = lease(&place.worker(), &closed(&place));
    let launched = launch(&folder, &mark);
    // Any folder of such a name stands for a cgroup.
    let cgroup = place.folder.join(format!("muster-{mark}"));
    std::fs::create_dir(&cgroup).unwrap();
    std::fs::write(launched.join("cgroup"), cgroup.to_str().unwrap()).unwrap();
    let mut process = std::process::Command::new("sleep")
        .arg("60")
        .env("MUSTER_MARK", &mark)
        .env("MUSTER_RUN", place.runs().0)
        .env("MUSTER_TASK", "c")
        .spawn()
        .unwrap();
    // One of another home, in which a run has the same name.
    let other = tempfile::tempdir().unwrap();
    drop(coordinator::auth::Authenticator::open(other.path()).unwrap());
    std::fs::rename(other.path().join("tls/ca.pem"), other.path().join("ca.pem")).unwrap();
    let context = other.path().join("leases/1/context.json");
    let mut stranger = std::process::Command::new("sleep")
        .arg("60")
        .env("MUSTER_MARK", uuid::Uuid::new_v4().simple().to_string())
        .env("MUSTER_RUN", place.runs().0)
        .env("MUSTER_TASK", "a")
        .env("MUSTER_CONTEXT_FILE", context)
        .spawn()
        .unwrap();
    let report = place.look().await;
    for process in [&mut process, &mut stranger] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    let theirs = format!("process {} ", stranger.id());
    let about = |found: &&coordinator::audit::Finding| found.what.starts_with(&theirs);
    assert_eq!(report.findings.iter().find(about), None);
    let wanted = ["cgroup-left", "lease-left", "process-left"];
    assert_eq!(
        super::codes(&report, None),
        wanted,
        "{:#?}",
        report.findings
    );
    let gone = place.look().await;
    assert!(!super::codes(&gone, None).contains(&"process-left"));
}
