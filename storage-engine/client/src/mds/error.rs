//! Why the MDS did not do what was asked.

use thiserror::Error;
use tonic::{Code, Status};

/// An answer that is an error, or no answer at all.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{step}: {message}")]
pub struct MdsError {
    /// What was asked, e.g. "create volume".
    pub step: &'static str,
    pub kind: MdsErrorKind,
    /// The server's words, or what kept it from being reached.
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MdsErrorKind {
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    /// A pool or a limit is full.
    Exhausted,
    InvalidArgument,
    PermissionDenied,
    /// No MDS with a leader answered in time. The call may or may not have taken effect.
    Unavailable,
    /// The MDS failed, or answered what this version does not understand.
    Internal,
}

impl MdsError {
    pub(crate) fn of_status(step: &'static str, status: &Status) -> Self {
        let kind = match status.code() {
            Code::NotFound => MdsErrorKind::NotFound,
            Code::AlreadyExists => MdsErrorKind::AlreadyExists,
            Code::FailedPrecondition => MdsErrorKind::FailedPrecondition,
            Code::ResourceExhausted => MdsErrorKind::Exhausted,
            Code::InvalidArgument | Code::OutOfRange => MdsErrorKind::InvalidArgument,
            Code::PermissionDenied | Code::Unauthenticated => MdsErrorKind::PermissionDenied,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
                MdsErrorKind::Unavailable
            }
            Code::Ok | Code::Unknown | Code::Internal | Code::Unimplemented | Code::DataLoss => {
                MdsErrorKind::Internal
            }
        };
        Self { step, kind, message: status.message().to_owned() }
    }

    pub(crate) fn malformed(step: &'static str, what: impl std::fmt::Display) -> Self {
        Self { step, kind: MdsErrorKind::Internal, message: what.to_string() }
    }

    pub(crate) fn config(message: String) -> Self {
        Self { step: "connect to the MDS", kind: MdsErrorKind::InvalidArgument, message }
    }

    pub(crate) fn unavailable(step: &'static str, message: String) -> Self {
        Self { step, kind: MdsErrorKind::Unavailable, message }
    }
}
