//! The Node service: one file per RPC, each parse, plan, execute. This file only routes.
//!
//! Nothing is remembered between calls: what is attached is asked of the agent, what is mounted of
//! the kernel.

pub mod expand_volume;
pub mod filesystem;
pub mod get_info;
pub mod get_stats;
pub mod mounts;
pub mod publish_volume;
pub mod stage_volume;
pub mod unpublish_volume;
pub mod unstage_volume;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use csi_proto::csi::v1::node_server::Node;
use csi_proto::csi::v1::node_service_capability::rpc::Type as Capability;
use csi_proto::csi::v1::{self as csi, NodeServiceCapability, node_service_capability};
use tonic::{Request, Response, Status};

use crate::attachments::{AttachService, Attachment};
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::identity::Readiness;
use crate::rpc::Rpcs;

/// What node RPCs work with.
pub struct Context {
    pub agent: Arc<dyn AttachService>,
    pub node_id: String,
    /// Told to the scheduler; 0 leaves it to Kubernetes.
    pub volumes_max: u32,
}

impl Context {
    /// The volume's attachment, if it is attached to this node.
    async fn attachment(&self, handle: VolumeHandle) -> Result<Option<Attachment>, CsiError> {
        let all = self.agent.list().await.map_err(CsiError::attach("list its attachments"))?;
        Ok(all.into_iter().find(|attachment| attachment.handle == handle))
    }
}

#[async_trait]
impl Readiness for Context {
    async fn check(&self) -> Result<(), CsiError> {
        self.agent.list().await.map_err(CsiError::attach("list its attachments"))?;
        Ok(())
    }
}

/// A volume id that the request must carry; what is no handle of ours names no volume.
fn parse_handle(id: &str) -> Result<VolumeHandle, CsiError> {
    if id.is_empty() {
        return Err(CsiError::invalid("volume_id", "is missing"));
    }
    id.parse().map_err(|error| CsiError::Missing { what: format!("volume: {error}; it") })
}

/// A path that the request must carry.
fn parse_path(field: &'static str, text: &str) -> Result<PathBuf, CsiError> {
    if text.is_empty() {
        return Err(CsiError::invalid(field, "is missing"));
    }
    if !Path::new(text).is_absolute() {
        return Err(CsiError::invalid(field, format!("{text:?} is not an absolute path")));
    }
    Ok(text.into())
}

/// Runs what blocks: mount table, system calls that wait for the device.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CsiError> + Send + 'static,
) -> Result<T, CsiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Implements the service.
pub struct NodeService {
    rpcs: Rpcs,
    context: Arc<Context>,
}

impl NodeService {
    pub fn new(rpcs: Rpcs, context: Arc<Context>) -> Self {
        Self { rpcs, context }
    }
}

/// What is implemented.
const CAPABILITIES: [Capability; 4] = [
    Capability::StageUnstageVolume,
    Capability::GetVolumeStats,
    Capability::ExpandVolume,
    Capability::SingleNodeMultiWriter,
];

/// An RPC that changes what a volume is on this node; such calls queue per volume.
macro_rules! change {
    ($self:ident, $request:ident, $name:literal, $run:path) => {{
        let request = $request.into_inner();
        let (volume, context) = (request.volume_id.clone(), $self.context.clone());
        let work = $run(context, request.clone());
        $self.rpcs.change($name, &volume, &request, work).await
    }};
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        change!(self, request, "NodeStageVolume", stage_volume::stage_volume)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        change!(self, request, "NodeUnstageVolume", unstage_volume::unstage_volume)
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        change!(self, request, "NodePublishVolume", publish_volume::publish_volume)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        change!(self, request, "NodeUnpublishVolume", unpublish_volume::unpublish_volume)
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        change!(self, request, "NodeExpandVolume", expand_volume::expand_volume)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.rpcs.read("NodeGetVolumeStats", &volume, get_stats::get_stats(request)).await
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let capabilities = CAPABILITIES.map(|kind| {
            let rpc = node_service_capability::Rpc { r#type: kind.into() };
            NodeServiceCapability { r#type: Some(node_service_capability::Type::Rpc(rpc)) }
        });
        let response = csi::NodeGetCapabilitiesResponse { capabilities: capabilities.to_vec() };
        self.rpcs.read("NodeGetCapabilities", "", async { Ok(response) }).await
    }

    async fn node_get_info(
        &self,
        _request: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let response = get_info::get_info(&self.context);
        self.rpcs.read("NodeGetInfo", "", async { Ok(response) }).await
    }
}
