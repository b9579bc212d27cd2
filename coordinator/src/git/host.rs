//! Serves hosted repositories at `/git/<repo>.git`, each request within its credential's scope.
//!
//! Only git's smart protocol is served: three endpoints, no files. What git may do in a request is
//! decided before git is started, and git is told through its configuration; a push is decided
//! again by the [hook](super::hook) when its refs move.

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use muster_git::{Git, GitCommand, GitError, Mode};
use tokio::time::timeout;

use crate::auth::Identity;

use super::cgi::{self, BODY_IDLE_MAX, Call, Gauge};
use super::hook::{self, HookServer};
use super::pktline::{CommandList, Parser};
use super::policy::{Fence, Refusal, Scope, decide_update, visible};
use super::refs::valid_component;
use super::repository;
use super::rooms::{self, Place, Rooms};
use super::writers::Writers;

/// The default of [`Options::push_bytes_max`].
pub const PUSH_BYTES_MAX: u64 = 2 << 30;

/// The largest push of a person, in bytes: a history of decades with everything in it.
const OPERATOR_PUSH_BYTES_MAX: u64 = 64 << 30;

/// The most bytes of a fetch's request; git's own limit for a request it keeps in memory.
const FETCH_BYTES_MAX: u64 = 10 << 20;

/// The most pushes at a time: each is up to four processes that read a pack.
const PUSHES_MAX: usize = 16;

/// The most fetches and ref listings at a time: each is two or three processes.
const READS_MAX: usize = 32;

/// The most pushes at a time whose list of updates is being read: each is up to a megabyte.
const LISTS_MAX: usize = 64;

/// The longest time for the list of updates; the largest is a megabyte.
const LIST_TIME_MAX: Duration = Duration::from_secs(120);

/// The longest time to take in a refused push, so that its client gets to the refusal.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(600);

/// From how many objects on a push is kept as one pack; smaller ones become loose objects, so that
/// a snapshot a minute does not leave a pack a minute.
const UNPACK_LIMIT: &str = "100";

/// How often is looked for the backend if something kills it.
const BACKEND_TRIES: u32 = 5;

/// What a client is told when git dies in a push for a reason of its own. Workers know its beginning
/// and do not take it for a verdict.
const DIED: &str = "git failed at the coordinator; see if the ref is there, and try again";

/// How hosted repositories are served.
#[derive(Debug, Clone)]
pub struct Options {
    /// The git that does the work.
    pub git: Git,
    /// The coordinator's home.
    pub home: PathBuf,
    /// What git's hook runs, as in [`HookServer::start`]: the coordinator's own executable.
    pub executable: PathBuf,
    /// The largest push of a worker, in bytes.
    pub push_bytes_max: u64,
    /// Who writes to the repositories; pushes announce themselves there.
    pub writers: Writers,
}

/// Why repositories cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The installed git lacks a part that some systems package apart.
    #[error("this git has no http-backend: {0}")]
    NoBackend(String),
    /// Git could not be run.
    #[error("cannot try git http-backend")]
    Git(#[from] GitError),
    /// What killed processes left could not be removed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The hook could not be set up.
    #[error(transparent)]
    Hook(#[from] hook::Error),
}

/// The hosted remote; clones share everything.
#[derive(Clone)]
pub struct GitHost {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    fence: Arc<dyn Fence>,
    hooks: HookServer,
    lists: Rooms,
    pushes: Rooms,
    reads: Rooms,
    gauge: Gauge,
}

impl GitHost {
    /// Makes the remote; its repositories are those of [`repository::folder`] of the home.
    ///
    /// Removes what killed processes left in them, so this must be the only coordinator of the
    /// home, and no git may work in it yet.
    pub async fn start(options: Options, fence: Arc<dyn Fence>) -> Result<Self, StartError> {
        check_backend(&options.git).await?;
        repository::clean(&options.home)?;
        let git = options.git.clone();
        let executable = options.executable.clone();
        let hooks = HookServer::start(git, &options.home, executable, Arc::clone(&fence))?;
        Ok(Self {
            inner: Arc::new(Inner {
                options,
                fence,
                hooks,
                lists: Rooms::new("pushes that begin", LISTS_MAX, LISTS_MAX / 4),
                pushes: Rooms::new("pushes", PUSHES_MAX, PUSHES_MAX / 2),
                reads: Rooms::new("fetches and listings", READS_MAX, READS_MAX / 2),
                gauge: Gauge::default(),
            }),
        })
    }

    /// The routes. Authentication is put around them and leaves an [`Identity`] in the request's
    /// extensions; a request without one is asked for a credential.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/git/{repository}/info/refs", get(list_refs))
            .route("/git/{repository}/git-upload-pack", post(fetch))
            .route("/git/{repository}/git-receive-pack", post(push))
            .with_state(Arc::clone(&self.inner))
    }

    /// How many git processes serve requests now.
    pub fn running(&self) -> usize {
        self.inner.gauge.count()
    }
}

