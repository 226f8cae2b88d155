//! A volume with the data of a snapshot or of another volume.
//!
//! The engine makes volumes from snapshots only, and at once. For another volume's data, a
//! temporary snapshot of it is taken, under a name that follows from the new volume's; the volume
//! is made from that, and the temporary snapshot deleted. After a crash in between, a repetition
//! finds what is there and goes on:
//!
//! * no volume: the same temporary snapshot is found, or taken;
//! * the volume and the temporary snapshot that it was made from: the latter is deleted;
//! * the volume, made from a snapshot that is gone: done. Such a volume could also have been made
//!   under this name from a user's snapshot that was deleted since. That cannot be told any more,
//!   and no orchestrator gives one name to two requests, so it counts as this request's.

use csi_proto::csi::v1::VolumeContentSource;
use csi_proto::csi::v1::volume_content_source::Type;
use curve_types::{ClusterId, VolumeId};

use super::{Plan, check_existing, create_or_find, exists};
use crate::clusters::Cluster;
use crate::controller::{self, Context, snapshots};
use crate::error::CsiError;
use crate::handle::{SnapshotHandle, VolumeHandle};
use crate::names;
use crate::volumes::{SnapshotInfo, VolumeError, VolumeInfo};

const FIELD: &str = "volume_content_source";

/// What a volume begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    Snapshot(SnapshotHandle),
    Volume(VolumeHandle),
}

impl Source {
    /// What is no handle of ours names nothing that exists.
    pub fn parse(source: &VolumeContentSource) -> Result<Self, CsiError> {
        match &source.r#type {
            None => Err(CsiError::invalid(FIELD, "names neither a snapshot nor a volume")),
            Some(Type::Snapshot(named)) => {
                snapshots::parse_existing(&named.snapshot_id).map(Self::Snapshot)
            }
            Some(Type::Volume(named)) => {
                controller::parse_existing(&named.volume_id).map(Self::Volume)
            }
        }
    }

    fn cluster(self) -> ClusterId {
        match self {
            Self::Snapshot(handle) => handle.cluster,
            Self::Volume(handle) => handle.cluster,
        }
    }
}

pub async fn create_from(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
    source: Source,
) -> Result<VolumeInfo, CsiError> {
    if source.cluster() != cluster.id {
        let reason = format!(
            "is in cluster {}, the volume is to be in {}, which is {}: data stays in its cluster",
            source.cluster(),
            cluster.label(),
            cluster.id
        );
        return Err(CsiError::invalid(FIELD, reason));
    }
    let existing = existing(context, cluster, plan).await?;
    match (source, existing) {
        (Source::Snapshot(handle), Some(found)) => {
            if found.source == Some(handle.snapshot) {
                return Ok(found);
            }
            Err(exists(plan, "it was not made from that snapshot"))
        }
        (Source::Snapshot(handle), None) => from_snapshot(context, cluster, plan, handle).await,
        (Source::Volume(handle), Some(found)) => {
            finish_clone(context, cluster, plan, handle, found).await
        }
        (Source::Volume(handle), None) => clone(context, cluster, plan, handle).await,
    }
}

/// The volume of that name, if there is one and it has what was asked for. Its source may be gone,
/// so it is looked for before the source is.
async fn existing(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
) -> Result<Option<VolumeInfo>, CsiError> {
    let look = context.clusters.call(cluster, "look for the volume", |service| async move {
        service.get_by_name(&plan.name).await
    });
    let found = match look.await {
        Err(error) if error.is_missing() => return Ok(None),
        other => other?,
    };
    check_existing(plan, plan.range.required, &found)?;
    Ok(Some(found))
}

async fn from_snapshot(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
    handle: SnapshotHandle,
) -> Result<VolumeInfo, CsiError> {
    let snapshot = snapshots::look_up(context, cluster, handle).await?;
    check_pool(plan, &snapshot.pool)?;
    if !snapshot.ready {
        let what = format!("snapshot {}", snapshot.full_name);
        return Err(CsiError::Pending { what, reason: "is not ready yet".to_owned() });
    }
    let size = plan.range.plan_clone(snapshot.size)?;
    create_or_find(context, cluster, plan, size, Some(handle.snapshot)).await
}

