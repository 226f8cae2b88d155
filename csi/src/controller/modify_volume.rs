//! ControllerModifyVolume: a VolumeAttributesClass sets limits of an existing volume. Who has it
//! attached learns of them from the MDS.

use std::sync::Arc;

use csi_proto::csi::v1::{ControllerModifyVolumeRequest, ControllerModifyVolumeResponse};

use super::{Context, require_volume_id};
use crate::error::CsiError;
use crate::limits;

pub async fn modify_volume(
    context: Arc<Context>,
    request: ControllerModifyVolumeRequest,
) -> Result<ControllerModifyVolumeResponse, CsiError> {
    require_volume_id(&request.volume_id)?;
    let change = limits::parse_mutable(&request.mutable_parameters)?;
    let (handle, cluster, info) = context.volume(&request.volume_id).await?;
    if change.apply_to(info.limits) != info.limits {
        let step = "set the volume's limits";
        let set = context.clusters.call(&cluster, step, |service| async move {
            service.set_limits(handle.volume, change).await
        });
        set.await?;
    }
    Ok(ControllerModifyVolumeResponse {})
}
