//! ListVolumes: all clusters by id, in each the volumes by name. A token names the last volume of
//! a page, so that pages stay right while volumes come and go. A cluster that does not answer fails
//! the call: who gets a list without its volumes takes them for deleted and detached.

use csi_proto::csi::v1::list_volumes_response::{Entry, VolumeStatus};
use csi_proto::csi::v1::{ListVolumesRequest, ListVolumesResponse};
use curve_types::ClusterId;

use super::{Context, to_csi};
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::volumes::{VolumeInfo, VolumePage};

/// Entries per page where the request does not say; well below gRPC's 4 MiB per message.
const PAGE: u32 = 1000;

/// Everything up to and including this has been listed. `CLUSTER_UUID/NAME` on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Token {
    cluster: ClusterId,
    name: String,
}

impl Token {
    fn parse(text: &str) -> Result<Option<Self>, CsiError> {
        if text.is_empty() {
            return Ok(None);
        }
        let error = || CsiError::Token { token: text.to_owned() };
        let (cluster, name) = text.split_once('/').ok_or_else(error)?;
        let cluster = cluster.parse().map_err(|_| error())?;
        Ok(Some(Self { cluster, name: name.to_owned() }))
    }
}

pub async fn list_volumes(
    context: &Context,
    request: ListVolumesRequest,
) -> Result<ListVolumesResponse, CsiError> {
    let limit = match u32::try_from(request.max_entries) {
        Ok(0) => PAGE,
        Ok(limit) => limit.min(PAGE),
        Err(_) => return Err(CsiError::invalid("max_entries", "is negative")),
    };
    let token = Token::parse(&request.starting_token)?;
    let mut response = ListVolumesResponse::default();
    // Where a following page would begin: after the last volume of this one.
    let mut last = None;
    for cluster in context.clusters.all().await? {
        let after = match &token {
            Some(token) if cluster.id < token.cluster => continue,
            Some(token) if cluster.id == token.cluster => token.name.as_str(),
            _ => "",
        };
        let room = limit - response.entries.len() as u32;
        if room == 0 {
            response.next_token = last.unwrap_or_default();
            break;
        }
        let page = page(context, &cluster, after, room).await?;
        if let Some(volume) = page.volumes.last() {
            last = Some(format!("{}/{}", cluster.id, volume.name));
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
        let page = page(context, cluster, &after, PAGE).await?;
        let more = page.more && !page.volumes.is_empty();
        volumes.extend(page.volumes);
        if !more {
            return Ok(volumes);
        }
    }
}

async fn page(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_garbage_is_refused() {
        let cluster = ClusterId::random();
        let token = Token::parse(&format!("{cluster}/pvc/odd name")).expect("valid");
        assert_eq!(token, Some(Token { cluster, name: "pvc/odd name".to_owned() }));
        assert_eq!(Token::parse("").expect("none"), None);
        for text in ["x", "7", "a/b", "invalid-token"] {
            assert!(matches!(Token::parse(text), Err(CsiError::Token { .. })), "{text}");
        }
    }
}
