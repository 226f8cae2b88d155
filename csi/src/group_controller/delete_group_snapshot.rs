//! DeleteVolumeGroupSnapshot: every snapshot of the group. Done if there is none; what a call that
//! failed half-way has left, the next one deletes.

use std::sync::Arc;

use csi_proto::csi::v1::{DeleteVolumeGroupSnapshotRequest, DeleteVolumeGroupSnapshotResponse};

use super::{members, require_group_id};
use crate::controller::Context;
use crate::error::CsiError;
use crate::handle::GroupHandle;

pub async fn delete_group_snapshot(
    context: Arc<Context>,
    request: DeleteVolumeGroupSnapshotRequest,
) -> Result<DeleteVolumeGroupSnapshotResponse, CsiError> {
    require_group_id(&request.group_snapshot_id)?;
    // What is no handle of this driver names nothing that it could have made.
    let Ok(group) = request.group_snapshot_id.parse::<GroupHandle>() else {
        return Ok(DeleteVolumeGroupSnapshotResponse {});
    };
    let cluster = context.clusters.by_id(group.cluster).await?;
    for member in members(&context, &cluster, &group, &request.snapshot_ids).await? {
        let step = "delete a snapshot of the group";
        let delete = context
            .clusters
            .call(&cluster, step, |service| async move { service.delete(member.id).await });
        delete.await?;
    }
    Ok(DeleteVolumeGroupSnapshotResponse {})
}
