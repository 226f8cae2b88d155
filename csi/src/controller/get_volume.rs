//! ControllerGetVolume: size and nodes of one volume.

use csi_proto::csi::v1::controller_get_volume_response::VolumeStatus;
use csi_proto::csi::v1::{ControllerGetVolumeRequest, ControllerGetVolumeResponse};

use super::{Context, to_csi};
use crate::error::CsiError;

pub async fn get_volume(
    context: &Context,
    request: ControllerGetVolumeRequest,
) -> Result<ControllerGetVolumeResponse, CsiError> {
    let (handle, _, info) = context.volume(&request.volume_id).await?;
    let volume = to_csi(handle, &info, Default::default());
    let status = VolumeStatus { published_node_ids: info.nodes, volume_condition: None };
    Ok(ControllerGetVolumeResponse { volume: Some(volume), status: Some(status) })
}
