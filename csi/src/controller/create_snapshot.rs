//! CreateSnapshot: a snapshot of one volume under the orchestrator's name, ready when this answers.
//! Names are the driver's, not the volume's, so another volume's snapshot of the name is a conflict.

use std::sync::Arc;

use csi_proto::csi::v1::{CreateSnapshotRequest, CreateSnapshotResponse};

use super::{Context, snapshots};
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::names;
use crate::parameters::check_snapshot_parameters;
use crate::volumes::SnapshotInfo;

#[derive(Debug)]
struct Plan {
    name: String,
    source: VolumeHandle,
}

pub async fn create_snapshot(
    context: Arc<Context>,
    request: CreateSnapshotRequest,
) -> Result<CreateSnapshotResponse, CsiError> {
    let plan = plan(&request)?;
    let cluster = context.clusters.by_id(plan.source.cluster).await?;
    let found = snapshots::named(&context, &cluster, &plan.name).await?;
    let info = match done_already(&plan, found)? {
        Some(info) => info,
        None => take(&context, &cluster, &plan).await?,
    };
    Ok(CreateSnapshotResponse { snapshot: Some(snapshots::to_csi(cluster.id, &info)) })
}

fn plan(request: &CreateSnapshotRequest) -> Result<Plan, CsiError> {
    names::check(&request.name)?;
    if request.source_volume_id.is_empty() {
        return Err(CsiError::invalid("source_volume_id", "is missing"));
    }
    check_snapshot_parameters(&request.parameters)?;
    let source = super::parse_existing(&request.source_volume_id)?;
    Ok(Plan { name: names::snapshot(&request.name), source })
}

/// The result of an earlier, identical call; a conflict if it was not identical. `None` as long as
/// there is something to do.
fn done_already(plan: &Plan, found: Vec<SnapshotInfo>) -> Result<Option<SnapshotInfo>, CsiError> {
    let conflict =
        |difference| CsiError::Exists { what: format!("snapshot {}", plan.name), difference };
    let of_source = found.iter().find(|snapshot| snapshot.volume == plan.source.volume);
    match of_source.or(found.first()) {
        None => Ok(None),
        Some(other) if other.volume != plan.source.volume => {
            Err(conflict(format!("as {}, of another volume", other.full_name)))
        }
        Some(own) if own.deleting => Err(conflict("it is being deleted".to_owned())),
        Some(own) => Ok(own.ready.then(|| own.clone())),
    }
}

async fn take(context: &Context, cluster: &Cluster, plan: &Plan) -> Result<SnapshotInfo, CsiError> {
    let taken = context.clusters.call(cluster, "take the snapshot", |service| async move {
        service.create_snapshots(&[(plan.source.volume, &plan.name)]).await
    });
    let taken = taken.await?.into_iter().next();
    taken
        .ok_or_else(|| CsiError::Missing { what: format!("the snapshot {} just taken", plan.name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve_types::{ClusterId, VolumeId};

    fn snapshot(volume: VolumeId, ready: bool, deleting: bool) -> SnapshotInfo {
        SnapshotInfo {
            id: VolumeId::random(),
            full_name: "pvc-1@s".to_owned(),
            name: "s".to_owned(),
            volume,
            pool: "default".to_owned(),
            size: 1 << 20,
            created_unix_ms: 0,
            ready,
            deleting,
        }
    }

    #[test]
    fn only_a_ready_snapshot_of_the_same_volume_is_the_answer() {
        let source = VolumeHandle { cluster: ClusterId::random(), volume: VolumeId::random() };
        let plan = Plan { name: "s".to_owned(), source };
        let done = |found: &[&SnapshotInfo]| {
            done_already(&plan, found.iter().map(|snapshot| (*snapshot).clone()).collect())
        };
        let own = snapshot(source.volume, true, false);
        let other = snapshot(VolumeId::random(), true, false);
        assert_eq!(done(&[]).expect("nothing there"), None);
        assert_eq!(done(&[&own]).expect("done"), Some(own.clone()));
        assert_eq!(done(&[&other, &own]).expect("its own counts"), Some(own));
        assert_eq!(done(&[&snapshot(source.volume, false, false)]).expect("goes on"), None);
        for conflict in [other, snapshot(source.volume, true, true)] {
            assert!(matches!(done(&[&conflict]), Err(CsiError::Exists { .. })));
        }
    }
}