/// An answer that ends a request without git, in plain text, which git shows its user.
#[derive(Debug)]
struct Denied(StatusCode, String);

impl Denied {
    fn new(status: StatusCode, message: &str) -> Self {
        Self(status, message.to_owned())
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::LeaseEnded
            | Refusal::NoAccess
            | Refusal::ReadOnly
            | Refusal::NotYours
            | Refusal::Published
            | Refusal::Delete
            | Refusal::ForeignCommits => StatusCode::FORBIDDEN,
        };
        Self(status, refusal.to_string())
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let Self(status, message) = self;
        let mut response = (status, format!("muster: {message}\n")).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = http::HeaderValue::from_static("Basic realm=\"muster\"");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// One of git's two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    UploadPack,
    ReceivePack,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }
}

/// `GET info/refs?service=…`: the refs, before a fetch or a push.
async fn list_refs(
    State(host): State<Arc<Inner>>,
    Path(repository): Path<String>,
    RawQuery(query): RawQuery,
    request: axum::extract::Request,
) -> Result<Response, Denied> {
    let (parts, _) = request.into_parts();
    let service = match query.as_deref() {
        Some("service=git-upload-pack") => Service::UploadPack,
        Some("service=git-receive-pack") => Service::ReceivePack,
        _ => {
            let message = "only git's smart HTTP protocol is served";
            return Err(Denied::new(StatusCode::FORBIDDEN, message));
        }
    };
    let scope = host.scope(&parts).await?;
    let name = host.repository(&repository)?;
    if service == Service::ReceivePack && !scope.writes() {
        return Err(Refusal::ReadOnly.into());
    }
    let command = host
        .command(service, name, "info/refs", &parts, &scope)
        .env("REQUEST_METHOD", "GET")
        .env("QUERY_STRING", format!("service={}", service.name()));
    let call = Call {
        head: Vec::new(),
        body: Body::empty(),
        body_bytes_max: 0,
        permit: room(&host.reads, &parts).await?,
        writing: None,
        epilogue: Box::new(|| None),
        gauge: host.gauge.clone(),
    };
    run(command, call).await
}

/// `POST git-upload-pack`: a fetch.
async fn fetch(
    State(host): State<Arc<Inner>>,
    Path(repository): Path<String>,
    request: axum::extract::Request,
) -> Result<Response, Denied> {
    let (parts, body) = request.into_parts();
    let scope = host.scope(&parts).await?;
    let name = host.repository(&repository)?;
    let service = Service::UploadPack;
    let mut command = host.command(service, name, service.name(), &parts, &scope);
    command = posted(command, service, &parts.headers)?;
    match header_text(&parts.headers, header::CONTENT_ENCODING.as_str()) {
        None | Some("identity") => {}
        // Large requests of git are compressed, and http-backend unpacks them.
        Some("gzip" | "x-gzip") => command = command.env("HTTP_CONTENT_ENCODING", "gzip"),
        Some(_) => return Err(unknown_encoding()),
    }
    let call = Call {
        head: Vec::new(),
        body,
        body_bytes_max: FETCH_BYTES_MAX,
        permit: room(&host.reads, &parts).await?,
        writing: None,
        epilogue: Box::new(|| None),
        gauge: host.gauge.clone(),
    };
    run(command, call).await
}

