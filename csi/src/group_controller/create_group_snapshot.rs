//! CreateVolumeGroupSnapshot: a snapshot of each volume, all at one point in time and ready when
//! this answers, or none.

use std::collections::BTreeSet;
use std::sync::Arc;

use csi_proto::csi::v1::{CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse};
use curve_types::{ClusterId, VolumeId};

use super::to_csi;
use crate::clusters::Cluster;
use crate::controller::{self, Context, snapshots};
use crate::error::CsiError;
use crate::handle::GroupHandle;
use crate::names;
use crate::parameters::check_snapshot_parameters;
use crate::volumes::{SNAPSHOTS_AT_ONCE, SnapshotInfo};

#[derive(Debug)]
struct Plan {
    group: GroupHandle,
    volumes: BTreeSet<VolumeId>,
}

pub async fn create_group_snapshot(
    context: Arc<Context>,
    request: CreateVolumeGroupSnapshotRequest,
) -> Result<CreateVolumeGroupSnapshotResponse, CsiError> {
    let plan = plan(&request)?;
    let cluster = context.clusters.by_id(plan.group.cluster).await?;
    let found = snapshots::named(&context, &cluster, &names::member(&plan.group.name)).await?;
    let members =
        if is_done(&plan, &found)? { found } else { take(&context, &cluster, &plan).await? };
    Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(to_csi(&plan.group, &members)) })
}

fn plan(request: &CreateVolumeGroupSnapshotRequest) -> Result<Plan, CsiError> {
    const FIELD: &str = "source_volume_ids";
    names::check(&request.name)?;
    if request.source_volume_ids.is_empty() {
        return Err(CsiError::invalid(FIELD, "are missing"));
    }
    check_snapshot_parameters(&request.parameters)?;
    let (mut clusters, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for id in &request.source_volume_ids {
        let handle = controller::parse_existing(id)?;
        clusters.insert(handle.cluster);
        if !volumes.insert(handle.volume) {
            return Err(CsiError::invalid(FIELD, format!("name {id} twice")));
        }
    }
    let cluster = one_cluster(&clusters)?;
    if volumes.len() > SNAPSHOTS_AT_ONCE {
        let reason = format!(
            "{FIELD}: {} volumes, a group snapshot is of at most {SNAPSHOTS_AT_ONCE}",
            volumes.len()
        );
        return Err(CsiError::Precondition { reason });
    }
    let group = GroupHandle { cluster, name: names::group(&request.name) };
    Ok(Plan { group, volumes })
}

fn one_cluster(clusters: &BTreeSet<ClusterId>) -> Result<ClusterId, CsiError> {
    match clusters.first() {
        Some(cluster) if clusters.len() == 1 => Ok(*cluster),
        _ => {
            let reason = "source_volume_ids: are of several clusters, which share no point in time";
            Err(CsiError::Precondition { reason: reason.to_owned() })
        }
    }
}

/// Whether an earlier, identical call has done it; a conflict if that was not identical.
fn is_done(plan: &Plan, found: &[SnapshotInfo]) -> Result<bool, CsiError> {
    let conflict = |difference: &str| {
        let what = format!("group snapshot {}", plan.group.name);
        Err(CsiError::Exists { what, difference: difference.to_owned() })
    };
    let of: BTreeSet<VolumeId> = found.iter().map(|snapshot| snapshot.volume).collect();
    if found.is_empty() {
        Ok(false)
    } else if found.iter().any(|snapshot| snapshot.deleting) {
        conflict("it is being deleted")
    } else if of != plan.volumes {
        conflict("of other volumes")
    } else {
        Ok(found.iter().all(|snapshot| snapshot.ready))
    }
}

async fn take(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
) -> Result<Vec<SnapshotInfo>, CsiError> {
    let name = names::member(&plan.group.name);
    let wanted: Vec<(VolumeId, &str)> =
        plan.volumes.iter().map(|volume| (*volume, name.as_str())).collect();
    let wanted = wanted.as_slice();
    let take = context.clusters.call(cluster, "take the snapshots", |service| async move {
        service.create_snapshots(wanted).await
    });
    take.await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::VolumeHandle;

    fn request(ids: &[String]) -> CreateVolumeGroupSnapshotRequest {
        CreateVolumeGroupSnapshotRequest {
            name: "g".to_owned(),
            source_volume_ids: ids.to_vec(),
            ..Default::default()
        }
    }

    fn id(cluster: ClusterId) -> String {
        VolumeHandle { cluster, volume: VolumeId::random() }.to_string()
    }

    #[test]
    fn a_group_is_of_different_volumes_of_one_cluster() {
        let cluster = ClusterId::random();
        let one = id(cluster);
        assert_eq!(plan(&request(&[one.clone(), id(cluster)])).expect("valid").volumes.len(), 2);
        let many: Vec<String> = (0..=SNAPSHOTS_AT_ONCE).map(|_| id(cluster)).collect();
        assert!(matches!(plan(&request(&many)), Err(CsiError::Precondition { .. })));
        let elsewhere = plan(&request(&[one.clone(), id(ClusterId::random())]));
        assert!(matches!(elsewhere, Err(CsiError::Precondition { .. })));
        assert!(matches!(plan(&request(&[one.clone(), one])), Err(CsiError::Invalid { .. })));
        assert!(matches!(plan(&request(&[])), Err(CsiError::Invalid { .. })));
        assert!(matches!(plan(&request(&["x".to_owned()])), Err(CsiError::Missing { .. })));
    }
}
