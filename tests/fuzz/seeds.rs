//! Writes the inputs that the fuzzers begin with, from the plans and samples of the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coordinator::store::form;
use coordinator_core::command::{Heartbeat, Hello, Report};
use coordinator_core::event::{Outcome, Usage};
use coordinator_core::plan::{Profile, RunSpec, TaskSpec};
use coordinator_core::worker::{Offer, Requirement};
use coordinator_core::{Command, Incarnation, LeaseId, State, Timestamp, WorkerId, limits};
use libfuzzer_sys as _;
use muster_connect::{AddressFile, Token};
use muster_proto::v1::{self, agent_event, coordinator_message, report, worker_message};
use prost::Message as _;
use worker_agent::outbox::Outbox;
use worker_agent::spool::{Spool, Taken};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    plans(root)?;
    pktlines()?;
    forms(root)?;
    journal()?;
    messages()?;
    files()?;
    agents(root)?;
    access()
}

/// What agents wrote in recordings; the first byte says which agent.
fn agents(root: &Path) -> Result {
    let folder = root.join("../../worker-agent/tests/streams/codex");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let recording = fs::read_to_string(&path)?;
        let mut stream = vec![0];
        for line in recording.lines().filter_map(|line| line.strip_prefix("< ")) {
            stream.extend_from_slice(line.as_bytes());
            stream.push(b'\n');
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        seed("agents", &format!("codex-{name}"), &stream)?;
    }
    // The others have a great deal more; these have a line of each kind.
    for (which, name) in [
        (1, "claude-429"),
        (1, "claude-ask"),
        (1, "claude-cancelled-question"),
        (1, "claude-dropped"),
        (1, "claude-partials"),
        (1, "claude-permissions"),
        (2, "acp-opencode"),
    ] {
        let path = root.join(format!("../../worker-agent/tests/agents/{name}.jsonl"));
        seed("agents", name, &chosen(which, &fs::read(path)?))?;
    }
    Ok(())
}

/// Writes one seed.
fn seed(target: &str, name: &str, bytes: &[u8]) -> Result {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}

/// Puts the byte that chooses what a target does before its input.
fn chosen(which: u8, bytes: &[u8]) -> Vec<u8> {
    [&[which], bytes].concat()
}

fn plans(root: &Path) -> Result {
    for entry in fs::read_dir(root.join("../plans"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml") && path.metadata()?.len() < 8_000 {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            seed("plan", &name, &fs::read(&path)?)?;
        }
    }
    let wrong = fs::read_to_string(root.join("../../coordinator/src/plan/wrong-plans.txt"))?;
    seed("plan", "wrong", &wrong.as_bytes()[..wrong.len().min(4_000)])?;
    seed("plan", "codex-par", b"tasks:\n  - name: api\n    cwd: /srv/app/services/api\n    prompt: do it\n    model: x\n  - name: web\n    cwd: /srv/app/./services/x/../web\n    prompt: |\n      do that\n    depends_on: [api]\n    in_place: true\n")?;
    seed("plan", "whole", b"name: p\nrepo: { from: ./seed }\nbase: main\nmax_parallel: 4\ndefaults: { agent: codex, timeout: 45m, retries: 2, env: { A: b } }\nagents:\n  big: { kind: codex, command: [codex, --big] }\ntasks:\n  - name: a\n    prompt: |\n      Add it.\n    paths: [src/db]\n    verify: [cargo test -p db]\n    resources: { cpus: 2, memory: 4GiB }\n  - name: b\n    depends_on: [a]\n    agent: command\n    run: cargo fmt --check\n    priority: 7\nintegrate: { verify: [cargo test], on_conflict: fail }\n")
}

fn pktlines() -> Result {
    let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
    let (zero, one, two) = ("0".repeat(40), "1".repeat(40), "2".repeat(40));
    let push = [
        line(&format!("{zero} {one} refs/muster/attempts/r/t/1\0 report-status-v2 side-band-64k atomic agent=git/2")),
        line(&format!("{one} {two} refs/muster/wip/r/t/1\n")),
        "0000PACK".to_owned(),
    ];
    seed("pktline", "push", &chosen(7, push.concat().as_bytes()))?;
    let shallow = [
        line(&format!("shallow {one}")),
        line(&format!("{one} {zero} refs/heads/x\0report-status")),
        "0000".to_owned(),
    ];
    seed("pktline", "shallow", &chosen(1, shallow.concat().as_bytes()))?;
    seed("pktline", "nothing", &chosen(4, b"0000"))
}

fn golden(root: &Path, name: &str) -> Result<Vec<u8>> {
    let path = root.join("../../coordinator/src/store/form/golden").join(name);
    let value: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
    Ok(serde_json::to_vec(&value)?)
}