/// `POST git-receive-pack`: a push.
async fn push(
    State(host): State<Arc<Inner>>,
    Path(repository): Path<String>,
    request: axum::extract::Request,
) -> Result<Response, Denied> {
    let (parts, body) = request.into_parts();
    identity(&parts)?;
    let name = host.repository(&repository)?;
    // Git never compresses a push, and a list that cannot be read cannot be checked.
    if !matches!(
        header_text(&parts.headers, header::CONTENT_ENCODING.as_str()),
        None | Some("identity")
    ) {
        return Err(unknown_encoding());
    }
    let service = Service::ReceivePack;
    let scope = host.scope(&parts).await;
    let list_place = room(&host.lists, &parts).await?;
    let read = timeout(LIST_TIME_MAX, read_list(body)).await;
    let (list, rest, body) = read.map_err(|_| slow())??;
    let scope = match decide(scope, &list) {
        Ok(scope) => scope,
        Err(refused) => {
            drop(list_place);
            tracing::info!(repository = name, reason = %refused.first(), "a push was refused");
            let drained = drain(body, host.options.push_bytes_max);
            timeout(DRAIN_TIME_MAX, drained)
                .await
                .map_err(|_| slow())??;
            return refused.answer(&list);
        }
    };
    if list.commands.is_empty() {
        // Git tries its credential like this before it sends a large push.
        return Ok(result(Vec::new()));
    }
    drop(list_place);
    let permit = room(&host.pushes, &parts).await?;
    let command = host.command(service, name, service.name(), &parts, &scope);
    // The list is not as long as the client's, so there is no length: git reads to the end.
    let mut command = posted(command, service, &HeaderMap::new())?;
    let folder = repository::folder(&host.options.home).join(&repository);
    let body_bytes_max = host.push_bytes_max(&scope);
    let push = host.hooks.open(scope, folder);
    for (variable, value) in push.environment() {
        command = command.env(variable, value);
    }
    let mut head = list.encode();
    head.extend_from_slice(&rest);
    let call = Call {
        head,
        body,
        body_bytes_max,
        permit,
        writing: Some(host.options.writers.enter(name).await),
        epilogue: Box::new(move || {
            // Git dies of a hook's refusal without a report, so the report is made here. All
            // updates were one transaction: none has happened.
            let reason = push.refused().map(|refusal| refusal.to_string());
            list.refuse(|_| reason.as_deref().unwrap_or(DIED).to_owned())
        }),
        gauge: host.gauge.clone(),
    };
    run(command, call).await
}

impl Inner {
    fn push_bytes_max(&self, scope: &Scope) -> u64 {
        match scope {
            Scope::Operator => self.options.push_bytes_max.max(OPERATOR_PUSH_BYTES_MAX),
            _ => self.options.push_bytes_max,
        }
    }

    async fn scope(&self, parts: &Parts) -> Result<Scope, Denied> {
        Ok(self.fence.scope(identity(parts)?).await?)
    }

