//! Every way an RPC can fail, and the gRPC code that the CSI specification gives it. The match in
//! `code` is the only place where codes are chosen.

use thiserror::Error;
use tonic::{Code, Status};

use crate::attachments::AttachError;
use crate::clusters::SourceError;
use crate::node::filesystem::FilesystemError;
use crate::node::mounts::MountError;
use crate::volumes::VolumeError;

/// Why an RPC was not carried out. Texts reach the user as Kubernetes events, so they name the
/// field, the value and what would be accepted.
#[derive(Debug, Error)]
pub enum CsiError {
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    #[error("{what} does not exist")]
    Missing { what: String },
    #[error("{what} exists already, but {difference}")]
    Exists { what: String, difference: String },
    #[error("{field}: {reason}")]
    OutOfRange { field: &'static str, reason: String },
    #[error("{what}: {reason}")]
    Exhausted { what: String, reason: String },
    /// Published on another node for its exclusive use.
    #[error("volume {volume} is in use by node {nodes}, which must let go of it first")]
    PublishedElsewhere { volume: String, nodes: String },
    #[error("{reason}")]
    Precondition { reason: String },
    #[error("starting_token {token:?} was not given out by {rpc}: start again without one")]
    Token { rpc: &'static str, token: String },
    /// To be asked for again: what was begun goes on from where it is.
    #[error("{what}: {reason}")]
    Pending { what: String, reason: String },
    #[error("{waiting} operations wait for volume {volume} already")]
    Busy { volume: String, waiting: usize },
    #[error(
        "no connection to a cluster {cluster}: its operator has not made one, known are {known}"
    )]
    UnknownCluster { cluster: String, known: String },
    #[error("{step} did not answer within {seconds} s")]
    Timeout { step: &'static str, seconds: u64 },
    #[error("find the cluster's connection")]
    Source(#[from] SourceError),
    #[error("ask the MDS to {step}")]
    Volume { step: &'static str, source: VolumeError },
    #[error("ask the node's agent to {step}")]
    Attach { step: &'static str, source: AttachError },
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
}

impl CsiError {
    /// A field of the request that is missing or cannot be.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    /// For `map_err` on calls of a `VolumeService`.
    pub fn volume(step: &'static str) -> impl Fn(VolumeError) -> Self {
        move |source| Self::Volume { step, source }
    }

    /// For `map_err` on calls of an `AttachService`.
    pub fn attach(step: &'static str) -> impl Fn(AttachError) -> Self {
        move |source| Self::Attach { step, source }
    }

    /// Whether the MDS has no such volume or snapshot.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Volume { source: VolumeError::Missing(_), .. })
    }

    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Missing { .. } => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::OutOfRange { .. } => Code::OutOfRange,
            Self::Exhausted { .. } => Code::ResourceExhausted,
            Self::PublishedElsewhere { .. } | Self::Precondition { .. } => Code::FailedPrecondition,
            Self::Token { .. } | Self::Pending { .. } | Self::Busy { .. } => Code::Aborted,
            Self::UnknownCluster { .. } | Self::Source(_) => Code::Unavailable,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Volume { source, .. } => match source {
                VolumeError::Missing(_) => Code::NotFound,
                VolumeError::Exists(_) => Code::AlreadyExists,
                VolumeError::Refused(_) => Code::FailedPrecondition,
                VolumeError::Full(_) => Code::ResourceExhausted,
                VolumeError::Invalid(_) => Code::InvalidArgument,
                VolumeError::Unavailable(_) => Code::Unavailable,
                VolumeError::Untrusted(_) => Code::Unauthenticated,
                VolumeError::Failed(_) => Code::Internal,
            },
            Self::Attach { source, .. } => match source {
                AttachError::Missing(_) => Code::NotFound,
                AttachError::Refused(_) => Code::FailedPrecondition,
                AttachError::Invalid(_) => Code::InvalidArgument,
                AttachError::Unavailable(_) => Code::Unavailable,
                AttachError::Failed(_) => Code::Internal,
            },
            Self::Mount(_) => Code::Internal,
            Self::Filesystem(error) => match error {
                FilesystemError::Foreign { .. }
                | FilesystemError::OtherType { .. }
                | FilesystemError::BlankReadOnly { .. } => Code::FailedPrecondition,
                FilesystemError::Read { .. }
                | FilesystemError::Start { .. }
                | FilesystemError::Tool { .. } => Code::Internal,
            },
        }
    }
}

impl From<CsiError> for Status {
    fn from(error: CsiError) -> Self {
        Self::new(error.code(), curve_wire::with_causes(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_the_whole_chain() {
        let source = VolumeError::Full("pool default has 1 GiB left, 2 GiB asked".to_owned());
        let status = Status::from(CsiError::volume("create volume pvc-1")(source));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "ask the MDS to create volume pvc-1: pool default has 1 GiB left, 2 GiB asked"
        );
    }
}