fn forms(root: &Path) -> Result {
    // The form is the byte divided by eight.
    for (which, name) in [(8, "v1-batch"), (10, "v1-run"), (11, "v1-summary"), (12, "v1-snapshot")] {
        // 8 % 5 is 3: the byte is chosen so that both parts come out right.
        let which = (8..16).find(|byte| byte % 5 == which % 8 % 5).unwrap_or(which);
        seed("forms", name, &chosen(which, &golden(root, &format!("{name}.json"))?))?;
    }
    let batch: serde_json::Value = serde_json::from_slice(&golden(root, "v1-batch.json")?)?;
    let events = serde_json::to_vec(&batch["events"])?;
    seed("forms", "events", &chosen(11, &events))?;
    let whole = [golden(root, "v1-run.json")?, golden(root, "v1-batch.json")?];
    seed("journal", "golden", &whole.join(&b'\n'))
}

/// A run from its submission to its end, as the core itself journals it.
fn journal() -> Result {
    let mut state = State::new();
    let mut lines = vec![Vec::new()];
    let mut at = 1_000;
    let mut batch = |events: &[coordinator_core::Event]| -> Result {
        let events: std::result::Result<Vec<String>, _> = events.iter().map(form::event_json).collect();
        at += 1_000;
        lines.push(format!("{{\"epoch\":1,\"at\":{at},\"events\":[{}]}}", events?.join(",")).into());
        Ok(())
    };
    let now = Timestamp::from_ms(5_000);
    batch(&state.start(now, coordinator_core::Epoch(1)))?;
    for command in [submission(), hello(), heartbeat()] {
        let step = coordinator_core::step(&mut state, now, &command).map_err(|error| error.to_string())?;
        batch(&step.events)?;
    }
    for _ in 0..2 {
        batch(&schedule(&mut state, now))?;
        let lease = state.leases().next().map_or(LeaseId(0), |lease| lease.id);
        for report in [
            Report::Started,
            Report::Succeeded {
                outcome: Outcome::NoRepository,
                usage: Usage::default(),
                summary: "made".into(),
            },
        ] {
            let command = Command::Report { worker: WorkerId::new("w"), lease, report };
            let step = coordinator_core::step(&mut state, now, &command).map_err(|error| error.to_string())?;
            batch(&step.events)?;
        }
    }
    seed("journal", "run", &lines.join(&b'\n'))
}

fn schedule(state: &mut State, now: Timestamp) -> Vec<coordinator_core::Event> {
    coordinator_core::schedule(state, now)
}

