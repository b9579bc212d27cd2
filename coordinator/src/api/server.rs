//! The listener: bounded connections, TLS, HTTP/1 and HTTP/2, and an end that comes in time.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use bytes::Bytes;
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::limits::{CONNECTIONS, DOWNLOAD, SEND_BUFFER_BYTES, STRANGERS, STREAMS_PER_CONNECTION};
use super::places::{Connection, OpenResponse, Places};

/// Connections that the kernel has completed and we have not taken yet; a whole Slurm array may
/// start in the same second.
const BACKLOG: u32 = 1024;
/// How long to wait when the process has no file descriptor left for one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a stranger's running request may still take once its time is over.
const FAREWELL: Duration = Duration::from_secs(5);
/// Also closes an HTTP/1 connection that waits this long for its next request.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Dead peers are noticed within twice this time, even if no stream is open.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// A request's headers, of which a credential takes at most 4 KiB.
const HEADERS_BYTES_MAX: u32 = 32 * 1024;
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;
/// Lets one stream fill a 100 Mbit/s path with 80 ms round trip.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// How a server listens and what it bounds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// From accepting a connection to the end of its TLS handshake.
    pub handshake_timeout: Duration,
    /// From the end of the handshake to the first request with a valid credential; a connection
    /// without one is closed then, whatever it has asked of the open paths, unless it takes a download:
    /// then so long after it has taken anything of it, and after [`DOWNLOAD`] at the latest.
    pub anonymous_timeout: Duration,
    /// Connections at one time; more are closed at once. Three quarters of the process's file
    /// descriptors are an upper bound.
    pub connections_max: usize,
    /// Those of them that have not sent a valid credential yet; the oldest is closed for a new one.
    pub anonymous_max: usize,
    /// From the stop signal until connections that are still open are cut.
    pub shutdown_timeout: Duration,
}

impl Options {
    /// Returns the defaults for listening at `listen`.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            handshake_timeout: Duration::from_secs(10),
            anonymous_timeout: Duration::from_secs(30),
            connections_max: CONNECTIONS,
            anonymous_max: STRANGERS,
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

/// What a server has seen since it was bound; every field only grows.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections whose TLS handshake succeeded.
    pub connected: AtomicU64,
    /// Connections closed at once because there was no room.
    pub refused_full: AtomicU64,
    /// Connections whose handshake failed: plain HTTP, port scans, clients that pin another CA.
    pub handshake_failed: AtomicU64,
    /// Connections whose handshake took too long.
    pub handshake_timed_out: AtomicU64,
    /// Connections closed because no valid credential came in time.
    pub anonymous_timed_out: AtomicU64,
    /// Strangers closed early to make room for newer ones.
    pub evicted: AtomicU64,
    /// Connections closed because too many of their credentials were not valid.
    pub guessed: AtomicU64,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that were cut since they had not ended within the shutdown timeout.
    pub cut: usize,
}

/// A bound listener that does not serve yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    options: Options,
    counters: Arc<Counters>,
}

impl Server {
    /// Takes the port. Must be called within a Tokio runtime.
    ///
    /// The port of a coordinator that was killed can be taken again at once.
    pub fn bind(mut options: Options, tls: Arc<rustls::ServerConfig>) -> Result<Self, Error> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => Error::InUse {
                address: options.listen,
            },
            _ => Error::Bind {
                address: options.listen,
                source,
            },
        };
        let socket = match options.listen {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }
        .map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(options.listen).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        options.connections_max = options.connections_max.min(connections_possible());
        options.anonymous_max = options.anonymous_max.min(options.connections_max);
        Ok(Self {
            listener,
            address,
            tls,
            options,
            counters: Arc::default(),
        })
    }

    /// Returns where the server listens, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what the server counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Serves `router` until `stop` is cancelled.
    ///
    /// Then the port is given back at once, running requests may end within the shutdown timeout,
    /// and what is open after that is cut. Streams that would go on for ever must watch `stop`
    /// themselves to end cleanly.
    pub async fn run(self, router: Router, stop: CancellationToken) -> Stopped {
        let shutdown_timeout = self.options.shutdown_timeout;
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        let _cut_when_dropped = cut.clone().drop_guard();
        let shared = Arc::new(Shared {
            acceptor: TlsAcceptor::from(self.tls),
            http: http(),
            router,
            options: self.options,
            counters: self.counters,
            stop: stop.clone(),
            cut: cut.clone(),
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept_all(&self.listener, &shared, &tasks) => {}
        }
        drop(self.listener);
        tasks.close();
        if timeout(shutdown_timeout, tasks.wait()).await.is_ok() {
            return Stopped { cut: 0 };
        }
        let left = tasks.len();
        tracing::warn!(
            connections = left,
            "connections did not end in time and are cut"
        );
        cut.cancel();
        tasks.wait().await;
        Stopped { cut: left }
    }
}

/// What every connection needs.
struct Shared {
    acceptor: TlsAcceptor,
    http: auto::Builder<TokioExecutor>,
    router: Router,
    options: Options,
    counters: Arc<Counters>,
    stop: CancellationToken,
    cut: CancellationToken,
}

async fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, tasks: &TaskTracker) {
    let places = Places::new(shared.options.connections_max, shared.options.anonymous_max);
    let mut was_full = false;
    let mut is_out_of_descriptors = false;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if concerns_one_connection(&error) => continue,
            Err(error) => {
                if !is_out_of_descriptors {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "no connection can be accepted for a moment"
                    );
                }
                is_out_of_descriptors = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        is_out_of_descriptors = false;
        let Some((connection, has_evicted)) = places.enter() else {
            shared.counters.refused_full.fetch_add(1, Ordering::Relaxed);
            if !was_full {
                tracing::warn!(
                    connections_max = shared.options.connections_max,
                    "no room for more connections; new ones are closed"
                );
            }
            was_full = true;
            continue;
        };
        if has_evicted && shared.counters.evicted.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                anonymous_max = shared.options.anonymous_max,
                "connections without a credential are closed early, since there are too many"
            );
        }
        was_full = false;
        let shared = Arc::clone(shared);
        tasks.spawn(async move {
            tokio::select! {
                () = shared.cut.cancelled() => {}
                () = connection.when_over() => {}
                () = serve(&shared, stream, peer, connection.clone()) => {}
            }
        });
    }
}

async fn serve(shared: &Shared, stream: TcpStream, peer: SocketAddr, connection: Connection) {
    let handshake = timeout(shared.options.handshake_timeout, async {
        // Renewals and acknowledgements are small and must not wait for each other.
        stream.set_nodelay(true)?;
        if is_plain_http(&stream).await? {
            return answer_plain_http(stream).await.map(|()| None);
        }
        shared.acceptor.accept(stream).await.map(Some)
    });
    let handshake = tokio::select! {
        () = shared.stop.cancelled() => return,
        handshake = handshake => handshake,
    };
    match handshake {
        Ok(Ok(None)) => tracing::debug!(%peer, "told someone that this port speaks TLS"),
        Ok(Ok(Some(stream))) => {
            shared.counters.connected.fetch_add(1, Ordering::Relaxed);
            serve_http(shared, stream, peer, connection).await;
        }
        Ok(Err(error)) => {
            shared
                .counters
                .handshake_failed
                .fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, %error, "TLS handshake failed");
        }
        Err(_) => {
            shared
                .counters
                .handshake_timed_out
                .fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, "TLS handshake took too long");
        }
    }
}

/// Tells whether somebody begins with a request in plain text, as a browser without `https` does.
/// TLS begins with byte 22.
async fn is_plain_http(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase())
}

/// Says in plain text that this port speaks TLS, and where.
async fn answer_plain_http(mut stream: TcpStream) -> io::Result<()> {
    // What is left unread when a connection is closed makes the kernel cut it before the answer has
    // arrived; a request that is longer than this is nobody's mistake.
    let mut request = [0; 4096];
    let _bytes = stream.read(&mut request).await?;
    let address = stream.local_addr()?;
    let text = format!(
        "This is a coordinator of Muster, and its port speaks TLS: use https://{address}/\n"
    );
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn serve_http(
    shared: &Shared,
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    connection: Connection,
) {
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = shared.router.clone();
        let open = connection.respond();
        async move {
            let response = answer(router.oneshot(request.map(Body::new)).await);
            Ok::<_, Infallible>(response.map(|body| Answer { body, _open: open }))
        }
    });
    let mut http = pin!(shared.http.serve_connection(TokioIo::new(stream), service));
    let begun = Instant::now();
    let anonymous_timeout = shared.options.anonymous_timeout;
    let mut anonymous_end = pin!(sleep_until(begun + anonymous_timeout));
    let (mut is_anonymous, mut is_ending, mut is_late) = (true, false, false);
    loop {
        tokio::select! {
            result = http.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%peer, error, "connection ended with an error");
                }
                return;
            }
            () = connection.when_changed(), if is_anonymous && !is_late => {
                is_anonymous = !connection.is_authenticated();
                if is_anonymous {
                    is_late = true;
                    shared.counters.guessed.fetch_add(1, Ordering::Relaxed);
                    anonymous_end.as_mut().reset(Instant::now() + FAREWELL);
                    http.as_mut().graceful_shutdown();
                }
            }
            () = shared.stop.cancelled(), if !is_ending => {
                is_ending = true;
                http.as_mut().graceful_shutdown();
            }
            () = anonymous_end.as_mut(), if is_anonymous => {
                if is_late {
                    return;
                }
                let taken = connection.taken_at();
                let until = taken.map(|at| (at + anonymous_timeout).min(begun + DOWNLOAD));
                if let Some(until) = until.filter(|until| *until > Instant::now()) {
                    anonymous_end.as_mut().reset(until);
                    continue;
                }
                is_late = true;
                shared.counters.anonymous_timed_out.fetch_add(1, Ordering::Relaxed);
                anonymous_end.as_mut().reset(Instant::now() + FAREWELL);
                http.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The body of a response, which counts as open until it is gone.
struct Answer {
    body: Body,
    _open: OpenResponse,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Unwraps the answer of a router, which has no way to fail.
fn answer(result: Result<axum::response::Response, Infallible>) -> axum::response::Response {
    match result {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    http
}

/// Returns how many connections leave a quarter of the file descriptors to everything else.
fn connections_possible() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let descriptors = limit.current.and_then(|count| usize::try_from(count).ok());
    descriptors.unwrap_or(usize::MAX) / 4 * 3
}

fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Why the port could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program has it.
    #[error(
        "{address} is in use, perhaps by another coordinator (`ss -ltnp 'sport = :{}'` shows by \
         whom); stop that one, or listen elsewhere with `--listen`", address.port()
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refused.
    #[error("cannot listen at {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}