async fn clone(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
    handle: VolumeHandle,
) -> Result<VolumeInfo, CsiError> {
    let look = context.clusters.call(cluster, "look up the source", |service| async move {
        service.get(handle.volume).await
    });
    let origin = look.await?;
    check_pool(plan, &origin.pool)?;
    // Before anything is made: what cannot be must leave nothing behind.
    plan.range.plan_clone(origin.size)?;
    let temporary = take_temporary(context, cluster, plan, handle).await?;
    let made = match plan.range.plan_clone(temporary.size) {
        Ok(size) => create_or_find(context, cluster, plan, size, Some(temporary.id)).await,
        Err(error) => Err(error),
    };
    let deleted = delete_temporary(context, cluster, &temporary).await;
    match (made, deleted) {
        (Ok(volume), Ok(())) => Ok(volume),
        // Answered once nothing is left behind.
        (Ok(_), Err(error)) => Err(error),
        (Err(error), deleted) => {
            if let Err(left) = deleted {
                tracing::warn!(snapshot = temporary.full_name, error = %left, "stays for now");
            }
            Err(error)
        }
    }
}

/// The volume is there; what is left is to see whose it is and whether it is all that is left.
async fn finish_clone(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
    handle: VolumeHandle,
    found: VolumeInfo,
) -> Result<VolumeInfo, CsiError> {
    let Some(source) = found.source else { return Err(exists(plan, "it was made empty")) };
    let other = || Err(exists(plan, "it was not made from that volume"));
    let all = snapshots::named(context, cluster, &names::clone(&plan.name)).await?;
    match all.into_iter().find(|snapshot| snapshot.volume == handle.volume) {
        Some(temporary) if temporary.id == source => {
            delete_temporary(context, cluster, &temporary).await?;
            Ok(found)
        }
        Some(temporary) => {
            delete_temporary(context, cluster, &temporary).await?;
            other()
        }
        None if is_gone(context, cluster, source).await? => Ok(found),
        None => other(),
    }
}

async fn is_gone(context: &Context, cluster: &Cluster, id: VolumeId) -> Result<bool, CsiError> {
    let handle = SnapshotHandle { cluster: cluster.id, snapshot: id };
    match snapshots::look_up(context, cluster, handle).await {
        Ok(snapshot) => Ok(snapshot.deleting),
        Err(error) if error.is_missing() => Ok(true),
        Err(error) => Err(error),
    }
}

async fn take_temporary(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
    handle: VolumeHandle,
) -> Result<SnapshotInfo, CsiError> {
    let name = names::clone(&plan.name);
    let name = name.as_str();
    let taken =
        context.clusters.call(cluster, "take a snapshot of the source", |service| async move {
            service.create_snapshots(&[(handle.volume, name)]).await
        });
    let taken = taken.await?.into_iter().next();
    taken.ok_or_else(|| CsiError::Missing { what: format!("the snapshot {name} just taken") })
}

async fn delete_temporary(
    context: &Context,
    cluster: &Cluster,
    temporary: &SnapshotInfo,
) -> Result<(), CsiError> {
    let id = temporary.id;
    let step = "delete the snapshot of the source";
    let delete =
        context.clusters.call(cluster, step, |service| async move { service.delete(id).await });
    match delete.await {
        // The volume is just being made from it. An error that the orchestrator takes for final
        // would let it forget the volume.
        Err(CsiError::Volume { source: VolumeError::Refused(reason), .. }) => {
            Err(CsiError::Pending { what: format!("snapshot {}", temporary.full_name), reason })
        }
        other => other,
    }
}

fn check_pool(plan: &Plan, pool: &str) -> Result<(), CsiError> {
    let wanted = &plan.parameters.pool;
    if wanted == pool {
        return Ok(());
    }
    let reason = format!(
        "is in pool {pool}, the volume is to be in pool {wanted}: use a StorageClass of pool {pool}"
    );
    Err(CsiError::invalid(FIELD, reason))
}