fn submission() -> Command {
    let profile = Profile {
        requirement: Requirement { agent: "command".into(), ..Requirement::default() },
        retries: 1,
        timeout: limits::TASK_TIMEOUT,
        verify: None,
        backoff: limits::BACKOFF_FIRST,
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
    Command::Submit {
        spec: Arc::new(RunSpec {
            name: "r-1".into(),
            plan: "r".into(),
            source: None,
            integrate: None,
            max_parallel: None,
            tasks: vec![task("a", &[]), task("b", &["a"])],
            submitted_by: "seeds".into(),
        }),
        key: Some("k".into()),
        digest: "d".into(),
    }
}

fn hello() -> Command {
    Command::Hello(Hello {
        number: 1,
        worker: WorkerId::new("w"),
        incarnation: Incarnation(1),
        session: 1,
        offer: Arc::new(Offer {
            pool: "p".into(),
            slots: 1,
            agents: [Arc::from("command")].into(),
            host: "h".into(),
            ..Offer::default()
        }),
        held: Vec::new(),
        draining: false,
    })
}

fn heartbeat() -> Command {
    Command::Heartbeat(Heartbeat {
        worker: WorkerId::new("w"),
        incarnation: Incarnation(1),
        session: 1,
        seq: 1,
        free_slots: 1,
        held: Vec::new(),
        draining: false,
        looked: None,
    })
}

fn grant() -> v1::Grant {
    v1::Grant {
        lease: 7,
        heartbeat_seq: 1,
        ttl: Some(prost_types_duration(60)),
        run: "r".to_owned(),
        task: "t".to_owned(),
        work: None,
        credential: "lease_7_x".to_owned(),
        source: Some(v1::GitSource { repository: "site".to_owned(), ..v1::GitSource::default() }),
        document: b"{}".to_vec(),
        context: b"{}".to_vec(),
        timeout: Some(prost_types_duration(600)),
        resume: None,
    }
}

fn prost_types_duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn messages() -> Result {
    let hello = v1::Hello {
        worker: "w".to_owned(),
        incarnation: 3,
        host: "h".to_owned(),
        slots: 2,
        labels: vec!["os=linux".to_owned(), "gpu".to_owned()],
        resources: [("cpus".to_owned(), 4)].into(),
        agents: vec![v1::AgentOffer { name: "command".to_owned(), ..v1::AgentOffer::default() }],
        sandbox_levels: vec!["none".to_owned()],
        held_leases: vec![7],
        ..v1::Hello::default()
    };
    let failed = v1::Failed {
        failure: Some(v1::Failure { message: "it failed".to_owned(), output: "…".to_owned(), ..v1::Failure::default() }),
        usage: None,
    };
    let reports = v1::ReportBatch {
        reports: vec![
            v1::Report { number: 1, lease: 7, kind: Some(report::Kind::Started(v1::Empty {})) },
            v1::Report { number: 2, lease: 7, kind: Some(report::Kind::Failed(failed)) },
            v1::Report { number: 3, lease: 8, kind: Some(report::Kind::Succeeded(v1::Succeeded { summary: "done".to_owned(), ..v1::Succeeded::default() })) },
        ],
    };
    for (name, kind) in [
        ("hello", worker_message::Kind::Hello(hello)),
        ("reports", worker_message::Kind::Reports(reports)),
    ] {
        let message = v1::WorkerMessage { kind: Some(kind) };
        seed("wire", name, &chosen(0, &message.encode_to_vec()))?;
    }
    let submit = v1::SubmitRunRequest { run: "r".to_owned(), plan: b"tasks:\n  - name: a\n    run: x\n".to_vec(), ..v1::SubmitRunRequest::default() };
    seed("wire", "submit", &chosen(1, &submit.encode_to_vec()))?;
    seed("wire", "grant", &chosen(2, &grant().encode_to_vec()))?;

    let verdict = |lease, verdict: v1::Verdict| v1::LeaseVerdict { lease, verdict: verdict.into() };
    let story = [
        coordinator_message::Kind::Welcome(v1::Welcome { epoch: 1, session: 1, event_window_bytes: 100, report_window: 2, ..v1::Welcome::default() }),
        coordinator_message::Kind::Grants(v1::GrantBatch { grants: vec![grant()] }),
        coordinator_message::Kind::Renewal(v1::Renewal { seq: 2, verdicts: vec![verdict(7, v1::Verdict::Keep), verdict(9, v1::Verdict::Stop)] }),
        coordinator_message::Kind::EventAcks(v1::EventAcks { acks: vec![v1::EventAck { lease: 7, number: 3 }] }),
        coordinator_message::Kind::ReportAcks(v1::ReportAcks { acks: vec![v1::ReportAck { number: 1, verdict: 1 }] }),
        coordinator_message::Kind::Stop(v1::StopLeases { leases: vec![7] }),
    ];
    let mut bytes = Vec::new();
    for kind in story {
        let message = v1::CoordinatorMessage { kind: Some(kind) };
        // A message, a heartbeat, the word of a lease.
        bytes.push(4);
        bytes.extend(message.encode_length_delimited_to_vec());
        bytes.extend([2, 3, 8]);
    }
    seed("session", "story", &bytes)
}

fn files() -> Result {
    let folder = tempfile::tempdir()?;
    let spool_path: PathBuf = folder.path().join("events");
    let mut spool = Spool::open(&spool_path, 1_000)?;
    spool.lifecycle(agent_event::Kind::Note("begun".to_owned()))?;
    spool.output(v1::Output { stream: 1, data: b"hello\n".to_vec() }, Taken::default())?;
    spool.sync()?;
    seed("records", "spool", &chosen(0, &fs::read(&spool_path)?))?;
    let mut outbox = Outbox::open(folder.path())?;
    let started = |number| v1::Report { number, lease: 7, kind: Some(report::Kind::Started(v1::Empty {})) };
    outbox.store(&[started(1), started(2)])?;
    outbox.acknowledged(&[1])?;
    seed("records", "outbox", &chosen(1, &fs::read(folder.path().join("outbox.log"))?))?;

    let place = coordinator::transcript::Place {
        run: "r".into(),
        task: "".into(),
        work: coordinator_core::event::Work::FinalVerify,
        lease: LeaseId(9),
    };
    let event = |number| v1::AgentEvent { number, at_ms: 1, kind: Some(agent_event::Kind::Note("note".to_owned())) };
    let transcripts = coordinator::transcript::Transcripts::start(folder.path().to_owned())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(transcripts.append(place, "worker", vec![event(1), event(2), event(4)]))?;
    let whole = fs::read(folder.path().join("r/final-verify-L9.events"))?;
    seed("transcript", "three", &whole)?;
    let mut flipped = whole;
    flipped[12] ^= 1;
    seed("transcript", "flipped", &flipped)?;
    let body = br#"{"made_by":"0.1.0","made_at":"now","figures":{"epoch":1,"last_batch":2,"live_runs":0,"archived_runs":0,"repositories":0,"refs":0,"commits":0,"transcripts":0,"files":1,"bytes":3},"files":[{"path":"tls/ca.pem","bytes":3,"sum":"00"}]}"#;
    seed("manifest", "one", body)
}

fn access() -> Result {
    let file = AddressFile { address: "127.0.0.1:7733".to_owned(), ca_path: "/nowhere/ca.pem".into() };
    seed("access", "address", &serde_json::to_vec(&file)?)?;
    let folder = tempfile::tempdir()?;
    let auth = coordinator::auth::Authenticator::open(folder.path())?;
    drop(auth);
    // Its secret opens nothing: the home is gone with this function.
    let token: Token = muster_connect::read_token_file(&folder.path().join("admin.token"))?;
    seed("access", "token", token.reveal().as_bytes())?;
    seed("access", "credential", token.credential().as_bytes())
}
