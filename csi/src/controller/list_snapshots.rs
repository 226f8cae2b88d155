//! ListSnapshots: one snapshot, those of one volume, or all clusters by id and in each the
//! snapshots by name. What is named and does not exist gives an empty list, as CSI wants it; a
//! cluster that does not answer fails the call, as in ListVolumes.

use csi_proto::csi::v1::list_snapshots_response::Entry;
use csi_proto::csi::v1::{ListSnapshotsRequest, ListSnapshotsResponse};
use curve_types::{ClusterId, VolumeId};

use super::page::{self, Token};
use super::{Context, snapshots};
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::handle::{SnapshotHandle, VolumeHandle};
use crate::volumes::{SnapshotInfo, SnapshotPage};

/// Which snapshots are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// Ids that name nothing of ours.
    Nothing,
    One {
        snapshot: SnapshotHandle,
        /// If it is of this one.
        source: Option<VolumeHandle>,
    },
    Of(VolumeHandle),
    All,
}

pub async fn list_snapshots(
    context: &Context,
    request: ListSnapshotsRequest,
) -> Result<ListSnapshotsResponse, CsiError> {
    let limit = page::limit(request.max_entries)?;
    let token = Token::parse("ListSnapshots", &request.starting_token)?;
    match parse(&request) {
        Asked::Nothing => Ok(ListSnapshotsResponse::default()),
        Asked::One { snapshot, source } => one(context, snapshot, source).await,
        Asked::Of(source) => {
            let clusters = vec![context.clusters.by_id(source.cluster).await?];
            pages(context, clusters, Some(source.volume), token, limit).await
        }
        Asked::All => {
            let clusters = context.clusters.all().await?;
            pages(context, clusters, None, token, limit).await
        }
    }
}

fn parse(request: &ListSnapshotsRequest) -> Asked {
    let source = match request.source_volume_id.as_str() {
        "" => None,
        text => match text.parse() {
            Ok(source) => Some(source),
            Err(_) => return Asked::Nothing,
        },
    };
    match (request.snapshot_id.as_str(), source) {
        ("", None) => Asked::All,
        ("", Some(source)) => Asked::Of(source),
        (text, source) => {
            text.parse().map_or(Asked::Nothing, |snapshot| Asked::One { snapshot, source })
        }
    }
}

async fn one(
    context: &Context,
    handle: SnapshotHandle,
    source: Option<VolumeHandle>,
) -> Result<ListSnapshotsResponse, CsiError> {
    let cluster = context.clusters.by_id(handle.cluster).await?;
    let info = match snapshots::look_up(context, &cluster, handle).await {
        Err(error) if error.is_missing() => return Ok(ListSnapshotsResponse::default()),
        other => other?,
    };
    let of = VolumeHandle { cluster: cluster.id, volume: info.volume };
    let wanted = source.is_none_or(|source| source == of);
    let entries = wanted.then(|| entry(cluster.id, &info)).into_iter().collect();
    Ok(ListSnapshotsResponse { entries, next_token: String::new() })
}

async fn pages(
    context: &Context,
    clusters: Vec<Cluster>,
    volume: Option<VolumeId>,
    token: Option<Token>,
    limit: u32,
) -> Result<ListSnapshotsResponse, CsiError> {
    let mut response = ListSnapshotsResponse::default();
    // Where a following page would begin: after the last snapshot of this one.
    let mut last = None;
    for cluster in clusters {
        let Some(after) = page::start(token.as_ref(), cluster.id) else { continue };
        let room = limit - response.entries.len() as u32;
        if room == 0 {
            response.next_token = last.unwrap_or_default();
            break;
        }
        let page = snapshots_after(context, &cluster, volume, after, room).await?;
        if let Some(snapshot) = page.snapshots.last() {
            last = Some(Token::after(cluster.id, &snapshot.full_name));
        }
        response.entries.extend(page.snapshots.iter().map(|info| entry(cluster.id, info)));
        if page.more {
            response.next_token = last.unwrap_or_default();
            break;
        }
    }
    Ok(response)
}

async fn snapshots_after(
    context: &Context,
    cluster: &Cluster,
    volume: Option<VolumeId>,
    after: &str,
    limit: u32,
) -> Result<SnapshotPage, CsiError> {
    let list = context.clusters.call(cluster, "list its snapshots", |service| async move {
        service.list_snapshots(volume, after, limit).await
    });
    match list.await {
        Err(error) if volume.is_some() && error.is_missing() => Ok(SnapshotPage::default()),
        other => other,
    }
}

fn entry(cluster: ClusterId, info: &SnapshotInfo) -> Entry {
    Entry { snapshot: Some(snapshots::to_csi(cluster, info)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_no_handle_names_nothing() {
        let (cluster, id) = (ClusterId::random(), VolumeId::random());
        let snapshot = SnapshotHandle { cluster, snapshot: id };
        let volume = VolumeHandle { cluster, volume: id };
        let asked = |snapshot: &str, source: &str| {
            parse(&ListSnapshotsRequest {
                snapshot_id: snapshot.to_owned(),
                source_volume_id: source.to_owned(),
                ..Default::default()
            })
        };
        let (s, v) = (snapshot.to_string(), volume.to_string());
        assert_eq!(asked("", ""), Asked::All);
        assert_eq!(asked("", &v), Asked::Of(volume));
        assert_eq!(asked(&s, ""), Asked::One { snapshot, source: None });
        assert_eq!(asked(&s, &v), Asked::One { snapshot, source: Some(volume) });
        for (snapshot, source) in [("x", ""), ("", "x"), (&v, ""), ("", &s), (&s, "x")] {
            assert_eq!(asked(snapshot, source), Asked::Nothing, "{snapshot} {source}");
        }
    }
}
