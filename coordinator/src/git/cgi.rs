//! Runs one `git http-backend` for one request: body in, answer out, and nobody left behind.

use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::rooms::Place;
use super::writers::Writing;
use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, StatusCode, header};
use muster_git::GitCommand;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// The longest silence of a client that is sending its body.
pub(super) const BODY_IDLE_MAX: Duration = Duration::from_secs(60);

/// The slowest that a client may send in the long run, in bytes a second: whoever is slower than the
/// slowest line is there to keep a place from others.
const BODY_RATE_MIN: u64 = 1_024;

/// The longest time for one request, whole: a large repository over a slow line takes minutes.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(3_600);

/// The time between TERM and KILL: git removes its locks and temporary objects on TERM.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// How often is looked whether the rest of a process group has ended.
const BURIAL_PAUSE: Duration = Duration::from_millis(10);

/// The longest head of an answer; git's own are about 200 bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What is kept of git's stderr for the log.
const STDERR_BYTES_MAX: usize = 4 << 10;

/// The size of one piece of an answer; with [`PIECES`] the most that waits for a slow client.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 4;

/// The mark at the end of an answer: an empty pkt-line.
const MARK: &[u8] = b"0000";

/// Headers of git's answer that are handed on.
const HEADERS: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::EXPIRES,
    header::PRAGMA,
];

/// Counts running git processes; each guard is one.
#[derive(Debug, Clone, Default)]
pub(super) struct Gauge(Arc<AtomicUsize>);

impl Gauge {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn enter(&self) -> GaugeGuard {
        self.0.fetch_add(1, Ordering::AcqRel);
        GaugeGuard(Arc::clone(&self.0))
    }
}

struct GaugeGuard(Arc<AtomicUsize>);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What one request gives to git.
pub(super) struct Call {
    /// What git reads before the body.
    pub(super) head: Vec<u8>,
    /// The request's body, or what is left of it.
    pub(super) body: Body,
    /// The most bytes of the body.
    pub(super) body_bytes_max: u64,
    /// Given back when the process has ended.
    pub(super) permit: Place,
    /// That it writes to a repository, if it does; as long as the permit.
    pub(super) writing: Option<Writing>,
    /// What the client is told in place of the rest if git dies in the middle of its answer.
    pub(super) epilogue: Box<dyn FnOnce() -> Option<Vec<u8>> + Send>,
    pub(super) gauge: Gauge,
}

/// Why git gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot start git http-backend")]
    Start(#[source] io::Error),
    #[error("git http-backend ended before it answered")]
    NoAnswer,
}

/// Why a request was broken off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the client went away")]
    Gone,
    #[error("the client stopped sending")]
    Idle,
    #[error("the client sends less than {BODY_RATE_MIN} bytes a second")]
    Slow,
    #[error("the request body is larger than allowed")]
    TooLarge,
    #[error("the request took too long")]
    TooLong,
    #[error("git's answer has no valid head")]
    Head,
    #[error("cannot read git's answer")]
    Read(#[source] io::Error),
}

type Piece = Result<Bytes, io::Error>;

/// Starts `git http-backend` and gives its answer as soon as the answer's head is there; the rest is streamed.
///
/// If the client goes away, before or after the head, the whole process group is ended. The call's
/// permit and epilogue live until no process is left.
pub(super) async fn run(command: GitCommand, call: Call) -> Result<Response, Error> {
    let counted = call.gauge.enter();
    let mut process = command.into_process();
    process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = process.spawn().map_err(Error::Start)?;
    let (head_sender, head) = oneshot::channel();
    let (pieces_sender, pieces) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        serve(child, call, head_sender, pieces_sender).await;
        drop(counted);
    });

    let mut response = head.await.map_err(|_| Error::NoAnswer)?;
    let pieces = tokio_stream::wrappers::ReceiverStream::new(pieces);
    *response.body_mut() = Body::from_stream(pieces);
    Ok(response)
}

