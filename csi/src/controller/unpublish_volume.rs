//! ControllerUnpublishVolume: the node may no longer attach the volume, and what it still has open
//! is fenced before this answers. That is what lets a pod move off a node that is gone.

use std::sync::Arc;

use csi_proto::csi::v1::{ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse};

use super::{Context, require_volume_id};
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::volumes::VolumeError;

pub async fn unpublish_volume(
    context: Arc<Context>,
    request: ControllerUnpublishVolumeRequest,
) -> Result<ControllerUnpublishVolumeResponse, CsiError> {
    require_volume_id(&request.volume_id)?;
    // What is no handle of this driver was never published by it.
    let Ok(handle) = request.volume_id.parse::<VolumeHandle>() else {
        return Ok(ControllerUnpublishVolumeResponse {});
    };
    let cluster = context.clusters.by_id(handle.cluster).await?;
    let node = Some(request.node_id.as_str()).filter(|node| !node.is_empty());
    let step = "unpublish the volume";
    let unpublish = context.clusters.call(&cluster, step, |service| async move {
        service.unpublish(handle.volume, node).await
    });
    match unpublish.await {
        // A volume that is gone is published nowhere.
        Ok(()) | Err(CsiError::Volume { source: VolumeError::Missing(_), .. }) => {
            Ok(ControllerUnpublishVolumeResponse {})
        }
        Err(error) => Err(error),
    }
}
