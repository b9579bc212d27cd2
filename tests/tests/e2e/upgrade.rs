//! A pool that is rolled over to a newer version, one worker after another.
//!
//! The older worker is a client of the wire: it says that it speaks the minor version before ours,
//! says and asks nothing that is newer, and runs its tasks' commands itself.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use muster_connect::{Bearer, Endpoint, Token, bootstrap_ca, read_token_file};
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::worker_message::Kind as Said;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use muster_proto::v1::{self, report, work};
use muster_proto::{PROTOCOL_MAJOR, PROTOCOL_MINOR};
use muster_tests::files::{Gates, Ledger};
use muster_tests::wait::{SOON, until_true};
use muster_tests::{Cluster, Programs};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "workers_of_the_minor_version_before_are_drained_one_by_one_beside_new_ones_and_no_attempt_is_lost",
        rolled_over,
    ),
    (
        "a_worker_of_the_major_version_before_is_refused_and_told_what_to_do",
        too_old,
    ),
];

const HEARTBEATS: Duration = Duration::from_millis(200);

/// A worker of one slot that is older than the coordinator.
struct Older {
    thread: JoinHandle<Result<usize>>,
    refused: Receiver<String>,
    term: Arc<AtomicBool>,
}

/// What it knows of its lease.
struct Held {
    lease: u64,
    /// Number of the report that ends it.
    last_report: Option<u64>,
}

impl Older {
    /// Joins; it ends once it was asked to drain and owes nothing.
    fn start(cluster: &Cluster, name: &str, (major, minor): (u32, u32)) -> Result<Self> {
        let token = read_token_file(&cluster.token("worker")?)?;
        let address = cluster.address();
        let hello = v1::Hello {
            version: Some(v1::ProtocolVersion {
                major,
                minor,
                software: "worker-agent of the version before".to_owned(),
                features: Vec::new(),
            }),
            worker: format!("older-{name}"),
            incarnation: 1,
            host: "elsewhere".to_owned(),
            slots: 1,
            labels: vec![format!("name={name}")],
            agents: vec![v1::AgentOffer {
                name: "command".to_owned(),
                ..v1::AgentOffer::default()
            }],
            sandbox_levels: vec!["none".to_owned()],
            ..v1::Hello::default()
        };
        let (tell, refused) = channel();
        let term = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&term);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(work(&address, &token, hello, &asked, &tell))
        });
        Ok(Self {
            thread,
            refused,
            term,
        })
    }

    /// Asks it to drain, as TERM asks a worker, waits for its end and tells how many attempts it has brought to theirs.
    fn ended(self) -> Result<usize> {
        self.term.store(true, Ordering::Relaxed);
        until_true("the older worker ends", SOON, || {
            Ok(self.thread.is_finished())
        })?;
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the older worker has panicked"))?
    }
}

async fn work(
    address: &str,
    token: &Token,
    hello: v1::Hello,
    asked: &AtomicBool,
    refused: &Sender<String>,
) -> Result<usize> {
    let ca = bootstrap_ca(address, token.ca, Duration::from_secs(10)).await?;
    let channel = Endpoint::new(address, ca)?.channel_lazy()?;
    let mut client = WorkerServiceClient::with_interceptor(channel, Bearer::token(token)?);
    let (say, said) = tokio::sync::mpsc::channel(64);
    let send = async |kind| {
        let message = v1::WorkerMessage { kind: Some(kind) };
        say.send(message).await.context("the session has ended")
    };
    send(Said::Hello(hello)).await?;
    let opened = client.session(ReceiverStream::new(said)).await;
    let mut heard = match opened {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(refused.send(status.message().to_owned()).map(|()| 0)?),
    };
    let (mut held, mut done, mut draining): (Option<Held>, usize, bool) = (None, 0, false);
    let (mut seq, mut reports) = (0, 0);
    let mut commands: JoinSet<Result<(u64, bool)>> = JoinSet::new();
    let mut beats = tokio::time::interval(HEARTBEATS);
    let mut report = |lease, kind| {
        reports += 1;
        let report = v1::Report {
            number: reports,
            lease,
            kind: Some(kind),
        };
        let reports = vec![report];
        (
            reports[0].number,
            Said::Reports(v1::ReportBatch { reports }),
        )
    };
    loop {
        tokio::select! {
            message = heard.message() => match message {
                Err(status) => return Ok(refused.send(status.message().to_owned()).map(|()| 0)?),
                Ok(None) => bail!("the coordinator has closed the session"),
                Ok(Some(message)) => match message.kind {
                    Some(Heard::Grants(batch)) => for grant in batch.grants {
                        ensure!(held.is_none(), "more was granted than one slot takes");
                        held = Some(Held { lease: grant.lease, last_report: None });
                        send(report(grant.lease, report::Kind::Started(v1::Empty {})).1).await?;
                        commands.spawn(run(grant));
                    },
                    Some(Heard::ReportAcks(acks)) => for ack in acks.acks {
                        let recorded = v1::ReportVerdict::Recorded;
                        ensure!(ack.verdict() == recorded, "a report was {:?}", ack.verdict());
                        if held.as_ref().is_some_and(|held| held.last_report == Some(ack.number)) {
                            (held, done) = (None, done + 1);
                        }
                    },
                    Some(Heard::Renewal(renewal)) => {
                        let stop = |found: &v1::LeaseVerdict| found.verdict() == v1::Verdict::Stop;
                        ensure!(!renewal.verdicts.iter().any(stop), "its lease was taken from it");
                    }
                    Some(Heard::Stop(_)) => bail!("its lease was taken from it"),
                    Some(Heard::Drain(_)) => draining = true,
                    _ => {}
                },
            },
            Some(ended) = commands.join_next() => {
                let (lease, well) = ended??;
                ensure!(well, "the command of its task has failed");
                let outcome = v1::outcome::Kind::NoRepository(v1::Empty {});
                let succeeded = v1::Succeeded {
                    outcome: Some(v1::Outcome { kind: Some(outcome) }),
                    ..v1::Succeeded::default()
                };
                let (number, said) = report(lease, report::Kind::Succeeded(succeeded));
                send(said).await?;
                held = Some(Held { lease, last_report: Some(number) });
            },
            _ = beats.tick() => {
                seq += 1;
                draining |= asked.load(Ordering::Relaxed);
                send(Said::Heartbeat(v1::Heartbeat {
                    seq,
                    held_leases: held.iter().map(|held| held.lease).collect(),
                    free_slots: u32::from(held.is_none() && !draining),
                    draining,
                    ..v1::Heartbeat::default()
                })).await?;
            },
        }
        if draining && held.is_none() {
            send(Said::Goodbye(v1::Goodbye::default())).await?;
            // It has been read when the coordinator ends its half, too.
            drop(say);
            while let Ok(Some(_)) = heard.message().await {}
            return Ok(done);
        }
    }
}

