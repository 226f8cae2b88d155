//! NodeExpandVolume: the device follows the volume, the file system follows the device, both while
//! in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi_proto::csi::v1::{NodeExpandVolumeRequest, NodeExpandVolumeResponse};

use super::filesystem;
use super::mounts::{DeviceNumber, MountTable};
use super::{Context, blocking, parse_handle};
use crate::capability::FsType;
use crate::error::CsiError;
use crate::size::SizeRange;

/// What is to grow at the volume's path.
enum Grown {
    Device,
    Filesystem { device: PathBuf, fs_type: FsType },
}

pub async fn expand_volume(
    context: Arc<Context>,
    request: NodeExpandVolumeRequest,
) -> Result<NodeExpandVolumeResponse, CsiError> {
    if request.volume_path.is_empty() {
        return Err(CsiError::invalid("volume_path", "is missing"));
    }
    let handle = parse_handle(&request.volume_id)?;
    let range = SizeRange::parse(request.capacity_range)?;
    let attached = context
        .attachment(handle)
        .await?
        .ok_or_else(|| CsiError::Missing { what: format!("volume {handle} on this node") })?;
    let path = PathBuf::from(&request.volume_path);
    let grown = {
        let path = path.clone();
        blocking(move || find_grown(&path, &attached.device)).await?
    };
    let size = context.agent.resize(handle).await.map_err(CsiError::attach("resize the device"))?;
    if size < range.required {
        let reason = format!("the volume has {size} bytes, {} are asked for", range.required);
        return Err(CsiError::OutOfRange { field: "capacity_range", reason });
    }
    if let Grown::Filesystem { device, fs_type } = grown {
        filesystem::grow(&device, &path, fs_type).await?;
    }
    Ok(NodeExpandVolumeResponse { capacity_bytes: size as i64 })
}

fn find_grown(path: &Path, device: &Path) -> Result<Grown, CsiError> {
    let number = DeviceNumber::of(device)?;
    let table = MountTable::read()?;
    let mount = table.at(path).filter(|mount| Some(mount.device) == number);
    if let Some(fs_type) = mount.and_then(|mount| FsType::from_name(&mount.fs_type)) {
        return Ok(Grown::Filesystem { device: device.to_owned(), fs_type });
    }
    // A raw volume: the device node, or the directory where kubelet links it.
    let exists = path.try_exists().unwrap_or(false);
    if mount.is_none() && exists && (table.at(path).is_none() || is_device(path, number)?) {
        return Ok(Grown::Device);
    }
    Err(CsiError::Missing { what: format!("the volume at {}", path.display()) })
}

fn is_device(path: &Path, number: Option<DeviceNumber>) -> Result<bool, CsiError> {
    Ok(number.is_some() && DeviceNumber::of(path)? == number)
}
