use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{Extension, Router, routing::get};
use jiff::Timestamp;
use muster_connect::{
    Bearer, BootstrapError, Endpoint, Fingerprint, TLS_NAME, Token, bootstrap_ca,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use super::*;
use crate::auth::{Authenticator, Identity, NewToken, Role};

/// Longer than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("should not have taken so long")
}

struct World {
    home: tempfile::TempDir,
    auth: Arc<Authenticator>,
    address: SocketAddr,
    counters: Arc<Counters>,
    stop: CancellationToken,
    running: JoinHandle<Stopped>,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(adapt: impl FnOnce(&mut Options)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let auth = Authenticator::open(home.path()).unwrap();
        let mut options = Options::new((Ipv4Addr::LOCALHOST, 0).into());
        adapt(&mut options);
        let server = Server::bind(options, server_config(Arc::clone(&auth)).unwrap()).unwrap();
        let (address, counters) = (server.address(), server.counters());
        let router = Gate::new(Arc::clone(&auth))
            .open(OpenPath::Exact("/"))
            .open(OpenPath::Below("/assets/"))
            .open(OpenPath::Below(program::PATH))
            .guard(
                services()
                    .await
                    .merge(program::router(home.path().join("program"))),
            );
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(router, stop.clone()));
        Self {
            home,
            auth,
            address,
            counters,
            stop,
            running,
        }
    }

    fn token(&self, role: Role) -> Token {
        let new = NewToken {
            role,
            name: "test".into(),
            expires: None,
        };
        self.auth.create_token(&new, Timestamp::now()).unwrap()
    }

    /// Reaches the server as a worker does that has nothing but its token and an IP address.
    async fn endpoint(&self, token: &Token) -> Endpoint {
        let address = self.address.to_string();
        let ca = bootstrap_ca(&address, token.ca, PATIENCE).await.unwrap();
        Endpoint::new(&address, ca).unwrap()
    }

    async fn tls(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.auth.ca().certificate().der().clone())
            .unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(TLS_NAME).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// Sends one HTTP/1.1 request on a connection of its own and returns the whole answer.
    async fn http(&self, path: &str, headers: &str) -> String {
        let mut stream = within(self.tls()).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    async fn counted(&self, read: impl Fn(&Counters) -> u64, wanted: u64) {
        within(async {
            while read(&self.counters) < wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Health, reflection, and two routes that say who asks.
async fn services() -> Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("muster", tonic_health::ServingStatus::Serving)
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
    let mut services = tonic::service::Routes::builder();
    services.add_service(health).add_service(reflection);
    let who = get(|Extension(identity): Extension<Identity>| async move { identity.to_string() });
    services
        .routes()
        .into_axum_router()
        .route("/git/{*path}", who.clone())
        .route("/who", who)
        .route("/assets/{*path}", get(|| async { "static" }))
}

/// Asks for the list of services, which needs a token, and returns how many there are.
async fn reflect(endpoint: &Endpoint, bearer: Option<Bearer>) -> Result<usize, tonic::Status> {
    let channel = endpoint.channel().await.unwrap();
    let wanted = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = tokio_stream::iter([wanted]);
    let mut answers = match bearer {
        Some(bearer) => ServerReflectionClient::with_interceptor(channel, bearer)
            .server_reflection_info(requests)
            .await?
            .into_inner(),
        None => ServerReflectionClient::new(channel)
            .server_reflection_info(requests)
            .await?
            .into_inner(),
    };
    let mut count = 0;
    while answers.message().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn health() -> HealthCheckRequest {
    HealthCheckRequest {
        service: "muster".into(),
    }
}

#[tokio::test]
async fn a_token_and_an_ip_address_are_all_that_a_client_needs() {
    let world = World::new().await;
    let token = world.token(Role::Viewer);
    let endpoint = world.endpoint(&token).await;
    assert_eq!(
        within(reflect(&endpoint, Some(Bearer::token(&token).unwrap())))
            .await
            .unwrap(),
        1
    );
}

#[tokio::test]
async fn a_token_of_another_coordinator_is_refused_before_anything_is_sent() {
    let world = World::new().await;
    let address = world.address.to_string();
    let error = bootstrap_ca(&address, Fingerprint::from_bytes([0; 32]), PATIENCE)
        .await
        .unwrap_err();
    assert!(
        matches!(error, BootstrapError::WrongCoordinator { .. }),
        "{error}"
    );
    world
        .counted(
            |counters| counters.handshake_failed.load(Ordering::Relaxed),
            1,
        )
        .await;
}

#[tokio::test]
async fn grpc_without_a_valid_credential_is_unauthenticated_except_for_health() {
    let world = World::new().await;
    let token = world.token(Role::Operator);
    let endpoint = world.endpoint(&token).await;
    let mut client = HealthClient::new(endpoint.channel().await.unwrap());
    assert_eq!(
        within(client.check(health()))
            .await
            .unwrap()
            .into_inner()
            .status,
        1
    );

    let status = within(reflect(&endpoint, None)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let bearer = Bearer::token(&token).unwrap();
    assert!(
        within(reflect(&endpoint, Some(bearer.clone())))
            .await
            .is_ok()
    );
    world
        .auth
        .tokens()
        .revoke(token.id, Timestamp::now())
        .unwrap();
    let status = within(reflect(&endpoint, Some(bearer))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("revoked"), "{status}");
}

#[tokio::test]
async fn a_refused_grpc_web_call_gets_a_status_in_its_own_type() {
    let world = World::new().await;
    let kind = "application/grpc-web+proto";
    let headers = format!("content-type: {kind}\r\n");
    let answer = world
        .http("/muster.v1.OperatorService/List", &headers)
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        answer.contains(&format!("content-type: {kind}\r\n")),
        "{answer}"
    );
    assert!(answer.contains("grpc-status: 16\r\n"), "{answer}");
}

#[tokio::test]
async fn git_is_challenged_and_then_known_by_its_password() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let world = World::new().await;
    let answer = world
        .http("/git/a.git/info/refs?service=git-upload-pack", "")
        .await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(
        answer.contains("www-authenticate: Basic realm=\"muster\""),
        "{answer}"
    );

    let pair = STANDARD.encode(format!("x:{}", world.auth.credentials().lease(7)));
    let headers = format!("authorization: Basic {pair}\r\n");
    let answer = world.http("/git/a.git/info/refs", &headers).await;
    assert!(answer.ends_with("credential of lease 7"));
}

#[tokio::test]
async fn strangers_see_the_open_paths_and_nothing_else() {
    let world = World::new().await;
    assert!(world.http("/healthz", "").await.ends_with("ok\n"));
    assert!(world.http("/assets/app.js", "").await.ends_with("static"));
    for closed in [
        "/who",
        "/nowhere",
        "/assets",
        "/healthz/",
        "/HEALTHZ",
        "//healthz",
    ] {
        let answer = world.http(closed, "").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{closed}: {answer}");
        assert!(
            answer.contains("www-authenticate: Bearer"),
            "{closed}: {answer}"
        );
    }
    let token = world.token(Role::Admin);
    let bearer = format!("authorization: Bearer {}\r\n", token.credential());
    assert!(
        world
            .http("/nowhere", &bearer)
            .await
            .starts_with("HTTP/1.1 404 ")
    );
    assert!(
        world
            .http("/who", &bearer)
            .await
            .ends_with(&format!("admin token {}", token.id))
    );
}

#[tokio::test]
async fn garbage_is_closed_at_once_and_counted_and_plain_http_told_where_to_go() {
    let world = World::new().await;
    let said = |bytes: &'static [u8]| async move {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // A reset is as good an end as a close.
        let _ = within(stream.read_to_end(&mut rest)).await;
        rest
    };
    let alert = said(&[0xff; 4096]).await;
    assert!(alert.len() < 16, "no more than an alert: {alert:?}");
    world
        .counted(
            |counters| counters.handshake_failed.load(Ordering::Relaxed),
            1,
        )
        .await;
    let told = said(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let told = String::from_utf8(told).unwrap();
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
    assert!(
        told.ends_with(&format!("use https://{}/\n", world.address)),
        "{told}"
    );
    assert!(world.http("/healthz", "").await.ends_with("ok\n"));
}

#[tokio::test]
async fn a_client_that_never_finishes_its_handshake_is_dropped() {
    let world = World::with(|options| options.handshake_timeout = Duration::from_millis(50)).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    // The start of a handshake record whose rest never comes.
    stream
        .write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01])
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = within(stream.read_to_end(&mut rest)).await;
    assert_eq!(
        world.counters.handshake_timed_out.load(Ordering::Relaxed),
        1
    );
}

#[tokio::test]
async fn a_connection_without_a_credential_ends_and_one_with_stays() {
    let world = World::with(|options| options.anonymous_timeout = Duration::from_millis(500)).await;
    let token = world.token(Role::Viewer);
    let request = format!(
        "GET /who HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        token.credential()
    );
    let mut known = world.tls().await.unwrap();
    known.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 1024];
    assert!(within(known.read(&mut answer)).await.unwrap() > 0);

    let mut strangers = [world.tls().await.unwrap(), world.tls().await.unwrap()];
    strangers[1]
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    for stranger in &mut strangers {
        let _ = within(stranger.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(
        world.counters.anonymous_timed_out.load(Ordering::Relaxed),
        2
    );

    known.write_all(request.as_bytes()).await.unwrap();
    assert!(within(known.read(&mut answer)).await.unwrap() > 0);
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_slow_download_goes_on_and_one_of_which_nothing_is_taken_ends() {
    let limit = Duration::from_secs(1);
    let world = World::with(|options| options.anonymous_timeout = limit).await;
    let path = world.home.path().join("worker-agent-vax");
    let bytes = 64 << 20;
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
    let ask = b"GET /worker-agent/vax HTTP/1.1\r\nhost: x\r\n\r\n";
    let late = || world.counters.anonymous_timed_out.load(Ordering::Relaxed);

    let mut slow = world.tls().await.unwrap();
    slow.write_all(ask).await.unwrap();
    let mut pace = tokio::time::interval(limit / 100);
    let mut piece = vec![0; 64 * 1024];
    let mut taken = 0;
    let begun = std::time::Instant::now();
    while begun.elapsed() < 2 * limit {
        pace.tick().await;
        taken += within(slow.read(&mut piece)).await.unwrap() as u64;
    }
    assert_eq!(late(), 0);
    while taken < bytes {
        let read = within(slow.read(&mut piece)).await.unwrap() as u64;
        assert!(read > 0, "cut after {taken} bytes");
        taken += read;
    }

    let mut deaf = world.tls().await.unwrap();
    deaf.write_all(ask).await.unwrap();
    // The other one as well, once it has all.
    within(async {
        while late() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stranger_gives_way_to_the_next_one_and_a_known_client_to_nobody() {
    let world = World::with(|options| options.anonymous_max = 1).await;
    let token = world.token(Role::Viewer);
    let mut first = world.tls().await.unwrap();
    let mut second = within(world.tls()).await.unwrap();
    let _ = within(first.read_to_end(&mut Vec::new())).await;
    assert_eq!(world.counters.evicted.load(Ordering::Relaxed), 1);

    let request = format!(
        "GET /who HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        token.credential()
    );
    let mut answer = [0; 1024];
    second.write_all(request.as_bytes()).await.unwrap();
    assert!(within(second.read(&mut answer)).await.unwrap() > 0);
    let _third = within(world.tls()).await.unwrap();
    let _fourth = within(world.tls()).await.unwrap();
    second.write_all(request.as_bytes()).await.unwrap();
    assert!(within(second.read(&mut answer)).await.unwrap() > 0);
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_that_guesses_credentials_loses_its_connection() {
    let world = World::new().await;
    let mut stream = world.tls().await.unwrap();
    let guess = b"GET /who HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token_00_11\r\n\r\n";
    let mut answers = Vec::new();
    let guessing = async {
        loop {
            let mut answer = [0; 1024];
            if stream.write_all(guess).await.is_err() {
                return;
            }
            match stream.read(&mut answer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => answers.push(answer[..read].starts_with(b"HTTP/1.1 401 ")),
            }
        }
    };
    within(guessing).await;
    assert!(answers.iter().all(|refused| *refused));
    let allowed = usize::try_from(limits::REFUSALS_PER_CONNECTION).unwrap();
    assert!(answers.len() >= allowed && answers.len() <= allowed + 1);
    assert_eq!(world.counters.guessed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed() {
    let world = World::with(|options| options.connections_max = 2).await;
    let (first, _second) = (world.tls().await.unwrap(), world.tls().await.unwrap());
    assert!(within(world.tls()).await.is_err());
    drop(first);
    within(async { while world.tls().await.is_err() {} }).await;
}

#[tokio::test]
async fn an_idle_server_stops_cleanly_and_its_port_is_free_at_once() {
    let world = World::new().await;
    let token = world.token(Role::Viewer);
    let endpoint = world.endpoint(&token).await;
    let mut client = HealthClient::new(endpoint.channel().await.unwrap());
    within(client.check(health())).await.unwrap();
    // The server closes this connection first, so its end waits in the kernel on the server's port.
    assert!(world.http("/healthz", "").await.ends_with("ok\n"));
    world.stop.cancel();
    assert_eq!(within(world.running).await.unwrap(), Stopped { cut: 0 });

    let tls = server_config(Arc::clone(&world.auth)).unwrap();
    let again = Server::bind(Options::new(world.address), tls).unwrap();
    assert_eq!(again.address(), world.address);
}

#[tokio::test]
async fn a_stream_without_end_does_not_hold_the_stop_up() {
    let world = World::with(|options| options.shutdown_timeout = Duration::from_millis(50)).await;
    let token = world.token(Role::Viewer);
    let endpoint = world.endpoint(&token).await;
    let mut client = HealthClient::new(endpoint.channel().await.unwrap());
    let mut changes = within(client.watch(health())).await.unwrap().into_inner();
    assert!(within(changes.message()).await.unwrap().is_some());
    world.stop.cancel();
    assert_eq!(within(world.running).await.unwrap(), Stopped { cut: 1 });
    assert!(!matches!(within(changes.message()).await, Ok(Some(_))));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let world = World::new().await;
    let tls = server_config(Arc::clone(&world.auth)).unwrap();
    let error = Server::bind(Options::new(world.address), tls).unwrap_err();
    assert!(matches!(error, ServerError::InUse { .. }));
    assert!(
        error.to_string().contains(&world.address.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn a_restarted_coordinator_is_trusted_without_a_new_token() {
    let world = World::new().await;
    let token = world.token(Role::Viewer);
    let endpoint = world.endpoint(&token).await;
    world.stop.cancel();
    within(world.running).await.unwrap();

    let auth = Authenticator::open(world.home.path()).unwrap();
    let tls = server_config(Arc::clone(&auth)).unwrap();
    let server = Server::bind(Options::new(world.address), tls).unwrap();
    let router = Gate::new(auth).guard(services().await);
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(router, stop.clone()));
    let bearer = Bearer::token(&token).unwrap();
    assert_eq!(within(reflect(&endpoint, Some(bearer))).await.unwrap(), 1);
    stop.cancel();
    within(running).await.unwrap();
}
