//! NodePublishVolume: shows the staged volume to one workload, as a directory or as a device node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi_proto::csi::v1::{NodePublishVolumeRequest, NodePublishVolumeResponse};

use super::mounts::{self, DeviceNumber, MountTable, Place};
use super::{Context, blocking, parse_handle, parse_path};
use crate::capability::{Access, Form};
use crate::controller::publish_volume::READ_ONLY;
use crate::error::CsiError;
use crate::handle::VolumeHandle;

struct Plan {
    handle: VolumeHandle,
    staging: PathBuf,
    target: PathBuf,
    access: Access,
    read_only: bool,
}

pub async fn publish_volume(
    context: Arc<Context>,
    request: NodePublishVolumeRequest,
) -> Result<NodePublishVolumeResponse, CsiError> {
    let plan = parse(&request)?;
    let attached = context.attachment(plan.handle).await?;
    let attached = attached.ok_or_else(|| CsiError::Precondition {
        reason: format!("volume {} is not staged on this node", plan.handle),
    })?;
    blocking(move || match plan.access.form {
        Form::Block => publish_device(&plan, &attached.device),
        Form::Mount { .. } => publish_directory(&plan, &attached.device),
    })
    .await?;
    Ok(NodePublishVolumeResponse {})
}

fn parse(request: &NodePublishVolumeRequest) -> Result<Plan, CsiError> {
    if request.volume_id.is_empty() {
        return Err(CsiError::invalid("volume_id", "is missing"));
    }
    let target = parse_path("target_path", &request.target_path)?;
    let access = Access::parse(request.volume_capability.as_ref())?;
    if request.staging_target_path.is_empty() {
        let reason = "staging_target_path is missing: NodeStageVolume comes first".to_owned();
        return Err(CsiError::Precondition { reason });
    }
    let staging = parse_path("staging_target_path", &request.staging_target_path)?;
    let handle = parse_handle(&request.volume_id)?;
    let published_read_only = request.publish_context.get(READ_ONLY).is_some_and(|v| v == "true");
    let read_only = request.readonly || access.sharing.read_only || published_read_only;
    Ok(Plan { handle, staging, target, access, read_only })
}

fn publish_directory(plan: &Plan, device: &Path) -> Result<(), CsiError> {
    let number = device_number(device)?;
    let table = MountTable::read()?;
    if table.at(&plan.staging).is_none_or(|mount| mount.device != number) {
        let reason = format!("the volume is not mounted at {}", plan.staging.display());
        return Err(CsiError::Precondition { reason });
    }
    match table.at(&plan.target) {
        Some(mount) if mount.device == number && mount.read_only == plan.read_only => return Ok(()),
        Some(mount) if mount.device == number => {
            let asked = if plan.read_only { "read-only" } else { "writable" };
            let what = format!("the publication at {}", plan.target.display());
            return Err(CsiError::Exists { what, difference: format!("it is not {asked}") });
        }
        Some(_) => mounts::unmount(&plan.target)?,
        None => {}
    }
    if plan.access.single_target {
        let places = table.of_device(number).map(|mount| mount.path.as_path());
        refuse_second_target(plan, places)?;
    }
    mounts::make_directory(&plan.target)?;
    Ok(mounts::bind(&plan.staging, &plan.target, plan.read_only)?)
}

fn publish_device(plan: &Plan, device: &Path) -> Result<(), CsiError> {
    let number = device_number(device)?;
    if DeviceNumber::of(&plan.target)? == Some(number) {
        return Ok(());
    }
    let table = MountTable::read()?;
    // The node of a device that is attached no more.
    mounts::unmount(&plan.target)?;
    if plan.access.single_target {
        let places = table.of_device_node(device).map(|mount| mount.path.as_path());
        refuse_second_target(plan, places)?;
    }
    mounts::make_file(&plan.target)?;
    // A read-only mount does not keep anyone from writing through a device node: a read-only
    // attachment does, and beside a writable one kubelet gives the container no right to write.
    Ok(mounts::bind(device, &plan.target, false)?)
}

fn device_number(device: &Path) -> Result<DeviceNumber, CsiError> {
    DeviceNumber::of(device)?.ok_or_else(|| CsiError::Precondition {
        reason: format!("the agent's device {} is not a block device", device.display()),
    })
}

/// SINGLE_NODE_SINGLE_WRITER: nothing but the staging path and the target may show the volume.
fn refuse_second_target<'a>(
    plan: &Plan,
    mut paths: impl Iterator<Item = &'a Path>,
) -> Result<(), CsiError> {
    let allowed = [Place::of(&plan.staging), Place::of(&plan.target)];
    let other =
        paths.find(|path| Place::of(path).is_some_and(|place| !allowed.contains(&Some(place))));
    match other {
        None => Ok(()),
        Some(path) => Err(CsiError::Precondition {
            reason: format!(
                "the volume is for one workload only and is published at {} already",
                path.display()
            ),
        }),
    }
}
