//! NodeUnstageVolume: unmounts, then gives the device back to the agent.

use std::path::Path;
use std::sync::Arc;

use csi_proto::csi::v1::{NodeUnstageVolumeRequest, NodeUnstageVolumeResponse};

use super::mounts::{self, DeviceNumber, MountTable};
use super::{Context, blocking, parse_path};
use crate::attachments::Attachment;
use crate::error::CsiError;
use crate::handle::VolumeHandle;

pub async fn unstage_volume(
    context: Arc<Context>,
    request: NodeUnstageVolumeRequest,
) -> Result<NodeUnstageVolumeResponse, CsiError> {
    if request.volume_id.is_empty() {
        return Err(CsiError::invalid("volume_id", "is missing"));
    }
    let staging = parse_path("staging_target_path", &request.staging_target_path)?;
    // What is no handle of this driver was never staged by it.
    let Ok(handle) = request.volume_id.parse::<VolumeHandle>() else {
        return Ok(NodeUnstageVolumeResponse {});
    };
    let attached = context.agent.list().await.map_err(CsiError::attach("list its attachments"))?;
    blocking(move || unmount_staged(&staging, handle, &attached)).await?;
    let detach = context.agent.detach(handle).await;
    detach.map_err(CsiError::attach("detach the volume"))?;
    Ok(NodeUnstageVolumeResponse {})
}

/// Takes off the volume's mount, or one whose device is no longer attached; another volume's mount
/// at the same path stays and is an error.
fn unmount_staged(
    staging: &Path,
    handle: VolumeHandle,
    attached: &[Attachment],
) -> Result<(), CsiError> {
    let table = MountTable::read()?;
    let Some(mount) = table.at(staging) else { return Ok(()) };
    for attachment in attached.iter().filter(|attachment| attachment.handle != handle) {
        if DeviceNumber::of(&attachment.device)? == Some(mount.device) {
            let reason = format!(
                "{} has volume {} mounted, not {handle}",
                staging.display(),
                attachment.handle
            );
            return Err(CsiError::Precondition { reason });
        }
    }
    Ok(mounts::unmount(staging)?)
}
