//! Why the agent did not do what was asked, and the gRPC code of each reason.

use curve_client::{BlockError, MdsError, MdsErrorKind};
use curve_types::ClusterId;
use curve_wire::with_causes;
use thiserror::Error;
use tonic::{Code, Status};

use super::{ClusterName, ParseNameError, SourceError, StateError, VolumeHandle};
use crate::fuse_loop::FuseLoopError;

#[derive(Debug, Error)]
pub enum AgentError {
    #[error(transparent)]
    Name(#[from] ParseNameError),
    #[error("connection of cluster {0} does not exist: is there such a CurveCluster?")]
    UnknownCluster(ClusterName),
    #[error("volume {handle} does not belong to cluster {name}, whose id is {id}")]
    OtherCluster { handle: VolumeHandle, name: ClusterName, id: ClusterId },
    #[error("find the cluster's connection")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Mds(#[from] MdsError),
    #[error("open the volume")]
    Open(#[source] BlockError),
    #[error("ask for the volume's size")]
    Size(#[source] BlockError),
    #[error("volume {handle} is attached {existing}, which is not what was asked for now")]
    OtherMode { handle: VolumeHandle, existing: &'static str },
    #[error("volume {0} is not attached here")]
    NotAttached(VolumeHandle),
    #[error("make or remove the device")]
    Device(#[from] FuseLoopError),
    #[error("keep the attachment's record")]
    State(#[from] StateError),
    #[error("the agent is stopping")]
    Stopping,
}

impl AgentError {
    fn code(&self) -> Code {
        match self {
            Self::Name(_) => Code::InvalidArgument,
            Self::UnknownCluster(_) | Self::NotAttached(_) => Code::NotFound,
            Self::OtherCluster { .. } | Self::OtherMode { .. } => Code::FailedPrecondition,
            Self::Source(error) => match error {
                SourceError::Fetch { .. } => Code::Unavailable,
                SourceError::Read { .. }
                | SourceError::Config { .. }
                | SourceError::Content { .. } => Code::Internal,
            },
            Self::Mds(error) => match error.kind {
                MdsErrorKind::NotFound => Code::NotFound,
                MdsErrorKind::AlreadyExists => Code::AlreadyExists,
                MdsErrorKind::FailedPrecondition => Code::FailedPrecondition,
                MdsErrorKind::Exhausted => Code::ResourceExhausted,
                MdsErrorKind::InvalidArgument => Code::InvalidArgument,
                MdsErrorKind::PermissionDenied => Code::PermissionDenied,
                MdsErrorKind::Unavailable => Code::Unavailable,
                MdsErrorKind::Internal => Code::Internal,
            },
            Self::Open(error) | Self::Size(error) => match error {
                BlockError::Unavailable { .. } => Code::Unavailable,
                BlockError::Fenced => Code::FailedPrecondition,
                BlockError::Deleted => Code::NotFound,
                BlockError::NoSpace
                | BlockError::OutOfRange { .. }
                | BlockError::ReadOnly
                | BlockError::Damaged
                | BlockError::Refused { .. }
                | BlockError::Closed => Code::Internal,
            },
            Self::Device(FuseLoopError::Busy { .. }) => Code::FailedPrecondition,
            Self::Device(FuseLoopError::Gone { .. }) => Code::NotFound,
            Self::Device(_) | Self::State(_) => Code::Internal,
            Self::Stopping => Code::Unavailable,
        }
    }
}

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Self {
        Self::new(error.code(), with_causes(&error))
    }
}