/// Runs the command of a task without a repository.
async fn run(grant: v1::Grant) -> Result<(u64, bool)> {
    let document: serde_json::Value = serde_json::from_slice(&grant.document)?;
    let script = document["run"].as_str().context("a task without `run`")?;
    let Some(work::Kind::Attempt(attempt)) = grant.work.and_then(|work| work.kind) else {
        bail!("it was given something else than an attempt");
    };
    let mut command = tokio::process::Command::new("sh");
    let ended = command
        .args(["-c", script])
        .env("MUSTER_TASK", &grant.task)
        .env("MUSTER_ATTEMPT", attempt.attempt.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status();
    Ok((grant.lease, ended.await?.success()))
}

const BEFORE: (u32, u32) = (PROTOCOL_MAJOR, PROTOCOL_MINOR - 1);

fn rolled_over(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let first = Older::start(cluster, "o1", BEFORE)?;
        let second = Older::start(cluster, "o2", BEFORE)?;
        let tasks = ["a", "b", "c", "d", "e", "f"];
        let mut text = "name: upgrade\ntasks:\n".to_owned();
        for task in tasks {
            let (note, wait) = (ledger.note(), gates.wait(task));
            text.push_str(&format!(
                "  - name: {task}\n    run: |\n      {note}\n      {wait}\n"
            ));
        }
        let run = cluster.submit(&cluster.write_plan("upgrade.yaml", &text)?)?;
        let begun = |count: usize| {
            until_true(&format!("{count} attempts have begun"), SOON, || {
                Ok(ledger.lines()?.len() == count)
            })
        };
        begun(2)?;
        // A new one comes, works beside them, and the first of the old ones is drained.
        let _new = cluster.start_worker("n1", 1)?;
        begun(3)?;
        cluster.ask(["drain", "older-o1"])?.success()?;
        let at_work: Vec<String> = names(&ledger.lines()?);
        for task in &at_work {
            gates.open(task)?;
        }
        // It finishes what it held, takes nothing more, and goes when it is told to.
        let done = first.ended()?;
        ensure!(done == 1, "{done} attempts by the first");
        begun(5)?;
        let _next = cluster.start_worker("n2", 1)?;
        begun(6)?;
        for task in tasks {
            gates.open(task)?;
        }
        let done = second.ended()?;
        ensure!(done == 2, "{done} attempts by the second");
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        for task in tasks {
            ensure!(status.attempts(task)?.len() == 1, "{}", status.json);
        }
        let once: BTreeMap<String, usize> =
            tasks.iter().map(|task| (format!("{task} 1"), 1)).collect();
        ensure!(ledger.lines()? == once, "{:?}", ledger.lines()?);
        let connected = cluster.workers()?;
        let connected = connected
            .iter()
            .filter(|worker| worker["state"] == "connected");
        ensure!(connected.count() == 2, "{:?}", cluster.workers()?);
        Ok(())
    })
}

/// Names of tasks that have begun.
fn names(lines: &BTreeMap<String, usize>) -> Vec<String> {
    let words = lines.keys().filter_map(|line| line.split(' ').next());
    words.map(str::to_owned).collect()
}

fn too_old(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let older = Older::start(cluster, "o", (PROTOCOL_MAJOR - 1, 9))?;
        let said = older.refused.recv_timeout(SOON)?;
        let guide = std::fs::read_to_string(programs.source.join("deploy/README.md"))?;
        for wanted in [
            format!("the coordinator speaks {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"),
            format!("speaks {}.9", PROTOCOL_MAJOR - 1),
            "install the same major version on both sides".to_owned(),
        ] {
            ensure!(said.contains(&wanted), "nothing of {wanted:?} in: {said}");
        }
        ensure!(
            guide.contains("install the same major version on both sides"),
            "the guide names another message"
        );
        ensure!(cluster.workers()?.is_empty(), "it was let in");
        Ok(())
    })
}
