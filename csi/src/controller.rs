//! The Controller service: one file per RPC, each parse, plan, execute. This file only routes.

pub mod create_snapshot;
pub mod create_volume;
pub mod delete_snapshot;
pub mod delete_volume;
pub mod expand_volume;
pub mod get_capacity;
pub mod get_snapshot;
pub mod get_volume;
pub mod list_snapshots;
pub mod list_volumes;
pub mod modify_volume;
pub mod nodes;
pub mod page;
pub mod publish_volume;
pub mod snapshots;
pub mod unpublish_volume;
pub mod validate_capabilities;

use std::sync::Arc;

use async_trait::async_trait;
use csi_proto::csi::v1::controller_server::Controller;
use csi_proto::csi::v1::controller_service_capability::rpc::Type as Capability;
use csi_proto::csi::v1::{self as csi, ControllerServiceCapability, controller_service_capability};
use tonic::{Request, Response, Status};

use self::nodes::NodeDirectory;
use crate::clusters::{Cluster, Clusters};
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::identity::Readiness;
use crate::rpc::Rpcs;
use crate::volumes::VolumeInfo;
use crate::{TOPOLOGY_KEY, TOPOLOGY_VALUE};

/// What controller RPCs work with.
pub struct Context {
    pub clusters: Clusters,
    pub nodes: Box<dyn NodeDirectory>,
}

impl Context {
    /// The volume of a handle that must name one.
    async fn volume(&self, id: &str) -> Result<(VolumeHandle, Cluster, VolumeInfo), CsiError> {
        let handle = parse_existing(id)?;
        let cluster = self.clusters.by_id(handle.cluster).await?;
        let found = self.clusters.call(&cluster, "look up the volume", |service| async move {
            service.get(handle.volume).await
        });
        let info = found.await?;
        Ok((handle, cluster, info))
    }
}

#[async_trait]
impl Readiness for Context {
    async fn check(&self) -> Result<(), CsiError> {
        self.clusters.probe().await
    }
}

/// A volume id that the request must carry.
fn require_volume_id(id: &str) -> Result<(), CsiError> {
    if id.is_empty() { Err(CsiError::invalid("volume_id", "is missing")) } else { Ok(()) }
}

/// A handle of an existing volume: what is no handle of ours names no volume.
pub fn parse_existing(id: &str) -> Result<VolumeHandle, CsiError> {
    require_volume_id(id)?;
    id.parse().map_err(|error| CsiError::Missing { what: format!("volume: {error}; it") })
}

/// The only place from which a volume can be reached: see `TOPOLOGY_KEY`.
fn topology() -> csi::Topology {
    let segments = [(TOPOLOGY_KEY.to_owned(), TOPOLOGY_VALUE.to_owned())].into();
    csi::Topology { segments }
}

/// A volume as the orchestrator remembers it. `context` is what later calls carry.
fn to_csi(
    handle: VolumeHandle,
    info: &VolumeInfo,
    context: std::collections::HashMap<String, String>,
) -> csi::Volume {
    csi::Volume {
        capacity_bytes: info.size as i64,
        volume_id: handle.to_string(),
        volume_context: context,
        content_source: None,
        accessible_topology: vec![topology()],
    }
}

/// Implements the service.
pub struct ControllerService {
    rpcs: Rpcs,
    context: Arc<Context>,
}

impl ControllerService {
    pub fn new(rpcs: Rpcs, context: Arc<Context>) -> Self {
        Self { rpcs, context }
    }
}

/// What is implemented, and GetSnapshot, whose capability is alpha: csi-sanity 5.4, the suite of
/// CSI 1.12, takes it for an error.
const CAPABILITIES: [Capability; 13] = [
    Capability::CreateDeleteVolume,
    Capability::PublishUnpublishVolume,
    Capability::PublishReadonly,
    Capability::ListVolumes,
    Capability::ListVolumesPublishedNodes,
    Capability::GetCapacity,
    Capability::GetVolume,
    Capability::CreateDeleteSnapshot,
    Capability::ListSnapshots,
    Capability::CloneVolume,
    Capability::ExpandVolume,
    Capability::SingleNodeMultiWriter,
    Capability::ModifyVolume,
];

/// An RPC that changes a volume: `KEY` is the field whose value operations queue for.
macro_rules! change {
    ($self:ident, $request:ident, $name:literal, $key:ident, $run:path) => {{
        let request = $request.into_inner();
        let (key, context) = (request.$key.clone(), $self.context.clone());
        let work = $run(context, request.clone());
        $self.rpcs.change($name, &key, &request, work).await
    }};
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        change!(self, request, "CreateVolume", name, create_volume::create_volume)
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        change!(self, request, "DeleteVolume", volume_id, delete_volume::delete_volume)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let name = "ControllerPublishVolume";
        let request = request.into_inner();
        let work = publish_volume::publish_volume(self.context.clone(), request.clone());
        self.rpcs.change(name, &request.volume_id, &request, work).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let name = "ControllerUnpublishVolume";
        let request = request.into_inner();
        let work = unpublish_volume::unpublish_volume(self.context.clone(), request.clone());
        self.rpcs.change(name, &request.volume_id, &request, work).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        change!(self, request, "ControllerExpandVolume", volume_id, expand_volume::expand_volume)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        change!(self, request, "ControllerModifyVolume", volume_id, modify_volume::modify_volume)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let work = validate_capabilities::validate(&self.context, request);
        self.rpcs.read("ValidateVolumeCapabilities", &volume, work).await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let work = list_volumes::list_volumes(&self.context, request.into_inner());
        self.rpcs.read("ListVolumes", "", work).await
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let work = get_capacity::get_capacity(&self.context, request.into_inner());
        self.rpcs.read("GetCapacity", "", work).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let work = get_volume::get_volume(&self.context, request);
        self.rpcs.read("ControllerGetVolume", &volume, work).await
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: Capability| {
            let rpc = controller_service_capability::Rpc { r#type: kind.into() };
            ControllerServiceCapability {
                r#type: Some(controller_service_capability::Type::Rpc(rpc)),
            }
        };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        let response = csi::ControllerGetCapabilitiesResponse { capabilities };
        self.rpcs.read("ControllerGetCapabilities", "", async { Ok(response) }).await
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        change!(self, request, "CreateSnapshot", name, create_snapshot::create_snapshot)
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        change!(self, request, "DeleteSnapshot", snapshot_id, delete_snapshot::delete_snapshot)
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        let work = list_snapshots::list_snapshots(&self.context, request.into_inner());
        self.rpcs.read("ListSnapshots", "", work).await
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        let request = request.into_inner();
        let snapshot = request.snapshot_id.clone();
        let work = get_snapshot::get_snapshot(&self.context, request);
        self.rpcs.read("GetSnapshot", &snapshot, work).await
    }
}
