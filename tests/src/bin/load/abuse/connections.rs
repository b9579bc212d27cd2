//! Abuse of the port itself: silence, garbage, floods, and credentials that open nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use muster_connect::{Bearer, Endpoint};
use muster_proto::v1;
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Code;

use super::Ring;
use crate::fleet::hello;

/// Connections of one flood; together with those of the honest they stay below this process's bound.
const MANY: usize = 15_000;

/// Connections that never say anything.
pub(super) async fn silent(ring: Ring) -> Result<()> {
    let mut open = Vec::new();
    while ring.goes_on() && open.len() < 5_000 {
        open.push(TcpStream::connect(&ring.door.address).await?);
    }
    ring.wait().await;
    Ok(())
}

/// Connections that say nothing once their handshake is done.
pub(super) async fn silent_behind_tls(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let mut open = Vec::new();
            while ring.goes_on() && open.len() < 100 {
                match ring.door.tls(b"h2").await {
                    Ok(stream) => open.push(stream),
                    Err(error) => ring.note(&format!("{error:#}")),
                }
            }
            ring.wait().await;
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Connections that stop in the middle of their first TLS message.
pub(super) async fn half_a_hello(ring: Ring) -> Result<()> {
    let mut open = Vec::new();
    while ring.goes_on() && open.len() < 5_000 {
        let mut stream = TcpStream::connect(&ring.door.address).await?;
        let half = [
            0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
        ];
        // It may have been closed for a newer one.
        drop(stream.write_all(&half).await);
        open.push(stream);
    }
    ring.wait().await;
    Ok(())
}

/// Bytes that are no TLS, or TLS that is no HTTP.
pub(super) async fn garbage(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for seed in 0..32_u64 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let mut noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut bytes = vec![0_u8; 16 * 1024];
            while ring.goes_on() {
                for byte in &mut bytes {
                    noise ^= noise << 13;
                    noise ^= noise >> 7;
                    noise ^= noise << 17;
                    *byte = noise.to_le_bytes()[0];
                }
                let outcome = match noise % 4 {
                    0 => plain(&ring, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await,
                    1 => {
                        // A record's head, then noise.
                        let head = [0x16, 0x03, 0x03, 0x3f, 0xff];
                        if let Some(first) = bytes.get_mut(..head.len()) {
                            first.copy_from_slice(&head);
                        }
                        plain(&ring, &bytes).await
                    }
                    2 => behind_tls(&ring, b"h2", &bytes).await,
                    _ => behind_tls(&ring, b"http/1.1", &bytes).await,
                };
                // Being cut off in the middle is what is wanted.
                drop(outcome);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn plain(ring: &Ring, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(&ring.door.address).await?;
    stream.write_all(bytes).await?;
    let mut answer = [0; 256];
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
    drop(read);
    Ok(())
}

async fn behind_tls(ring: &Ring, protocol: &[u8], bytes: &[u8]) -> Result<()> {
    let mut stream = ring.door.tls(protocol).await?;
    stream.write_all(bytes).await?;
    let mut answer = [0; 256];
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
    drop(read);
    Ok(())
}

/// Requests whose headers come a few bytes a second.
pub(super) async fn slow_headers(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..500 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let Ok(mut stream) = ring.door.tls(b"http/1.1").await else {
                return;
            };
            if stream
                .write_all(b"GET /healthz HTTP/1.1\r\n")
                .await
                .is_err()
            {
                return;
            }
            while ring.goes_on() {
                if stream.write_all(b"x-a: b\r\n").await.is_err() {
                    ring.note("a connection was closed");
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Twenty thousand connections as fast as they go, most of them kept.
pub(super) async fn twenty_thousand(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let ring = ring.clone();
        tasks.spawn(async move {
            let mut open = std::collections::VecDeque::new();
            for _ in 0..1_000 {
                match TcpStream::connect(&ring.door.address).await {
                    Ok(stream) => open.push_back(stream),
                    Err(error) => ring.note(&error.to_string()),
                }
                if open.len() >= MANY / 20 {
                    open.pop_front();
                }
            }
            ring.wait().await;
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Tokens that were never made, as fast as they go.
pub(super) async fn bad_tokens(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for index in 0..64_u64 {
        let ring = ring.clone();
        tasks.spawn(async move {
            while ring.goes_on() {
                let guess = format!("token_{index:016x}_{:064x}", index * 7);
                let Ok(bearer) = Bearer::new(&guess) else {
                    return;
                };
                let Ok(endpoint) = Endpoint::new(&ring.door.address, ring.door.ca.clone()) else {
                    return;
                };
                let Ok(channel) = endpoint.authorized(bearer).await else {
                    continue;
                };
                let mut client = OperatorServiceClient::new(channel);
                for _ in 0..200 {
                    if !ring.goes_on() {
                        return;
                    }
                    match client.get_info(v1::GetInfoRequest::default()).await {
                        Ok(_) => ring.note("a made-up token was taken"),
                        Err(status) => ring.note_status(&status),
                    }
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    ensure!(
        !ring
            .answers()
            .iter()
            .any(|(answer, _)| answer.contains("was taken")),
        "a made-up token was taken"
    );
    Ok(())
}

/// Tokens of one role at the doors of another.
pub(super) async fn wrong_roles(ring: Ring) -> Result<()> {
    let door = &ring.door;
    let cancel = v1::CancelRequest {
        run: ring.run.clone(),
        ..v1::CancelRequest::default()
    };
    let make = v1::CreateTokenRequest {
        role: "admin".to_owned(),
        ..v1::CreateTokenRequest::default()
    };
    let submit = v1::SubmitRunRequest {
        plan: vec![b'x'; 8 << 20],
        ..v1::SubmitRunRequest::default()
    };
    let mut rounds = 0_u32;
    let mut clients = None;
    while ring.goes_on() {
        // HTTP/2 ends a connection of which a thousand requests were refused before they were read.
        if rounds.is_multiple_of(200) {
            clients = Some((
                OperatorServiceClient::new(door.channel(&door.worker).await?),
                OperatorServiceClient::new(door.channel(&door.viewer).await?),
                WorkerServiceClient::new(door.channel(&door.viewer).await?),
            ));
        }
        rounds += 1;
        let Some((worker, viewer, session)) = &mut clients else {
            continue;
        };
        let kind = v1::worker_message::Kind::Hello(hello("viewer", 1));
        let message = v1::WorkerMessage { kind: Some(kind) };
        let refused = [
            worker.get_info(v1::GetInfoRequest::default()).await.err(),
            worker.cancel(cancel.clone()).await.err(),
            viewer.cancel(cancel.clone()).await.err(),
            viewer.create_token(make.clone()).await.err(),
            viewer.shutdown(v1::ShutdownRequest::default()).await.err(),
            viewer.submit_run(submit.clone()).await.err(),
            session.session(tokio_stream::once(message)).await.err(),
        ];
        for status in refused {
            let status = status.context("a door was open to the wrong role")?;
            ensure!(status.code() == Code::PermissionDenied, "{status}");
            ring.note_status(&status);
        }
    }
    Ok(())
}

/// A hosted repository, made for a run that is never submitted, and the ref of its base.
async fn repository(ring: &Ring) -> Result<(String, String)> {
    let prepare = v1::PrepareRunRequest {
        plan: "load".to_owned(),
        idempotency_key: "git".to_owned(),
        repository_hint: Some("load".to_owned()),
        ..v1::PrepareRunRequest::default()
    };
    let prepared = ring.door.operator().await?.prepare_run(prepare).await?;
    let prepared = prepared.into_inner();
    Ok((prepared.repository, prepared.source_ref))
}

fn post(ring: &Ring, path: &str) -> String {
    let credential = format!("x:{}", ring.door.admin.credential());
    let basic = base64::engine::general_purpose::STANDARD.encode(credential);
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {basic}\r\n\
         content-type: application/x-git-receive-pack-request\r\ntransfer-encoding: chunked\r\n\r\n"
    )
}

/// Pushes whose pack never ends, some of which never even begin.
pub(super) async fn unfinished_pushes(ring: Ring) -> Result<()> {
    let (repository, name) = repository(&ring).await?;
    let mut tasks = JoinSet::new();
    for index in 0..200 {
        let ring = ring.clone();
        let request = post(&ring, &format!("/git/{repository}.git/git-receive-pack"));
        let line = format!(
            "{} {} {name}\0report-status\n",
            "0".repeat(40),
            "1".repeat(40)
        );
        let mut list = format!("{:04x}{line}", line.len() + 4);
        if index % 2 == 0 {
            list.push_str("0000PACK");
        }
        tasks.spawn(async move {
            let Ok(mut stream) = ring.door.tls(b"http/1.1").await else {
                return;
            };
            let body = format!("{request}{:x}\r\n{list}\r\n", list.len());
            if stream.write_all(body.as_bytes()).await.is_err() {
                return;
            }
            let mut answer = vec![0; 2_048];
            let end = tokio::time::Instant::from_std(ring.until);
            if let Ok(Ok(read)) = tokio::time::timeout_at(end, stream.read(&mut answer)).await {
                let text = String::from_utf8_lossy(answer.get(..read).unwrap_or_default());
                ring.note(text.lines().next().unwrap_or_default());
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Requests to git that are no git.
pub(super) async fn git_garbage(ring: Ring) -> Result<()> {
    let (repository, _) = repository(&ring).await?;
    let mut tasks = JoinSet::new();
    for index in 0..32_usize {
        let (ring, repository) = (ring.clone(), repository.clone());
        tasks.spawn(async move {
            let bodies = [
                "zzzz",
                "0003",
                "ffff",
                "0000",
                "0010x",
                "00000000PACK\0\0\0\u{2}",
            ];
            let services = ["git-receive-pack", "git-upload-pack"];
            let mut count = index;
            while ring.goes_on() {
                count += 1;
                let body = bodies
                    .get(count % bodies.len())
                    .copied()
                    .unwrap_or_default();
                let service = services.get(count % 2).copied().unwrap_or_default();
                let request = post(&ring, &format!("/git/{repository}.git/{service}"));
                let Ok(mut stream) = ring.door.tls(b"http/1.1").await else {
                    continue;
                };
                let body = format!("{request}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                if stream.write_all(body.as_bytes()).await.is_err() {
                    continue;
                }
                let mut answer = vec![0; 2_048];
                let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer));
                if let Ok(Ok(read)) = read.await {
                    let text = String::from_utf8_lossy(answer.get(..read).unwrap_or_default());
                    ring.note(text.lines().next().unwrap_or_default());
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}
