//! Hands out the worker's program, so that machines that start from nothing run the version that
//! their coordinator is.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;
use tracing::warn;

use super::places::Connection;

/// What all its paths begin with; the architecture follows, as `uname -m` says it. Open to everybody:
/// it holds no secret, and who asks for it has none yet.
pub(crate) const PATH: &str = "/worker-agent/";
/// Downloads at one time; others are told to come back.
const AT_ONCE: usize = 32;
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

#[derive(Clone)]
struct Program {
    path: PathBuf,
    places: Arc<Semaphore>,
}

/// Longest name of an architecture.
const NAME_BYTES_MAX: usize = 32;

/// Serves `worker-agent-ARCHITECTURE` beside the executable at `path`, and that itself for the
/// architecture that this is: under the name `worker-agent` it is one.
pub(crate) fn router(path: PathBuf) -> Router {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    Router::new()
        .route(&format!("{PATH}{{architecture}}"), get(serve))
        .with_state(Program { path, places })
}

async fn serve(
    State(program): State<Program>,
    connection: Option<Extension<Connection>>,
    Path(architecture): Path<String>,
) -> Response {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if architecture.len() > NAME_BYTES_MAX || !architecture.bytes().all(plain) {
        return (StatusCode::NOT_FOUND, "that is no architecture\n").into_response();
    }
    let beside = program
        .path
        .with_file_name(format!("worker-agent-{architecture}"));
    let path = if tokio::fs::try_exists(&beside).await.unwrap_or(false) {
        beside
    } else if architecture == std::env::consts::ARCH {
        program.path
    } else {
        let said = format!(
            "this coordinator has no worker-agent-{architecture} beside its own program, which is for {}\n",
            std::env::consts::ARCH
        );
        return (StatusCode::NOT_FOUND, said).into_response();
    };
    let Ok(place) = program.places.try_acquire_owned() else {
        let headers = [(RETRY_AFTER, RETRY_SECONDS)];
        let said = "too many downloads at once\n";
        return (StatusCode::SERVICE_UNAVAILABLE, headers, said).into_response();
    };
    let opened = async {
        let file = tokio::fs::File::open(&path).await?;
        let bytes = file.metadata().await?.len();
        Ok::<_, std::io::Error>((file, bytes))
    };
    match opened.await {
        Ok((file, bytes)) => {
            let stream = ReaderStream::with_capacity(file, 64 * 1024);
            let stream = futures::StreamExt::map(stream, move |chunk| {
                // Kept until the last byte.
                let _ = &place;
                if let Some(Extension(connection)) = &connection {
                    connection.takes();
                }
                chunk
            });
            let kind = HeaderValue::from_static("application/octet-stream");
            let headers = [(CONTENT_TYPE, kind), (CONTENT_LENGTH, bytes.into())];
            (headers, Body::from_stream(stream)).into_response()
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "failed to hand out this program");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn the_worker_of_an_architecture_is_handed_out_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("coordinator");
        std::fs::write(&own, "this one").unwrap();
        std::fs::write(folder.path().join("worker-agent-riscv64"), "another").unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        let router = router(own.clone());
        let here = format!("{PATH}{}", std::env::consts::ARCH);
        assert_eq!(
            get(&router, &here).await,
            (StatusCode::OK, "this one".to_owned())
        );
        let found = get(&router, "/worker-agent/riscv64").await;
        assert_eq!(found, (StatusCode::OK, "another".to_owned()));
        for other in [
            "sparc",
            "%2e%2e%2fsecret",
            "x86_64%2f..%2f..%2fsecret",
            "%00",
            "",
        ] {
            let (status, text) = get(&router, &format!("{PATH}{other}")).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{other}: {text}");
        }
        std::fs::remove_file(own).unwrap();
        assert_eq!(
            get(&router, &here).await.0,
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
}
