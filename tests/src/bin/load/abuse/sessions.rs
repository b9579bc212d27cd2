//! Abuse by those who hold a token: watchers that read nothing, and workers that flood and lie.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::worker_message::Kind as Said;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::Ring;
use crate::fleet::{hello, success};

/// Watchers that ask and never read.
pub(super) async fn deaf_watchers(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let Ok(mut viewer) = ring.door.viewer().await else {
                return;
            };
            let mut streams = Vec::new();
            for _ in 0..40 {
                let request = v1::WatchRunRequest {
                    run: ring.run.clone(),
                    agent_events: true,
                    ..v1::WatchRunRequest::default()
                };
                match viewer.watch_run(request).await {
                    Ok(stream) => streams.push(stream),
                    Err(status) => ring.note_status(&status),
                }
            }
            ring.wait().await;
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

struct Session {
    out: mpsc::Sender<v1::WorkerMessage>,
    stream: Streaming<v1::CoordinatorMessage>,
    beats: u64,
}

impl Session {
    async fn open(ring: &Ring, name: &str, incarnation: u64, slots: u32) -> Result<Self> {
        let channel = ring.door.channel(&ring.door.worker).await?;
        Self::on(channel, name, incarnation, slots).await
    }

    async fn on(
        channel: muster_connect::AuthorizedChannel,
        name: &str,
        incarnation: u64,
        slots: u32,
    ) -> Result<Self> {
        let (out, messages) = mpsc::channel(64);
        let mut first = hello(name, slots);
        first.incarnation = incarnation;
        let kind = Some(Said::Hello(first));
        out.send(v1::WorkerMessage { kind }).await?;
        let mut client = WorkerServiceClient::new(channel);
        let stream = client.session(ReceiverStream::new(messages)).await?;
        Ok(Self {
            out,
            stream: stream.into_inner(),
            beats: 0,
        })
    }

    async fn welcome(&mut self) -> Result<()> {
        match self.hear().await? {
            Heard::Welcome(_) => Ok(()),
            other => bail!("no welcome but {other:?}"),
        }
    }

    async fn hear(&mut self) -> Result<Heard, Status> {
        let ended = || Status::cancelled("the session has ended");
        let message = self.stream.message().await?.ok_or_else(ended)?;
        message.kind.ok_or_else(ended)
    }

    async fn say(&self, kind: Said) -> bool {
        let message = v1::WorkerMessage { kind: Some(kind) };
        self.out.send(message).await.is_ok()
    }

    async fn beat(&mut self, free_slots: u32) -> bool {
        self.beats += 1;
        let heartbeat = v1::Heartbeat {
            seq: self.beats,
            free_slots,
            ..v1::Heartbeat::default()
        };
        self.say(Said::Heartbeat(heartbeat)).await
    }

    /// Waits for the end and notes its reason.
    async fn end(&mut self, ring: &Ring) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                ring.note_status(&status);
                return status;
            }
        }
    }
}

/// Workers that say much and read nothing.
pub(super) async fn deaf_workers(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for index in 0..100 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let Ok(mut session) = Session::open(&ring, &format!("deaf-{index}"), 1, 1).await else {
                return;
            };
            while ring.goes_on() {
                let end = tokio::time::Instant::from_std(ring.until);
                let said = tokio::time::timeout_at(end, session.beat(0)).await;
                if !said.unwrap_or(true) {
                    ring.note("a session was ended");
                    return;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Workers that send heartbeats as fast as they are taken.
pub(super) async fn heartbeats(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for index in 0..50 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let mut session = Session::open(&ring, &format!("flood-{index}"), 1, 1).await?;
            session.welcome().await?;
            let mut count = 0_u64;
            while ring.goes_on() {
                for _ in 0..32 {
                    session.beat(0).await;
                }
                for _ in 0..32 {
                    match session.hear().await {
                        Ok(_) => count += 1,
                        Err(status) => {
                            ring.note_status(&status);
                            return Ok(count);
                        }
                    }
                }
            }
            anyhow::Ok(count)
        });
    }
    let mut answered = 0;
    while let Some(done) = tasks.join_next().await {
        answered += done??;
    }
    ring.note(&format!("a heartbeat ({answered} in all)"));
    Ok(())
}