/// Owns the process until it is gone.
async fn serve(
    mut child: Child,
    call: Call,
    head: oneshot::Sender<Response>,
    pieces: mpsc::Sender<Piece>,
) {
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return;
    };
    let group = group_of(&child);
    let stderr = tokio::spawn(first_bytes(stderr));
    let work = async {
        let feeding = feed(stdin, &call.head, call.body, call.body_bytes_max);
        tokio::try_join!(feeding, forward(stdout, head, &pieces))
    };
    let result = tokio::select! {
        result = timeout(REQUEST_TIME_MAX, work) => match result {
            Ok(result) => result.map(|((), end)| end),
            Err(_) => Err(Broken::TooLong),
        },
        () = pieces.closed() => Err(Broken::Gone),
    };
    let status = match &result {
        Ok(_) => wait_or_end(&mut child).await,
        Err(_) => end(&mut child).await,
    };
    let failed = !status.is_some_and(|status| status.success());
    if failed
        && matches!(result, Ok(End::Cut))
        && let Some(epilogue) = (call.epilogue)()
    {
        // The client may be gone by now, and then nobody is to be told.
        let _ = pieces.send(Ok(Bytes::from(epilogue))).await;
    }
    if let Err(broken) = result {
        tracing::info!(reason = %broken, "a git request was broken off");
        // Ends the connection instead of the answer, so that a cut answer is not taken for whole.
        let _ = pieces.try_send(Err(io::Error::other(broken)));
    } else if failed {
        let stderr = timeout(TERM_GRACE, stderr).await;
        let stderr = stderr.ok().and_then(Result::ok).unwrap_or_default();
        tracing::warn!(?status, stderr, "git http-backend failed");
    }
    if failed {
        buried(group).await;
    } else if let Some(writing) = call.writing {
        writing.done();
    }
    drop(call.permit);
}

/// Writes head and body to git; what git does not want is still read, so that the client gets to
/// the answer.
async fn feed(
    stdin: ChildStdin,
    head: &[u8],
    body: Body,
    body_bytes_max: u64,
) -> Result<(), Broken> {
    let mut stdin = Some(stdin);
    let mut left = body_bytes_max;
    write(&mut stdin, head).await;
    let mut body = pin!(body.into_data_stream());
    // Only what is waited for the client counts: git may be slow too.
    let (mut waited, mut received) = (Duration::ZERO, 0_u64);
    loop {
        let asked = Instant::now();
        let next = timeout(BODY_IDLE_MAX, body.next());
        let Some(chunk) = next.await.map_err(|_| Broken::Idle)? else {
            break;
        };
        let chunk = chunk.map_err(|_| Broken::Gone)?;
        waited += asked.elapsed();
        received += chunk.len() as u64;
        if waited > BODY_IDLE_MAX && received < waited.as_secs() * BODY_RATE_MIN {
            return Err(Broken::Slow);
        }
        left = left
            .checked_sub(chunk.len() as u64)
            .ok_or(Broken::TooLarge)?;
        write(&mut stdin, &chunk).await;
    }
    Ok(())
}

async fn write(stdin: &mut Option<ChildStdin>, bytes: &[u8]) {
    if let Some(pipe) = stdin
        && pipe.write_all(bytes).await.is_err()
    {
        *stdin = None;
    }
}

/// How an answer of git ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With the mark that ends every whole answer of git's protocol.
    Marked,
    /// Without it: git died, or had nothing to say.
    Cut,
}

/// Reads git's answer and hands it on: the head once, then pieces.
async fn forward(
    mut stdout: ChildStdout,
    head: oneshot::Sender<Response>,
    pieces: &mpsc::Sender<Piece>,
) -> Result<End, Broken> {
    let mut bytes = Vec::new();
    let (response, rest) = loop {
        if let Some(found) = parse_head(&bytes)? {
            break found;
        }
        if bytes.len() > HEAD_BYTES_MAX || read(&mut stdout, &mut bytes).await? == 0 {
            return Err(Broken::Head);
        }
    };
    head.send(response).map_err(|_| Broken::Gone)?;
    let mut piece = rest;
    let mut last = Vec::new();
    loop {
        if !piece.is_empty() {
            let surplus = piece.len().saturating_sub(MARK.len());
            last.extend_from_slice(piece.get(surplus..).unwrap_or_default());
            last.drain(..last.len().saturating_sub(MARK.len()));
            let piece = Bytes::from(std::mem::take(&mut piece));
            pieces.send(Ok(piece)).await.map_err(|_| Broken::Gone)?;
        }
        if read(&mut stdout, &mut piece).await? == 0 {
            return Ok(if last == MARK { End::Marked } else { End::Cut });
        }
    }
}

