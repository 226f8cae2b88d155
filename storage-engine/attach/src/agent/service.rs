//! The agent over gRPC on its private Unix socket.

use std::net::SocketAddr;

use curve_wire::proto::agent_server::{Agent as AgentRpc, AgentServer};
use curve_wire::proto::{
    AttachBlockRequest, AttachBlockResponse, DetachBlockRequest, DetachBlockResponse,
    ListAttachmentsRequest, ListAttachmentsResponse, ResizeBlockRequest, ResizeBlockResponse,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::{Agent, AgentError};

/// Calls of one connection at a time; the node plugin has one per volume.
const CALLS_MAX: usize = 64;

/// Translates calls and nothing else.
pub struct AgentService {
    agent: Agent,
    listen_metrics: Option<SocketAddr>,
}

impl AgentService {
    /// `listen_metrics` is what it says of the process: where that serves metrics.
    pub fn new(agent: Agent, listen_metrics: Option<SocketAddr>) -> Self {
        Self { agent, listen_metrics }
    }

    /// Serves until `stop` resolves and the calls under way are answered.
    pub async fn serve(
        self,
        listener: UnixListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        tonic::transport::Server::builder()
            .concurrency_limit_per_connection(CALLS_MAX)
            .add_service(AgentServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
            .await
    }
}

#[tonic::async_trait]
impl AgentRpc for AgentService {
    async fn attach_block(
        &self,
        request: Request<AttachBlockRequest>,
    ) -> Result<Response<AttachBlockResponse>, Status> {
        let attached = self.agent.attach(request.into_inner()).await?;
        Ok(Response::new(AttachBlockResponse {
            device: attached.device,
            size: attached.size,
            epoch: attached.epoch,
            transport: attached.transport,
        }))
    }

    async fn detach_block(
        &self,
        request: Request<DetachBlockRequest>,
    ) -> Result<Response<DetachBlockResponse>, Status> {
        let handle = request.get_ref().volume_handle.parse().map_err(AgentError::from)?;
        self.agent.detach(handle).await?;
        Ok(Response::new(DetachBlockResponse {}))
    }

    async fn resize_block(
        &self,
        request: Request<ResizeBlockRequest>,
    ) -> Result<Response<ResizeBlockResponse>, Status> {
        let handle = request.get_ref().volume_handle.parse().map_err(AgentError::from)?;
        let size = self.agent.resize(handle).await?;
        Ok(Response::new(ResizeBlockResponse { size }))
    }

    async fn list_attachments(
        &self,
        _request: Request<ListAttachmentsRequest>,
    ) -> Result<Response<ListAttachmentsResponse>, Status> {
        let attachments = self.agent.list().await;
        let listen_metrics = self.listen_metrics.map(|address| address.to_string());
        let listen_metrics = listen_metrics.unwrap_or_default();
        Ok(Response::new(ListAttachmentsResponse { attachments, listen_metrics }))
    }
}
