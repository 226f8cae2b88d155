//! ControllerPublishVolume: records in the MDS that a node may attach the volume. The MDS decides;
//! what is checked here first gives errors that name the node.

use std::sync::Arc;

use csi_proto::csi::v1::{ControllerPublishVolumeRequest, ControllerPublishVolumeResponse};

use super::list_volumes::all_volumes;
use super::{Context, require_volume_id};
use crate::capability::{Access, Sharing};
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::volumes::{VolumeError, VolumeInfo};

/// Key of the publish context: present and "true" where the node may only read.
pub const READ_ONLY: &str = "readOnly";

pub async fn publish_volume(
    context: Arc<Context>,
    request: ControllerPublishVolumeRequest,
) -> Result<ControllerPublishVolumeResponse, CsiError> {
    let sharing = parse(&request)?;
    let node = request.node_id.as_str();
    let (handle, cluster, info) = context.volume(&request.volume_id).await?;
    let found = context.nodes.find(node).await?;
    let found = found.ok_or_else(|| CsiError::Missing { what: format!("node {node}") })?;
    check_exclusive(&info, node, sharing)?;
    if let Some(volumes_max) = found.volumes_max.filter(|_| !info.nodes.iter().any(|n| n == node)) {
        check_room(&context, &cluster, node, volumes_max).await?;
    }
    let step = "publish the volume";
    let published = context.clusters.call(&cluster, step, |service| async move {
        service.publish(handle.volume, node, sharing).await
    });
    match published.await {
        // Published to this node already, in another mode.
        Err(CsiError::Volume { source: VolumeError::Exists(difference), .. }) => {
            let what = format!("the publication of volume {} on {node}", info.name);
            return Err(CsiError::Exists { what, difference });
        }
        // Another node was faster than the check above.
        Err(CsiError::Volume { source: VolumeError::Refused(reason), .. }) => {
            let (_, _, now) = context.volume(&request.volume_id).await?;
            return Err(explain_refusal(&now, node, reason));
        }
        other => other?,
    }
    let context = sharing.read_only.then(|| (READ_ONLY.to_owned(), "true".to_owned()));
    Ok(ControllerPublishVolumeResponse { publish_context: context.into_iter().collect() })
}

fn parse(request: &ControllerPublishVolumeRequest) -> Result<Sharing, CsiError> {
    require_volume_id(&request.volume_id)?;
    if request.node_id.is_empty() {
        return Err(CsiError::invalid("node_id", "is missing"));
    }
    let access = Access::parse(request.volume_capability.as_ref())?;
    let read_only = access.sharing.read_only || request.readonly;
    Ok(Sharing { read_only, ..access.sharing })
}

fn check_exclusive(info: &VolumeInfo, node: &str, sharing: Sharing) -> Result<(), CsiError> {
    let others = others(info, node);
    if others.is_empty() || sharing.shared || sharing.read_only {
        return Ok(());
    }
    Err(CsiError::PublishedElsewhere { volume: info.name.clone(), nodes: others.join(", ") })
}

fn others<'a>(info: &'a VolumeInfo, node: &str) -> Vec<&'a str> {
    info.nodes.iter().map(String::as_str).filter(|other| *other != node).collect()
}

/// The scheduler counts by itself; this catches what it could not know. Volumes of other clusters
/// are left to the scheduler: one whose MDS does not answer must not keep this one from attaching.
async fn check_room(
    context: &Context,
    cluster: &Cluster,
    node: &str,
    volumes_max: u32,
) -> Result<(), CsiError> {
    let volumes = all_volumes(context, cluster).await?;
    let published = volumes.iter().filter(|v| v.nodes.iter().any(|n| n == node)).count();
    if published < volumes_max as usize {
        return Ok(());
    }
    let reason = format!(
        "has {published} volumes of cluster {} already, its limit is {volumes_max}",
        cluster.label()
    );
    Err(CsiError::Exhausted { what: format!("node {node}"), reason })
}

fn explain_refusal(now: &VolumeInfo, node: &str, reason: String) -> CsiError {
    match others(now, node).as_slice() {
        [] => CsiError::Precondition { reason },
        others => {
            CsiError::PublishedElsewhere { volume: now.name.clone(), nodes: others.join(", ") }
        }
    }
}
