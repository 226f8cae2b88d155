//! What the RPCs about snapshots share: looking them up, and what the orchestrator is told of one.

use csi_proto::csi::v1 as csi;
use curve_types::ClusterId;
use prost_types::Timestamp;

use super::Context;
use super::page::PAGE;
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::handle::{GroupHandle, SnapshotHandle, VolumeHandle};
use crate::names;
use crate::volumes::SnapshotInfo;

/// A snapshot id that the request must carry.
pub fn require_snapshot_id(id: &str) -> Result<(), CsiError> {
    if id.is_empty() { Err(CsiError::invalid("snapshot_id", "is missing")) } else { Ok(()) }
}

/// A handle of an existing snapshot: what is no handle of ours names no snapshot.
pub fn parse_existing(id: &str) -> Result<SnapshotHandle, CsiError> {
    require_snapshot_id(id)?;
    id.parse().map_err(|error| CsiError::Missing { what: format!("snapshot: {error}; it") })
}

/// The snapshot of a handle that must name one.
pub async fn look_up(
    context: &Context,
    cluster: &Cluster,
    handle: SnapshotHandle,
) -> Result<SnapshotInfo, CsiError> {
    let look = context.clusters.call(cluster, "look up the snapshot", |service| async move {
        service.get_snapshot(handle.snapshot).await
    });
    look.await
}

/// The snapshots of that name, each of another volume. All of the cluster's are looked through, so
/// that one whose volume is gone is found too: a page per `PAGE` snapshots, which is little beside
/// what follows in every RPC that asks.
pub async fn named(
    context: &Context,
    cluster: &Cluster,
    name: &str,
) -> Result<Vec<SnapshotInfo>, CsiError> {
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let from = after.as_str();
        let list = context.clusters.call(cluster, "list its snapshots", |service| async move {
            service.list_snapshots(None, from, PAGE).await
        });
        let page = list.await?;
        let last = page.snapshots.last().map(|snapshot| snapshot.full_name.clone());
        found.extend(page.snapshots.into_iter().filter(|snapshot| snapshot.name == name));
        match last {
            Some(last) if page.more => after = last,
            _ => return Ok(found),
        }
    }
}

/// A snapshot as the orchestrator remembers it.
pub fn to_csi(cluster: ClusterId, info: &SnapshotInfo) -> csi::Snapshot {
    let group = names::group_of(&info.name);
    let group = group.map(|name| GroupHandle { cluster, name: name.to_owned() }.to_string());
    csi::Snapshot {
        size_bytes: info.size as i64,
        snapshot_id: SnapshotHandle { cluster, snapshot: info.id }.to_string(),
        source_volume_id: VolumeHandle { cluster, volume: info.volume }.to_string(),
        creation_time: Some(timestamp(info.created_unix_ms)),
        ready_to_use: info.ready,
        group_snapshot_id: group.unwrap_or_default(),
    }
}

fn timestamp(unix_ms: u64) -> Timestamp {
    let nanos = (unix_ms % 1000 * 1_000_000) as i32;
    Timestamp { seconds: (unix_ms / 1000) as i64, nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_milliseconds_becomes_seconds_and_nanoseconds() {
        let time = timestamp(1_700_000_000_123);
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_000_000));
    }
}
