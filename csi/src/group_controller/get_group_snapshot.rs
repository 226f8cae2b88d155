//! GetVolumeGroupSnapshot: the snapshots of one group.

use csi_proto::csi::v1::{GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse};

use super::{members, require_group_id, to_csi};
use crate::controller::Context;
use crate::error::CsiError;
use crate::handle::GroupHandle;

pub async fn get_group_snapshot(
    context: &Context,
    request: GetVolumeGroupSnapshotRequest,
) -> Result<GetVolumeGroupSnapshotResponse, CsiError> {
    let id = &request.group_snapshot_id;
    require_group_id(id)?;
    let missing = |what: String| CsiError::Missing { what };
    let group = id.parse::<GroupHandle>();
    let group = group.map_err(|error| missing(format!("group snapshot: {error}; it")))?;
    let cluster = context.clusters.by_id(group.cluster).await?;
    let members = members(context, &cluster, &group, &request.snapshot_ids).await?;
    if members.is_empty() {
        return Err(missing(format!("group snapshot {group}")));
    }
    Ok(GetVolumeGroupSnapshotResponse { group_snapshot: Some(to_csi(&group, &members)) })
}
