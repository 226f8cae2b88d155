//! The agent, over its Unix socket. Connects anew after the agent has restarted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use curve_wire::proto;
use curve_wire::proto::agent_client::AgentClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{AttachError, AttachService, Attachment};
use crate::capability::Sharing;
use crate::handle::{ClusterName, VolumeHandle};

/// Longer than the agent needs to open a session, fence an older one and set up a device.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Client of the agent of this node.
pub struct Agent {
    client: AgentClient<Channel>,
    socket: PathBuf,
}

impl Agent {
    /// Does not wait for the agent: the first call connects.
    pub fn new(socket: &Path) -> Self {
        let channel = crate::server::unix_channel(
            Endpoint::from_static("http://localhost")
                .timeout(CALL_TIMEOUT)
                .connect_timeout(CONNECT_TIMEOUT),
            socket,
        );
        Self { client: AgentClient::new(channel), socket: socket.to_owned() }
    }

    fn error(&self, status: &Status) -> AttachError {
        let text = status.message().to_owned();
        match status.code() {
            Code::NotFound => AttachError::Missing(text),
            Code::FailedPrecondition | Code::PermissionDenied | Code::AlreadyExists => {
                AttachError::Refused(text)
            }
            Code::InvalidArgument | Code::OutOfRange => AttachError::Invalid(text),
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => {
                AttachError::Unavailable(format!("agent at {}: {text}", self.socket.display()))
            }
            Code::Ok
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => AttachError::Failed(text),
        }
    }
}

#[async_trait]
impl AttachService for Agent {
    async fn attach(
        &self,
        cluster: &ClusterName,
        handle: VolumeHandle,
        sharing: Sharing,
    ) -> Result<Attachment, AttachError> {
        let request = proto::AttachBlockRequest {
            cluster: cluster.to_string(),
            volume_handle: handle.to_string(),
            read_only: sharing.read_only,
            shared: sharing.shared,
        };
        let response = self.client.clone().attach_block(request).await;
        let response = response.map_err(|status| self.error(&status))?.into_inner();
        Ok(Attachment { handle, device: response.device.into(), size: response.size })
    }

    async fn detach(&self, handle: VolumeHandle) -> Result<(), AttachError> {
        let request = proto::DetachBlockRequest { volume_handle: handle.to_string() };
        let response = self.client.clone().detach_block(request).await;
        response.map(|_| ()).map_err(|status| self.error(&status))
    }

    async fn resize(&self, handle: VolumeHandle) -> Result<u64, AttachError> {
        let request = proto::ResizeBlockRequest { volume_handle: handle.to_string() };
        let response = self.client.clone().resize_block(request).await;
        Ok(response.map_err(|status| self.error(&status))?.into_inner().size)
    }

    async fn list(&self) -> Result<Vec<Attachment>, AttachError> {
        let response = self.client.clone().list_attachments(proto::ListAttachmentsRequest {}).await;
        let response = response.map_err(|status| self.error(&status))?.into_inner();
        let read = |found: proto::Attachment| {
            let handle = found.volume_handle.parse().map_err(|error| {
                AttachError::Failed(format!("the agent lists an attachment whose {error}"))
            })?;
            Ok(Attachment { handle, device: found.device.into(), size: found.size })
        };
        response.attachments.into_iter().map(read).collect()
    }
}
