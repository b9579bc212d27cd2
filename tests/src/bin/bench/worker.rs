//! A simulated worker: a real session, but its attempts are over as soon as they are granted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use muster_connect::{Bearer, Endpoint, Token, bootstrap_ca};
use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::worker_message::Kind as Said;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// What all simulated workers have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// When the first grant came.
    pub(crate) first_grant: Option<Instant>,
    /// When the last report was acknowledged, and so is durable.
    pub(crate) last_ack: Option<Instant>,
    /// Reports acknowledged.
    pub(crate) acknowledged: usize,
    /// From sending a report to the grant that follows from it; only with a chain of tasks.
    pub(crate) hops: Vec<Duration>,
}

/// Works until the task is dropped or the coordinator ends.
pub(crate) async fn work(
    address: String,
    token: Token,
    name: String,
    slots: u32,
    seen: Arc<Mutex<Seen>>,
) -> Result<()> {
    let ca = bootstrap_ca(&address, token.ca, Duration::from_secs(10)).await?;
    let channel = Endpoint::new(&address, ca)?
        .authorized(Bearer::token(&token)?)
        .await?;
    let mut client = WorkerServiceClient::new(channel);
    let (out, messages) = mpsc::channel(64);
    let hello = v1::Hello {
        version: Some(v1::ProtocolVersion::current("bench")),
        worker: name.clone(),
        incarnation: 1,
        host: name,
        slots,
        agents: vec![v1::AgentOffer {
            name: "command".to_owned(),
            ..v1::AgentOffer::default()
        }],
        sandbox_levels: vec!["none".to_owned()],
        ..v1::Hello::default()
    };
    say(&out, Said::Hello(hello)).await?;
    let mut stream = client
        .session(ReceiverStream::new(messages))
        .await?
        .into_inner();
    let Some(Heard::Welcome(welcome)) = stream.message().await?.and_then(|message| message.kind)
    else {
        bail!("no welcome");
    };
    let interval = welcome.heartbeat_interval.context("no interval")?;
    let mut clock = tokio::time::interval(Duration::try_from(interval)?);
    let (mut beat, mut report) = (0, 0);
    let mut reported: Option<Instant> = None;
    loop {
        let heard = tokio::select! {
            heard = stream.message() => heard?,
            _ = clock.tick() => {
                heartbeat(&out, &mut beat, slots).await?;
                continue;
            }
        };
        match heard.and_then(|message| message.kind) {
            Some(Heard::Grants(grants)) => {
                let now = Instant::now();
                let mut state = seen.lock().await;
                state.first_grant.get_or_insert(now);
                state.hops.extend(reported.take().map(|then| now - then));
                drop(state);
                let reports = grants
                    .grants
                    .iter()
                    .map(|grant| {
                        report += 1;
                        success(report, grant.lease)
                    })
                    .collect();
                reported = Some(Instant::now());
                say(&out, Said::Reports(v1::ReportBatch { reports })).await?;
                // Slots are free again.
                heartbeat(&out, &mut beat, slots).await?;
            }
            Some(Heard::ReportAcks(acks)) => {
                let mut state = seen.lock().await;
                state.acknowledged += acks.acks.len();
                state.last_ack = Some(Instant::now());
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

fn success(number: u64, lease: u64) -> v1::Report {
    let outcome = v1::Outcome {
        kind: Some(v1::outcome::Kind::NoRepository(v1::Empty {})),
    };
    let succeeded = v1::Succeeded {
        outcome: Some(outcome),
        ..v1::Succeeded::default()
    };
    v1::Report {
        number,
        lease,
        kind: Some(v1::report::Kind::Succeeded(succeeded)),
    }
}

async fn heartbeat(
    out: &mpsc::Sender<v1::WorkerMessage>,
    beat: &mut u64,
    slots: u32,
) -> Result<()> {
    *beat += 1;
    let heartbeat = v1::Heartbeat {
        seq: *beat,
        free_slots: slots,
        ..v1::Heartbeat::default()
    };
    say(out, Said::Heartbeat(heartbeat)).await
}

async fn say(out: &mpsc::Sender<v1::WorkerMessage>, kind: Said) -> Result<()> {
    out.send(v1::WorkerMessage { kind: Some(kind) })
        .await
        .context("the session has ended")
}
