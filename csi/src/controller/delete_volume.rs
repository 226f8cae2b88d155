//! DeleteVolume. Done if the volume is gone, or never was ours.

use std::sync::Arc;

use csi_proto::csi::v1::{DeleteVolumeRequest, DeleteVolumeResponse};

use super::{Context, require_volume_id};
use crate::error::CsiError;
use crate::handle::VolumeHandle;

pub async fn delete_volume(
    context: Arc<Context>,
    request: DeleteVolumeRequest,
) -> Result<DeleteVolumeResponse, CsiError> {
    require_volume_id(&request.volume_id)?;
    // What is no handle of this driver names nothing that it could have made.
    let Ok(handle) = request.volume_id.parse::<VolumeHandle>() else {
        return Ok(DeleteVolumeResponse {});
    };
    let cluster = context.clusters.by_id(handle.cluster).await?;
    let delete = context.clusters.call(&cluster, "delete the volume", |service| async move {
        service.delete(handle.volume).await
    });
    delete.await?;
    Ok(DeleteVolumeResponse {})
}