async fn read(from: &mut ChildStdout, into: &mut Vec<u8>) -> Result<usize, Broken> {
    into.reserve(PIECE_BYTES);
    from.take(PIECE_BYTES as u64)
        .read_buf(into)
        .await
        .map_err(Broken::Read)
}

/// Parses the head of a CGI answer; gives what follows it, or `None` while it is not whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(Response, Vec<u8>)>, Broken> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let (head, rest) = bytes.split_at(end);
    let head = str::from_utf8(head).map_err(|_| Broken::Head)?;
    let mut response = Response::new(Body::empty());
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(':').ok_or(Broken::Head)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().unwrap_or_default();
            *response.status_mut() =
                StatusCode::from_bytes(code.as_bytes()).map_err(|_| Broken::Head)?;
        } else if let Some(known) = HEADERS
            .into_iter()
            .find(|known| name.eq_ignore_ascii_case(known.as_str()))
        {
            let value = HeaderValue::from_str(value).map_err(|_| Broken::Head)?;
            response.headers_mut().insert(known, value);
        }
    }
    Ok(Some((response, rest.get(4..).unwrap_or_default().to_vec())))
}

async fn first_bytes(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut limited = (&mut from).take(STDERR_BYTES_MAX as u64);
    let _ = limited.read_to_end(&mut kept).await;
    // The rest is read too: a full pipe would stop git.
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// Waits for a process whose answer is complete.
async fn wait_or_end(child: &mut Child) -> Option<ExitStatus> {
    match timeout(TERM_GRACE, child.wait()).await {
        Ok(status) => status.ok(),
        Err(_) => end(child).await,
    }
}

/// Ends the process and all that it started.
async fn end(child: &mut Child) -> Option<ExitStatus> {
    signal(child, Signal::TERM);
    if let Ok(status) = timeout(TERM_GRACE, child.wait()).await {
        return status.ok();
    }
    signal(child, Signal::KILL);
    child.wait().await.ok()
}

fn signal(child: &Child, signal: Signal) {
    // The id is there, and is not another's, as long as the process was not waited for.
    if let Some(group) = group_of(child) {
        let _ = kill_process_group(group, signal);
    }
}

fn group_of(child: &Child) -> Option<Pid> {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    id.and_then(Pid::from_raw)
}

/// Waits until what a process that was killed had started is gone too, and ends it if it lingers.
///
/// The id of a group is not used again while the group has a member, so it is this one's for as
/// long as it has been seen without a gap.
async fn buried(group: Option<Pid>) {
    let Some(group) = group else { return };
    let is_there = || test_kill_process_group(group).is_ok();
    let until = Instant::now() + TERM_GRACE;
    while is_there() && Instant::now() < until {
        tokio::time::sleep(BURIAL_PAUSE).await;
    }
    if is_there() {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_answer_gives_status_and_known_headers() {
        let bytes = b"Status: 404 Not Found\r\nContent-Type: text/plain\r\nX-Other: 1\r\n\r\nbody";
        let (response, rest) = parse_head(bytes).unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
        assert_eq!(response.headers().len(), 1);
        assert_eq!(rest, b"body");
    }

    #[test]
    fn an_answer_that_is_not_cgi_is_refused() {
        assert!(
            parse_head(b"Content-Type: text/plain\r\n")
                .unwrap()
                .is_none()
        );
        for bytes in ["no colon\r\n\r\n", "Status: x\r\n\r\n", "\r\n\r\n"] {
            assert!(parse_head(bytes.as_bytes()).is_err(), "{bytes:?}");
        }
    }
}
