//! The GroupController service: snapshots of several volumes at one point in time. One file per
//! RPC, each parse, plan, execute; this file routes, and holds what they share.
//!
//! A group is nothing but the snapshots that have its name: the engine takes them at once or not at
//! all, and there is no record of the group that could contradict them.

pub mod create_group_snapshot;
pub mod delete_group_snapshot;
pub mod get_group_snapshot;

use std::sync::Arc;

use csi_proto::csi::v1::group_controller_server::GroupController;
use csi_proto::csi::v1::group_controller_service_capability::rpc::Type as Capability;
use csi_proto::csi::v1::{
    self as csi, GroupControllerServiceCapability, group_controller_service_capability,
};
use tonic::{Request, Response, Status};

use crate::clusters::Cluster;
use crate::controller::{Context, snapshots};
use crate::error::CsiError;
use crate::handle::{GroupHandle, SnapshotHandle};
use crate::names;
use crate::rpc::Rpcs;
use crate::volumes::SnapshotInfo;

/// A group id that the request must carry.
fn require_group_id(id: &str) -> Result<(), CsiError> {
    if id.is_empty() { Err(CsiError::invalid("group_snapshot_id", "is missing")) } else { Ok(()) }
}

/// The snapshots of a group, none if there is no such group. They must be those that the request
/// lists, apart from listed ones that are gone; a request that lists none is not checked.
async fn members(
    context: &Context,
    cluster: &Cluster,
    group: &GroupHandle,
    listed: &[String],
) -> Result<Vec<SnapshotInfo>, CsiError> {
    let members = snapshots::named(context, cluster, &names::member(&group.name)).await?;
    if listed.is_empty() || members.is_empty() {
        return Ok(members);
    }
    let id = |member: &SnapshotInfo| {
        SnapshotHandle { cluster: cluster.id, snapshot: member.id }.to_string()
    };
    let mismatch = |reason| Err(CsiError::invalid("snapshot_ids", reason));
    if let Some(left_out) = members.iter().map(id).find(|member| !listed.contains(member)) {
        return mismatch(format!("lack {left_out}, which is part of group snapshot {group}"));
    }
    for other in listed.iter().filter(|listed| !members.iter().any(|m| id(m) == **listed)) {
        let exists = match other.parse::<SnapshotHandle>() {
            Ok(handle) if handle.cluster == cluster.id => {
                match snapshots::look_up(context, cluster, handle).await {
                    Err(error) if error.is_missing() => false,
                    found => found.map(|_| true)?,
                }
            }
            _ => true,
        };
        if exists {
            return mismatch(format!("name {other}, which is no part of group snapshot {group}"));
        }
    }
    Ok(members)
}

/// A group as the orchestrator remembers it; `members` are at least one.
fn to_csi(group: &GroupHandle, members: &[SnapshotInfo]) -> csi::VolumeGroupSnapshot {
    let snapshots: Vec<csi::Snapshot> =
        members.iter().map(|member| snapshots::to_csi(group.cluster, member)).collect();
    csi::VolumeGroupSnapshot {
        group_snapshot_id: group.to_string(),
        creation_time: snapshots.first().and_then(|snapshot| snapshot.creation_time),
        ready_to_use: snapshots.iter().all(|snapshot| snapshot.ready_to_use),
        snapshots,
    }
}

/// Implements the service.
pub struct GroupControllerService {
    rpcs: Rpcs,
    context: Arc<Context>,
}

impl GroupControllerService {
    pub fn new(rpcs: Rpcs, context: Arc<Context>) -> Self {
        Self { rpcs, context }
    }
}

#[tonic::async_trait]
impl GroupController for GroupControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _request: Request<csi::GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::GroupControllerGetCapabilitiesResponse>, Status> {
        let kind = Capability::CreateDeleteGetVolumeGroupSnapshot;
        let rpc = group_controller_service_capability::Rpc { r#type: kind.into() };
        let r#type = Some(group_controller_service_capability::Type::Rpc(rpc));
        let capabilities = vec![GroupControllerServiceCapability { r#type }];
        let response = csi::GroupControllerGetCapabilitiesResponse { capabilities };
        self.rpcs.read("GroupControllerGetCapabilities", "", async { Ok(response) }).await
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<csi::CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::CreateVolumeGroupSnapshotResponse>, Status> {
        let (request, context) = (request.into_inner(), self.context.clone());
        let work = create_group_snapshot::create_group_snapshot(context, request.clone());
        self.rpcs.change("CreateVolumeGroupSnapshot", &request.name, &request, work).await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<csi::DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::DeleteVolumeGroupSnapshotResponse>, Status> {
        let (request, context) = (request.into_inner(), self.context.clone());
        let work = delete_group_snapshot::delete_group_snapshot(context, request.clone());
        let key = &request.group_snapshot_id;
        self.rpcs.change("DeleteVolumeGroupSnapshot", key, &request, work).await
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<csi::GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::GetVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let group = request.group_snapshot_id.clone();
        let work = get_group_snapshot::get_group_snapshot(&self.context, request);
        self.rpcs.read("GetVolumeGroupSnapshot", &group, work).await
    }
}
