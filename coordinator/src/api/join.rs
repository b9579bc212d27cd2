//! Lets machines in that prove who they are.

use std::sync::Arc;
#[cfg(feature = "ec2")]
use std::sync::{Mutex, PoisonError};

use coordinator_core::AllocationId;
use muster_proto::v1;
use muster_proto::v1::join_service_server::JoinService;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::info;

#[cfg(feature = "ec2")]
use super::outbound::Told;
use super::status;
use crate::auth::Authenticator;
use crate::engine::Handle;

/// Path of the service, which nobody has a credential for.
pub(crate) const PATH: &str = "/muster.v1.JoinService/";
/// Proofs that are looked at at once: anybody may send them.
const PROOFS_AT_ONCE: usize = 16;

/// Answers claims.
#[derive(Clone)]
pub(crate) struct Joins {
    engine: Handle,
    auth: Arc<Authenticator>,
    #[cfg(feature = "ec2")]
    callers: Option<crate::pool::ec2::Callers>,
    places: Arc<Semaphore>,
    /// What is said of refused ones: anybody may be refused as often as he likes.
    #[cfg(feature = "ec2")]
    told: Arc<Mutex<Told>>,
}

impl Joins {
    pub(crate) fn new(engine: Handle, auth: Arc<Authenticator>) -> Self {
        Self {
            engine,
            auth,
            #[cfg(feature = "ec2")]
            callers: None,
            places: Arc::new(Semaphore::new(PROOFS_AT_ONCE)),
            #[cfg(feature = "ec2")]
            told: Arc::new(Mutex::new(Told::joins())),
        }
    }

    /// Lets instances of EC2 in.
    #[cfg(feature = "ec2")]
    #[must_use]
    pub(crate) fn with_callers(mut self, callers: Option<crate::pool::ec2::Callers>) -> Self {
        self.callers = callers;
        self
    }

    #[cfg(feature = "ec2")]
    async fn instance(&self, pool: &str, proof: &v1::InstanceProof) -> Result<String, Status> {
        let Some(callers) = &self.callers else {
            return Err(none());
        };
        callers.instance(pool, proof).await.map_err(|error| {
            let said = crate::causes::chain(&error);
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(untold) = told.tell(tokio::time::Instant::now()) {
                let pool = super::convert::clip(pool, 100);
                if error.passes() {
                    let what = "cannot find out which instance asks to be let in";
                    tracing::warn!(pool, error = said, untold, "{what}");
                } else {
                    info!(pool, error = said, untold, "an instance is not let in");
                }
            }
            match error.passes() {
                true => Status::unavailable(said),
                false => Status::permission_denied(said),
            }
        })
    }

    #[cfg(not(feature = "ec2"))]
    #[expect(clippy::unused_async, reason = "with EC2 it waits")]
    async fn instance(&self, _: &str, _: &v1::InstanceProof) -> Result<String, Status> {
        Err(none())
    }
}

fn none() -> Status {
    Status::permission_denied("this coordinator has no pool of EC2 instances")
}

#[tonic::async_trait]
impl JoinService for Joins {
    async fn claim(
        &self,
        request: Request<v1::ClaimRequest>,
    ) -> Result<Response<v1::ClaimResponse>, Status> {
        let request = request.into_inner();
        let Some(v1::claim_request::Proof::Instance(proof)) = &request.proof else {
            return Err(Status::invalid_argument("the claim comes without a proof"));
        };
        let Ok(_place) = self.places.try_acquire() else {
            return Err(Status::resource_exhausted(
                "too many claims at once; try again",
            ));
        };
        let instance = self.instance(&request.pool, proof).await?;
        let (pool, wanted) = (request.pool.clone(), instance.clone());
        let found = self.engine.query(move |state, _| {
            let mut held = state.allocations();
            held.find(|held| *held.pool == *pool && held.external.as_deref() == Some(&*wanted))
                .map(|held| held.id)
        });
        let Some(AllocationId(id)) = found.await.map_err(status::of)? else {
            return Err(Status::not_found(format!(
                "the inventory of the pool does not have {instance} (yet)"
            )));
        };
        info!(
            instance,
            allocation = id,
            "an instance has claimed its join token"
        );
        let token = self.auth.allocation_token(id).reveal();
        Ok(Response::new(v1::ClaimResponse { token }))
    }
}
