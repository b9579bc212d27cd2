//! The door for watches: their responses go out as they were made, past the encoder of the other
//! calls, which would make a copy for each watcher.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use muster_proto::v1::WatchRunRequest;
use tonic::Status;
use tonic::codec::{Codec as _, Streaming};
use tonic_prost::ProstCodec;

use super::frames::Sent;
use super::limits::REQUEST_BYTES;
use super::operator_service::Operators;

/// Answers one call of `WatchRun`.
pub async fn watch_run(State(operators): State<Arc<Operators>>, request: Request) -> Response {
    match begin(&operators, request).await {
        Ok(sent) => {
            let mut response = Response::new(Body::new(sent));
            let kind = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(status) => status.into_http(),
    }
}

async fn begin(operators: &Operators, request: Request) -> Result<Sent, Status> {
    let (parts, body) = request.into_parts();
    let decoder = ProstCodec::<(), WatchRunRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, None, Some(REQUEST_BYTES));
    let message = messages.message().await?;
    let message = message.ok_or_else(|| Status::internal("the request has no message"))?;
    let mut request = tonic::Request::new(message);
    *request.extensions_mut() = parts.extensions;
    operators.watch(request)
}
