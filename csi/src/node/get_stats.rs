//! NodeGetVolumeStats: how full the file system is, or how large the device.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use csi_proto::csi::v1::volume_usage::Unit;
use csi_proto::csi::v1::{NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, VolumeUsage};
use nix::sys::statvfs::statvfs;

use super::mounts::{MountError, MountTable};
use super::{blocking, parse_handle};
use crate::error::CsiError;

/// A file system whose volume has no quorum does not answer; kubelet asks again in a minute.
const TIMEOUT: Duration = Duration::from_secs(10);

pub async fn get_stats(
    request: NodeGetVolumeStatsRequest,
) -> Result<NodeGetVolumeStatsResponse, CsiError> {
    if request.volume_path.is_empty() {
        return Err(CsiError::invalid("volume_path", "is missing"));
    }
    parse_handle(&request.volume_id)?;
    let path = PathBuf::from(request.volume_path);
    let measured = tokio::time::timeout(TIMEOUT, blocking(move || measure(&path)));
    let usage = measured
        .await
        .map_err(|_| CsiError::Timeout { step: "the file system", seconds: TIMEOUT.as_secs() })??;
    Ok(NodeGetVolumeStatsResponse { usage, volume_condition: None })
}

fn measure(path: &Path) -> Result<Vec<VolumeUsage>, CsiError> {
    let missing = || CsiError::Missing { what: format!("the volume at {}", path.display()) };
    let look = |source| MountError::Look { path: path.to_owned(), source };
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(look(error).into()),
    };
    if found.file_type().is_block_device() {
        let size = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
        let total = size.map_err(look)? as i64;
        return Ok(vec![VolumeUsage { total, unit: Unit::Bytes.into(), ..Default::default() }]);
    }
    if MountTable::read()?.at(path).is_none() {
        return Err(missing());
    }
    let stats = statvfs(path).map_err(|errno| look(errno.into()))?;
    let unit = stats.fragment_size();
    let usage = |kind: Unit, unit: u64, total: u64, free: u64, available: u64| VolumeUsage {
        available: available.saturating_mul(unit) as i64,
        total: total.saturating_mul(unit) as i64,
        used: total.saturating_sub(free).saturating_mul(unit) as i64,
        unit: kind.into(),
    };
    Ok(vec![
        usage(Unit::Bytes, unit, stats.blocks(), stats.blocks_free(), stats.blocks_available()),
        usage(Unit::Inodes, 1, stats.files(), stats.files_free(), stats.files_available()),
    ])
}
