//! Authentication in front of everything that is served.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, WWW_AUTHENTICATE},
};
use jiff::Timestamp;

use super::places::Connection;
use crate::auth::{Authenticator, Refusal, Unverified};

const HEALTH: &str = "/healthz";
const GIT: &str = "/git/";

/// A path that is served without a credential.
///
/// Paths are compared as they were sent, which is also how they are routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenPath {
    /// This path and no other.
    Exact(&'static str),
    /// Every path that starts so; it should end in `/`.
    Below(&'static str),
}

impl OpenPath {
    fn holds(self, path: &str) -> bool {
        match self {
            Self::Exact(open) => path == open,
            Self::Below(open) => path.starts_with(open),
        }
    }
}

/// Lets requests pass whose sender is proven, and refuses the others in their own language.
///
/// `/healthz` and gRPC's health service are open; everything else needs a credential unless
/// [`Gate::open`] names it. Refused gRPC calls get `UNAUTHENTICATED`, refused git requests a
/// challenge that makes git ask its credential helper, and all others a 401 with the reason.
#[derive(Clone, Debug)]
pub struct Gate {
    auth: Arc<Authenticator>,
    open: Vec<OpenPath>,
}

impl Gate {
    /// Makes a gate with only the health paths open.
    pub fn new(auth: Arc<Authenticator>) -> Self {
        let open = vec![
            OpenPath::Exact(HEALTH),
            OpenPath::Below("/grpc.health.v1.Health/"),
        ];
        Self { auth, open }
    }

    /// Opens one more path, for things like the dashboard's static files.
    #[must_use]
    pub fn open(mut self, path: OpenPath) -> Self {
        self.open.push(path);
        self
    }

    /// Puts the gate in front of all routes of `router`, and adds `/healthz`.
    ///
    /// Paths that no route serves are behind the gate too, so strangers cannot find out which
    /// exist; known senders get gRPC's `UNIMPLEMENTED` or a 404. This takes the place of any
    /// fallback of `router`.
    pub fn guard(self, router: Router) -> Router {
        router
            .route(HEALTH, get(|| async { "ok\n" }))
            .fallback(nowhere)
            .layer(middleware::from_fn_with_state(Arc::new(self), pass))
    }
}

async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    match gate.auth.authenticate(request.headers(), Timestamp::now()) {
        Ok(identity) => {
            if let Some(connection) = request.extensions().get::<Connection>()
                && let Err(full) = connection.authenticated(&identity)
            {
                return no_room(&request, &full.to_string());
            }
            request.extensions_mut().insert(identity);
        }
        Err(_)
            if gate
                .open
                .iter()
                .any(|open| open.holds(request.uri().path())) => {}
        Err(refusal) => {
            if let Some(connection) = request.extensions().get::<Connection>() {
                connection.refused();
            }
            return refuse(&request, &refusal);
        }
    }
    next.run(request).await
}

async fn nowhere(request: Request) -> Response {
    if let Some(kind) = grpc_type(&request) {
        return grpc_answer(
            tonic::Status::unimplemented("no service has this method"),
            kind,
        );
    }
    let mut response = Response::new(Body::from("nothing is served here\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn no_room(request: &Request, message: &str) -> Response {
    if let Some(kind) = grpc_type(request) {
        return grpc_answer(tonic::Status::resource_exhausted(message), kind);
    }
    let mut response = Response::new(Body::from(format!("muster: {message}\n")));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

fn refuse(request: &Request, refusal: &Refusal) -> Response {
    let (broken, message) = match refusal {
        Refusal::Token(Unverified::Store(error)) => {
            let error: &dyn std::error::Error = error;
            tracing::error!(error, "token could not be verified");
            (
                true,
                "tokens cannot be verified at the moment; try again".to_owned(),
            )
        }
        Refusal::Missing | Refusal::Malformed | Refusal::Token(_) => (false, refusal.to_string()),
    };
    if let Some(kind) = grpc_type(request) {
        let status = if broken {
            tonic::Status::unavailable(message)
        } else {
            tonic::Status::unauthenticated(message)
        };
        return grpc_answer(status, kind);
    }
    let mut response = Response::new(Body::from(format!("{message}\n")));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if broken {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    }
    let challenge = if request.uri().path().starts_with(GIT) {
        "Basic realm=\"muster\", charset=\"UTF-8\""
    } else {
        "Bearer realm=\"muster\""
    };
    headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

/// Returns the content type of a gRPC or gRPC-Web request.
fn grpc_type(request: &Request) -> Option<&HeaderValue> {
    let kind = request.headers().get(CONTENT_TYPE)?;
    kind.as_bytes()
        .starts_with(b"application/grpc")
        .then_some(kind)
}

/// Answers with a status alone; `kind` is repeated since a browser's client takes only its own.
fn grpc_answer(status: tonic::Status, kind: &HeaderValue) -> Response {
    let mut response: Response = status.into_http();
    response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    response
}