    /// The repository's name, out of `<name>.git`; no other path reaches git.
    fn repository<'a>(&self, segment: &'a str) -> Result<&'a str, Denied> {
        let name = segment
            .strip_suffix(".git")
            .filter(|name| valid_component(name).is_ok())
            .filter(|_| {
                let folder = repository::folder(&self.options.home);
                folder.join(segment).join("HEAD").is_file()
            });
        name.ok_or_else(|| Denied::new(StatusCode::NOT_FOUND, "no such repository"))
    }

    /// `git http-backend` for one request; what depends on the method is left to the caller.
    fn command(
        &self,
        service: Service,
        repository: &str,
        endpoint: &str,
        parts: &Parts,
        scope: &Scope,
    ) -> GitCommand {
        let mut command = self.options.git.command(Mode::Hermetic);
        command = command
            .arg("http-backend")
            .env("HOME", "/nonexistent")
            .env("GIT_PROJECT_ROOT", repository::folder(&self.options.home))
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", format!("/{repository}.git/{endpoint}"))
            .env("REMOTE_USER", user(scope))
            .env("REMOTE_ADDR", "client");
        if !scope.reads_are_limited()
            && service == Service::UploadPack
            && header_text(&parts.headers, "git-protocol") == Some("version=2")
        {
            command = command.env("GIT_PROTOCOL", "version=2");
        }
        for (key, value) in self.settings(service, scope) {
            command = command.config(key, value);
        }
        command
    }

    /// Git's configuration for one request.
    fn settings(&self, service: Service, scope: &Scope) -> Vec<(&'static str, OsString)> {
        let hooks = self.hooks.hooks().as_os_str().to_owned();
        let mut settings = vec![
            ("core.hooksPath", hooks),
            ("http.getanyfile", "false".into()),
        ];
        for rule in visible(scope) {
            settings.push(("transfer.hideRefs", rule.into()));
        }
        match service {
            Service::UploadPack => settings.extend([
                ("uploadpack.allowTipSHA1InWant", "false".into()),
                ("uploadpack.allowReachableSHA1InWant", "false".into()),
                ("uploadpack.allowAnySHA1InWant", "false".into()),
            ]),
            Service::ReceivePack => {
                // An operator brings a history as it is, flaws of decades included; what an agent
                // adds to it is new and has no excuse.
                let strict = !matches!(scope, Scope::Operator);
                let limit = self.push_bytes_max(scope).to_string();
                settings.extend([
                    ("http.receivepack", "true".into()),
                    ("receive.autogc", "false".into()),
                    ("receive.denyDeletes", "true".into()),
                    ("receive.fsckObjects", strict.to_string().into()),
                    ("receive.maxInputSize", limit.into()),
                    ("transfer.unpackLimit", UNPACK_LIMIT.into()),
                    ("receive.advertisePushOptions", "false".into()),
                ]);
            }
        }
        settings
    }
}

async fn check_backend(git: &Git) -> Result<(), StartError> {
    let mut tries = 0;
    let output = loop {
        tries += 1;
        let output = git
            .command(Mode::Hermetic)
            .arg("http-backend")
            .run()
            .await?;
        // Killed by somebody, which says nothing about it.
        if output.exit_code.is_some() || tries >= BACKEND_TRIES {
            break output;
        }
    };
    // Without a request it complains in the form of an HTTP answer.
    if output.stdout.starts_with(b"Status: ") {
        return Ok(());
    }
    Err(StartError::NoBackend(output.stderr))
}

async fn run(command: GitCommand, call: Call) -> Result<Response, Denied> {
    cgi::run(command, call).await.map_err(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, "git gave no answer");
        let message = "the coordinator could not run git";
        Denied::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })
}

fn identity(parts: &Parts) -> Result<&Identity, Denied> {
    let message = "a credential is needed";
    let denied = || Denied::new(StatusCode::UNAUTHORIZED, message);
    parts.extensions.get::<Identity>().ok_or_else(denied)
}

fn user(scope: &Scope) -> &'static str {
    match scope {
        Scope::Attempt { .. } => "attempt",
        Scope::Verify { .. } => "verify",
        Scope::Salvage { .. } => "worker",
        Scope::Operator => "operator",
        Scope::Viewer => "viewer",
    }
}

fn posted(
    command: GitCommand,
    service: Service,
    headers: &HeaderMap,
) -> Result<GitCommand, Denied> {
    let command = command.env("REQUEST_METHOD", "POST").env(
        "CONTENT_TYPE",
        format!("application/x-{}-request", service.name()),
    );
    let Some(length) = header_text(headers, header::CONTENT_LENGTH.as_str()) else {
        return Ok(command);
    };
    let message = "the content length is no number";
    let length: u64 = length
        .parse()
        .map_err(|_| Denied::new(StatusCode::BAD_REQUEST, message))?;
    Ok(command.env("CONTENT_LENGTH", length.to_string()))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // A value that is no text is treated like an unknown one, never like an absent one.
    Some(headers.get(name)?.to_str().unwrap_or("?"))
}

fn unknown_encoding() -> Denied {
    let message = "the body's content encoding is not served";
    Denied::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
}

