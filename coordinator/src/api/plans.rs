//! The door for plans: they are the only large requests, so few are let in at once.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;

use super::limits::{PLAN_TIME, PLANS_AT_ONCE, PLANS_WAITING};
use crate::auth::{Access, Identity};

/// Places for plans that are being taken in, and for those that wait.
#[derive(Debug)]
pub struct Plans {
    reading: Semaphore,
    waiting: Semaphore,
    time_max: Duration,
}

impl Default for Plans {
    fn default() -> Self {
        Self {
            reading: Semaphore::new(PLANS_AT_ONCE),
            waiting: Semaphore::new(PLANS_AT_ONCE + PLANS_WAITING),
            time_max: PLAN_TIME,
        }
    }
}

/// Lets a plan in when its turn has come; nothing of it is read before.
pub async fn admit(State(plans): State<Arc<Plans>>, request: Request, next: Next) -> Response {
    match turn(&plans, request, next).await {
        Ok(response) => response,
        Err(status) => status.into_http(),
    }
}

async fn turn(plans: &Plans, request: Request, next: Next) -> Result<Response, Status> {
    Identity::of(request.extensions())?.require(Access::Operate)?;
    let _waits = plans.waiting.try_acquire().map_err(|_| {
        Status::resource_exhausted(format!(
            "plans: {PLANS_WAITING} wait for their turn already; try again later"
        ))
    })?;
    let stopping = |_| Status::unavailable("the coordinator is stopping");
    let _reads = plans.reading.acquire().await.map_err(stopping)?;
    let taken_in = timeout(plans.time_max, next.run(request));
    taken_in.await.map_err(|_| {
        Status::deadline_exceeded(format!(
            "plan: it was not here whole and checked within {} seconds",
            plans.time_max.as_secs()
        ))
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::post;
    use axum::{Router, middleware};
    use tower::ServiceExt as _;

    use super::*;

    fn submission(identity: Identity) -> Request {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = http::Method::POST;
        request.extensions_mut().insert(identity);
        request
    }

    #[tokio::test]
    async fn plans_beyond_those_that_may_wait_are_refused_by_name() {
        let plans = Arc::new(Plans {
            time_max: Duration::from_millis(500),
            ..Plans::default()
        });
        let never = || async { std::future::pending::<()>().await };
        let router = Router::new()
            .route("/", post(never))
            .layer(middleware::from_fn_with_state(Arc::clone(&plans), admit));
        let token = muster_connect::TokenId::from_bytes([1; 8]);
        let operator = || submission(Identity::Operator { token });
        let viewer = router
            .clone()
            .oneshot(submission(Identity::Viewer { token }));
        let refused = Status::from_header_map(viewer.await.unwrap().headers()).unwrap();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..PLANS_AT_ONCE + PLANS_WAITING {
            waiting.spawn(router.clone().oneshot(operator()));
        }
        while plans.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = router.oneshot(operator()).await.unwrap();
        let refused = Status::from_header_map(refused.headers()).unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("plans"), "{refused}");
        let slow = waiting.join_next().await.unwrap().unwrap().unwrap();
        let slow = Status::from_header_map(slow.headers()).unwrap();
        assert_eq!(slow.code(), tonic::Code::DeadlineExceeded);
    }
}
