//! NodeStageVolume: the volume becomes a block device of the node, and a mounted file system
//! unless it is used raw.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi_proto::csi::v1::{NodeStageVolumeRequest, NodeStageVolumeResponse};

use super::filesystem::{self, Preparation};
use super::mounts::{self, DeviceNumber, MountTable};
use super::{Context, blocking, parse_handle, parse_path};
use crate::capability::{Access, Form, FsType, Sharing};
use crate::controller::publish_volume::READ_ONLY;
use crate::error::CsiError;
use crate::handle::{ClusterName, VolumeHandle};
use crate::parameters::{CLUSTER, parse_cluster};

struct Plan {
    handle: VolumeHandle,
    cluster: ClusterName,
    staging: PathBuf,
    access: Access,
    sharing: Sharing,
}

pub async fn stage_volume(
    context: Arc<Context>,
    request: NodeStageVolumeRequest,
) -> Result<NodeStageVolumeResponse, CsiError> {
    let plan = parse(&request)?;
    let attached = context.agent.attach(&plan.cluster, plan.handle, plan.sharing).await;
    let attached = attached.map_err(CsiError::attach("attach the volume"))?;
    match &plan.access.form {
        Form::Block => {}
        Form::Mount { fs_type, flags } => {
            mount_staged(&attached.device, &plan, *fs_type, flags).await?;
        }
    }
    Ok(NodeStageVolumeResponse {})
}

fn parse(request: &NodeStageVolumeRequest) -> Result<Plan, CsiError> {
    if request.volume_id.is_empty() {
        return Err(CsiError::invalid("volume_id", "is missing"));
    }
    let staging = parse_path("staging_target_path", &request.staging_target_path)?;
    let access = Access::parse(request.volume_capability.as_ref())?;
    let handle = parse_handle(&request.volume_id)?;
    let cluster = request.volume_context.get(CLUSTER).ok_or_else(|| {
        CsiError::invalid("volume_context", "cluster is missing: NAMESPACE/NAME of a CurveCluster")
    })?;
    let cluster = parse_cluster("volume_context", cluster)?;
    let published_read_only = request.publish_context.get(READ_ONLY).is_some_and(|v| v == "true");
    let read_only = access.sharing.read_only || published_read_only;
    let sharing = Sharing { read_only, ..access.sharing };
    Ok(Plan { handle, cluster, staging, access, sharing })
}

async fn mount_staged(
    device: &Path,
    plan: &Plan,
    wanted: Option<FsType>,
    flags: &[String],
) -> Result<(), CsiError> {
    let read_only = plan.sharing.read_only;
    let fs_type = match staged_as(device, &plan.staging).await? {
        Some(fs_type) => fs_type,
        None => {
            let content = filesystem::probe(device).await?;
            let fs_type = match filesystem::plan(device, &content, wanted, read_only)? {
                Preparation::Format { fs_type, zeroed } => {
                    filesystem::format(device, fs_type, zeroed).await?;
                    fs_type
                }
                Preparation::Check(fs_type) => {
                    filesystem::check(device, fs_type).await?;
                    fs_type
                }
                Preparation::Nothing(fs_type) => fs_type,
            };
            let staging = plan.staging.clone();
            blocking(move || Ok(mounts::make_directory(&staging)?)).await?;
            filesystem::mount(device, &plan.staging, fs_type, flags, read_only).await?;
            fs_type
        }
    };
    if read_only {
        return Ok(());
    }
    grow_staged(device, &plan.staging, fs_type, flags).await
}

/// The volume may have been expanded while it was not attached.
async fn grow_staged(
    device: &Path,
    staging: &Path,
    fs_type: FsType,
    flags: &[String],
) -> Result<(), CsiError> {
    let grown = filesystem::grow(device, staging, fs_type).await;
    match (fs_type, grown) {
        (FsType::Ext4, Err(error)) => {
            tracing::warn!(%error, "the file system does not grow mounted, so it is taken off");
            let path = staging.to_owned();
            blocking(move || Ok(mounts::unmount(&path)?)).await?;
            filesystem::grow_unmounted(device).await?;
            Ok(filesystem::mount(device, staging, fs_type, flags, false).await?)
        }
        (_, grown) => Ok(grown?),
    }
}

/// The file system that is mounted from this device at the staging path already. What another
/// device left there (an attachment that is gone) is taken off.
async fn staged_as(device: &Path, staging: &Path) -> Result<Option<FsType>, CsiError> {
    let (device, staging) = (device.to_owned(), staging.to_owned());
    blocking(move || {
        let number = DeviceNumber::of(&device)?.ok_or_else(|| CsiError::Precondition {
            reason: format!("the agent's device {} is not a block device", device.display()),
        })?;
        let table = MountTable::read()?;
        match table.at(&staging) {
            None => Ok(None),
            Some(mount) if mount.device == number => Ok(FsType::from_name(&mount.fs_type)),
            Some(mount) => {
                let (path, stale) = (staging.display(), mount.source.display());
                tracing::warn!(%path, %stale, "unmounts what an earlier attachment left");
                mounts::unmount(&staging)?;
                Ok(None)
            }
        }
    })
    .await
}
