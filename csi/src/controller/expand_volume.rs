//! ControllerExpandVolume: the volume grows in the MDS; device and file system follow on the node.

use std::sync::Arc;

use csi_proto::csi::v1::{ControllerExpandVolumeRequest, ControllerExpandVolumeResponse};

use super::{Context, require_volume_id};
use crate::capability::Access;
use crate::error::CsiError;
use crate::size::SizeRange;

pub async fn expand_volume(
    context: Arc<Context>,
    request: ControllerExpandVolumeRequest,
) -> Result<ControllerExpandVolumeResponse, CsiError> {
    require_volume_id(&request.volume_id)?;
    if request.capacity_range.is_none() {
        return Err(CsiError::invalid("capacity_range", "is missing"));
    }
    let range = SizeRange::parse(request.capacity_range)?;
    if request.volume_capability.is_some() {
        Access::parse(request.volume_capability.as_ref())?;
    }
    let (handle, cluster, info) = context.volume(&request.volume_id).await?;
    let mut size = range.plan_expand(info.size)?;
    if size > info.size {
        let resize = context.clusters.call(&cluster, "resize the volume", |service| async move {
            service.resize(handle.volume, size).await
        });
        size = resize.await?.size;
    }
    // An attached device does not notice by itself, whatever the volume is used as.
    Ok(ControllerExpandVolumeResponse {
        capacity_bytes: size as i64,
        node_expansion_required: true,
    })
}