/// Sessions that are opened again and again: one identity from two sides, and ever new incarnations.
pub(super) async fn hellos(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for index in 0..16_u64 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let channel = ring.door.channel(&ring.door.worker).await?;
            let mut incarnation = 1;
            while ring.goes_on() {
                incarnation += index % 2;
                // Every two share a name.
                let name = format!("twin-{}", index / 2);
                let mut session = Session::on(channel.clone(), &name, incarnation, 1).await?;
                match session.hear().await {
                    Ok(_) => ring.note("welcome"),
                    Err(status) => ring.note_status(&status),
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Events of leases that never were this worker's.
pub(super) async fn foreign_events(ring: Ring) -> Result<()> {
    let mut lease = 1_000_000;
    let mut last = None;
    while ring.goes_on() {
        let mut session = Session::open(&ring, "liar", 1, 1).await?;
        session.welcome().await?;
        let leases = (0..50)
            .map(|_| {
                lease += 1;
                v1::LeaseEvents {
                    lease,
                    run: ring.run.clone(),
                    task: "t1".to_owned(),
                    work: Some(v1::Work {
                        kind: Some(v1::work::Kind::Verify(v1::VerifyWork { attempt: 1 })),
                    }),
                    events: vec![v1::AgentEvent {
                        number: 1,
                        ..v1::AgentEvent::default()
                    }],
                }
            })
            .collect();
        session.say(Said::Events(v1::EventBatch { leases })).await;
        last = Some(session.end(&ring).await);
    }
    let last = last.context("no session was opened")?;
    ensure!(
        last.code() == Code::ResourceExhausted,
        "not ended by name: {last}"
    );
    Ok(())
}

/// A worker whose one attempt prints without end.
pub(super) async fn loud_worker(ring: Ring) -> Result<()> {
    let mut session = Session::open(&ring, "loud", 1, 1).await?;
    session.welcome().await?;
    session.beat(1).await;
    let grant = loop {
        match session.hear().await? {
            Heard::Grants(batch) => break batch.grants.into_iter().next().context("no grant")?,
            _ => continue,
        }
    };
    let mut number = 0;
    while ring.goes_on() {
        number += 1;
        let output = v1::Output {
            data: vec![b'x'; 1 << 20],
            ..v1::Output::default()
        };
        let event = v1::AgentEvent {
            number,
            kind: Some(v1::agent_event::Kind::Output(output)),
            ..v1::AgentEvent::default()
        };
        let events = v1::LeaseEvents {
            lease: grant.lease,
            run: grant.run.clone(),
            task: grant.task.clone(),
            work: grant.work,
            events: vec![event],
        };
        let leases = vec![events];
        session.say(Said::Events(v1::EventBatch { leases })).await;
        if number % 4 == 0 {
            session.beat(0).await;
            match tokio::time::timeout(Duration::from_secs(10), session.hear()).await {
                Ok(Ok(_)) => ring.note("an answer"),
                Ok(Err(status)) => {
                    ring.note_status(&status);
                    return Ok(());
                }
                Err(_) => bail!("no answer for ten seconds"),
            }
        }
    }
    let reports = vec![success(1, grant.lease)];
    session
        .say(Said::Reports(v1::ReportBatch { reports }))
        .await;
    ring.note(&format!("{number} events of a mebibyte were taken in"));
    Ok(())
}

/// Reports about the leases of others, which are alive or never were.
pub(super) async fn foreign_reports(ring: Ring) -> Result<()> {
    let mut last = None;
    while ring.goes_on() {
        let mut session = Session::open(&ring, "reporter", 1, 1).await?;
        session.welcome().await?;
        let mut number = 0;
        let ended = loop {
            let reports = (0..1_000)
                .map(|_| {
                    number += 1;
                    success(number, number * 7)
                })
                .collect();
            session
                .say(Said::Reports(v1::ReportBatch { reports }))
                .await;
            match session.hear().await {
                Ok(Heard::ReportAcks(acks)) => {
                    for ack in acks.acks {
                        ensure!(
                            ack.verdict() == v1::ReportVerdict::Stale,
                            "a report about another's lease was recorded"
                        );
                    }
                }
                Ok(_) => {}
                Err(status) => break Some(status),
            }
            if !ring.goes_on() {
                break None;
            }
        };
        if let Some(status) = &ended {
            ring.note_status(status);
        }
        last = ended.or(last);
    }
    let last = last.context("it was never ended")?;
    ensure!(
        last.code() == Code::ResourceExhausted,
        "not ended by name: {last}"
    );
    Ok(())
}
