//! NodeGetInfo: who this node is and from where its volumes can be reached.

use csi_proto::csi::v1::{NodeGetInfoResponse, Topology};

use super::Context;
use crate::{TOPOLOGY_KEY, TOPOLOGY_VALUE};

pub fn get_info(context: &Context) -> NodeGetInfoResponse {
    let segments = [(TOPOLOGY_KEY.to_owned(), TOPOLOGY_VALUE.to_owned())].into();
    NodeGetInfoResponse {
        node_id: context.node_id.clone(),
        max_volumes_per_node: context.volumes_max.into(),
        accessible_topology: Some(Topology { segments }),
    }
}
