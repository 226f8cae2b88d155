//! DeleteSnapshot. Done if the snapshot is gone, or never was ours.

use std::sync::Arc;

use csi_proto::csi::v1::{DeleteSnapshotRequest, DeleteSnapshotResponse};

use super::{Context, snapshots};
use crate::error::CsiError;
use crate::handle::SnapshotHandle;
use crate::names;

pub async fn delete_snapshot(
    context: Arc<Context>,
    request: DeleteSnapshotRequest,
) -> Result<DeleteSnapshotResponse, CsiError> {
    snapshots::require_snapshot_id(&request.snapshot_id)?;
    // What is no handle of this driver names nothing that it could have made.
    let Ok(handle) = request.snapshot_id.parse::<SnapshotHandle>() else {
        return Ok(DeleteSnapshotResponse {});
    };
    let cluster = context.clusters.by_id(handle.cluster).await?;
    // Looked up also because the MDS would delete a volume of that id just as well.
    let info = match snapshots::look_up(&context, &cluster, handle).await {
        Err(error) if error.is_missing() => return Ok(DeleteSnapshotResponse {}),
        other => other?,
    };
    if let Some(group) = names::group_of(&info.name) {
        let reason = format!("is part of group snapshot {group}, which can only be deleted whole");
        return Err(CsiError::invalid("snapshot_id", reason));
    }
    let delete = context.clusters.call(&cluster, "delete the snapshot", |service| async move {
        service.delete(handle.snapshot).await
    });
    delete.await?;
    Ok(DeleteSnapshotResponse {})
}
