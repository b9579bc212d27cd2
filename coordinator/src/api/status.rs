//! Errors as gRPC answers: one exhaustive map.

use coordinator_core::Rejection;
use muster_proto::v1::ProtocolVersion;
use muster_proto::{PROTOCOL_MAJOR, PROTOCOL_MINOR};
use tonic::{Code, Status};
use tracing::{error, warn};

use crate::engine::{self, ReadError};

/// Metadata key under which a refusal's stable code travels.
pub const CODE_KEY: &str = "muster-code";

/// Maps an engine's error.
#[must_use]
pub fn of(error: engine::Error) -> Status {
    match error {
        engine::Error::Rejected(rejection) => of_rejection(&rejection),
        engine::Error::Stopped => Status::unavailable("the coordinator is stopping"),
        engine::Error::Store(error) if error.is_of_disk() => {
            let reason = match std::error::Error::source(&*error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            warn!(
                error = reason,
                "refused a request, since the disk takes nothing"
            );
            Status::resource_exhausted(format!(
                "the coordinator can keep nothing new: {reason}; free some space on the disk of its \
                 home, or mend it, and try again"
            ))
        }
        engine::Error::Store(error) => internal(&*error),
    }
}

/// Maps a refusal of the core.
#[must_use]
pub fn of_rejection(rejection: &Rejection) -> Status {
    let code = match rejection {
        Rejection::InvalidPlan(_) | Rejection::Answer(_) => Code::InvalidArgument,
        Rejection::UnknownTarget
        | Rejection::UnknownWorker(_)
        | Rejection::UnknownPool(_)
        | Rejection::UnknownQuestion(_) => Code::NotFound,
        Rejection::KeyReused { .. } | Rejection::RunNameTaken(_) => Code::AlreadyExists,
        Rejection::SessionSuperseded { .. } | Rejection::NotNow(_) => Code::FailedPrecondition,
        Rejection::Limit { .. } => Code::ResourceExhausted,
        Rejection::StepStale => Code::Aborted,
    };
    let mut status = Status::new(code, rejection.to_string());
    if let Ok(value) = rejection.code().parse() {
        status.metadata_mut().insert(CODE_KEY, value);
    }
    status
}

/// Answers a peer of another major version, naming both.
#[must_use]
pub fn incompatible(theirs: &ProtocolVersion) -> Status {
    Status::failed_precondition(format!(
        "protocol versions do not match: the coordinator speaks {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}, \
         {:?} speaks {}.{}; install the same major version on both sides",
        super::convert::clip(&theirs.software, 100),
        theirs.major,
        theirs.minor
    ))
}

/// Hides a fault of our own behind a short answer; its chain goes to the log.
#[must_use]
pub fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain.push_str(": ");
        chain.push_str(&cause.to_string());
        source = cause.source();
    }
    error!(error = %chain, "failed to answer a request");
    Status::internal("the coordinator failed to answer; its log says why")
}

/// Maps a failed read of the store.
#[must_use]
pub fn of_read(error: ReadError) -> Status {
    match error {
        ReadError::Store(error) => internal(&error),
        ReadError::GivenUp => Status::unavailable("the coordinator is stopping"),
    }
}
