//! NodeUnpublishVolume: takes the volume away from one workload.

use std::sync::Arc;

use csi_proto::csi::v1::{NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse};

use super::mounts;
use super::{Context, blocking, parse_path};
use crate::error::CsiError;

/// Works from the mount table alone, so that it also cleans up after volumes that are gone.
pub async fn unpublish_volume(
    _context: Arc<Context>,
    request: NodeUnpublishVolumeRequest,
) -> Result<NodeUnpublishVolumeResponse, CsiError> {
    if request.volume_id.is_empty() {
        return Err(CsiError::invalid("volume_id", "is missing"));
    }
    let target = parse_path("target_path", &request.target_path)?;
    blocking(move || {
        mounts::unmount(&target)?;
        Ok(mounts::remove_target(&target)?)
    })
    .await?;
    Ok(NodeUnpublishVolumeResponse {})
}
