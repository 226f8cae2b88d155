//! GetSnapshot: what there is to say about one snapshot.

use csi_proto::csi::v1::{GetSnapshotRequest, GetSnapshotResponse};

use super::{Context, snapshots};
use crate::error::CsiError;

pub async fn get_snapshot(
    context: &Context,
    request: GetSnapshotRequest,
) -> Result<GetSnapshotResponse, CsiError> {
    let handle = snapshots::parse_existing(&request.snapshot_id)?;
    let cluster = context.clusters.by_id(handle.cluster).await?;
    let info = snapshots::look_up(context, &cluster, handle).await?;
    Ok(GetSnapshotResponse { snapshot: Some(snapshots::to_csi(cluster.id, &info)) })
}