async fn room(rooms: &Rooms, parts: &Parts) -> Result<Place, Denied> {
    let credential = identity(parts)?.to_string();
    let full = |full: rooms::Full| Denied(StatusCode::SERVICE_UNAVAILABLE, full.to_string());
    rooms.place(credential).await.map_err(full)
}

/// Reads the list of updates; gives also what was read after it, and the rest of the body.
async fn read_list(body: Body) -> Result<(CommandList, Vec<u8>, Body), Denied> {
    let mut parser = Parser::default();
    let mut stream = body.into_data_stream();
    loop {
        let chunk = timeout(BODY_IDLE_MAX, stream.next()).await;
        let chunk = chunk.map_err(|_| slow())?;
        let Some(Ok(chunk)) = chunk else {
            let message = "the push ends within its list of ref updates";
            return Err(Denied::new(StatusCode::BAD_REQUEST, message));
        };
        match parser.push(&chunk) {
            Ok(None) => {}
            Ok(Some((list, rest))) => return Ok((list, rest, Body::from_stream(stream))),
            Err(error) => return Err(Denied::new(StatusCode::BAD_REQUEST, &error.to_string())),
        }
    }
}

fn slow() -> Denied {
    Denied::new(StatusCode::REQUEST_TIMEOUT, "the body stopped coming")
}

/// Reads and forgets the rest of a refused push: git reads an answer only after it has sent all.
async fn drain(body: Body, bytes_max: u64) -> Result<(), Denied> {
    let mut left = bytes_max;
    let mut stream = pin!(body.into_data_stream());
    while let Some(chunk) = timeout(BODY_IDLE_MAX, stream.next())
        .await
        .map_err(|_| slow())?
    {
        let message = "the push is too large";
        let too_large = || Denied::new(StatusCode::PAYLOAD_TOO_LARGE, message);
        // A client that went away needs no answer.
        let Ok(chunk) = chunk else { break };
        left = left.checked_sub(chunk.len() as u64).ok_or_else(too_large)?;
    }
    Ok(())
}

/// A push that is refused whole, and why.
enum Refused {
    /// The credential gives no scope.
    Credential(Denied),
    /// Some updates are not allowed; one entry an update, in order.
    Updates(Vec<Result<(), Refusal>>),
}

/// Checks every update of a push.
fn decide(scope: Result<Scope, Denied>, list: &CommandList) -> Result<Scope, Refused> {
    let scope = scope.map_err(Refused::Credential)?;
    let check = |c: &super::pktline::Command| decide_update(&scope, &c.refname, &c.old, &c.new);
    let decisions: Vec<_> = list.commands.iter().map(check).collect();
    if decisions.iter().any(Result::is_err) {
        return Err(Refused::Updates(decisions));
    }
    Ok(scope)
}

impl Refused {
    fn first(&self) -> String {
        match self {
            Self::Credential(Denied(_, message)) => message.clone(),
            Self::Updates(decisions) => decisions
                .iter()
                .find_map(|decision| decision.as_ref().err())
                .map(ToString::to_string)
                .unwrap_or_default(),
        }
    }

    /// The answer that git shows ref by ref, or a plain one if the client wants no report.
    fn answer(self, list: &CommandList) -> Result<Response, Denied> {
        let first = self.first();
        let reasons: Vec<String> = match &self {
            Self::Credential(_) => Vec::new(),
            Self::Updates(decisions) => decisions.iter().map(reason).collect(),
        };
        let report = list.refuse(|command| {
            let position = list.commands.iter().position(|other| other == command);
            let reason = position.and_then(|position| reasons.get(position));
            reason.unwrap_or(&first).clone()
        });
        match (report, self) {
            (Some(report), _) if !list.commands.is_empty() => Ok(result(report)),
            (_, Self::Credential(denied)) => Err(denied),
            (_, Self::Updates(_)) => Err(Denied(StatusCode::FORBIDDEN, first)),
        }
    }
}

fn reason(decision: &Result<(), Refusal>) -> String {
    match decision {
        Ok(()) => "another ref of this push was refused".to_owned(),
        Err(refusal) => refusal.to_string(),
    }
}

fn result(body: Vec<u8>) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            "application/x-git-receive-pack-result",
        ),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, body).into_response()
}
