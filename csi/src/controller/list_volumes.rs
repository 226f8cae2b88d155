//! ListVolumes: all clusters by id, in each the volumes by name. A cluster that does not answer
//! fails the call: who gets a list without its volumes takes them for deleted and detached.

use csi_proto::csi::v1::list_volumes_response::{Entry, VolumeStatus};
use csi_proto::csi::v1::{ListVolumesRequest, ListVolumesResponse};

use super::page::{self, PAGE, Token};
use super::{Context, to_csi};
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::volumes::{VolumeInfo, VolumePage};

pub async fn list_volumes(
    context: &Context,
    request: ListVolumesRequest,
) -> Result<ListVolumesResponse, CsiError> {
    let limit = page::limit(request.max_entries)?;
    let token = Token::parse("ListVolumes", &request.starting_token)?;
    let mut response = ListVolumesResponse::default();
    // Where a following page would begin: after the last volume of this one.
    let mut last = None;
    for cluster in context.clusters.all().await? {
        let Some(after) = page::start(token.as_ref(), cluster.id) else { continue };
        let room = limit - response.entries.len() as u32;
        if room == 0 {
            response.next_token = last.unwrap_or_default();
            break;
        }
        let page = volumes_after(context, &cluster, after, room).await?;
        if let Some(volume) = page.volumes.last() {
            last = Some(Token::after(cluster.id, &volume.name));
        }
        response.entries.extend(page.volumes.into_iter().map(|info| entry(&cluster, info)));
        if page.more {
            response.next_token = last.unwrap_or_default();
            break;
        }
    }
    Ok(response)
}

/// Every volume of a cluster, page by page.
pub async fn all_volumes(
    context: &Context,
    cluster: &Cluster,
) -> Result<Vec<VolumeInfo>, CsiError> {
    let mut volumes: Vec<VolumeInfo> = Vec::new();
    loop {
        let after = volumes.last().map(|volume| volume.name.clone()).unwrap_or_default();
        let page = volumes_after(context, cluster, &after, PAGE).await?;
        let more = page.more && !page.volumes.is_empty();
        volumes.extend(page.volumes);
        if !more {
            return Ok(volumes);
        }
    }
}

async fn volumes_after(
    context: &Context,
    cluster: &Cluster,
    after: &str,
    limit: u32,
) -> Result<VolumePage, CsiError> {
    let list = context.clusters.call(cluster, "list its volumes", |service| async move {
        service.list(after, limit).await
    });
    list.await
}

fn entry(cluster: &Cluster, info: VolumeInfo) -> Entry {
    let handle = VolumeHandle { cluster: cluster.id, volume: info.id };
    let volume = to_csi(handle, &info, Default::default());
    let status = VolumeStatus { published_node_ids: info.nodes, volume_condition: None };
    Entry { volume: Some(volume), status: Some(status) }
}
