//! Between MDS processes. Served from the first moment on, before there is a group.

use std::sync::{Arc, OnceLock};

use curve_raft::RaftHost;
use curve_types::{CopysetId, DeviceId};
use curve_wire::pki::Role;
use curve_wire::proto::mds_peer_server::MdsPeer;
use curve_wire::proto::{DescribeRequest, JoinRequest, JoinResponse, PeerDescription};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::bad_id;
use super::caller::Caller;
use crate::log::{WireId, ids_to_wire};
use crate::machine::SharedState;
use crate::membership;
use crate::node::Node;

pub struct PeerService {
    pub name: String,
    pub device: DeviceId,
    pub host: RaftHost,
    pub state: SharedState,
    /// Set once this process belongs to a group.
    pub node: Arc<OnceLock<Arc<Node>>>,
    /// One newcomer at a time.
    pub joining: Mutex<()>,
}

#[tonic::async_trait]
impl MdsPeer for PeerService {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<PeerDescription>, Status> {
        Caller::require(&request, &[Role::Mds])?;
        let report = self.host.reports().into_iter().find(|report| report.id == CopysetId::MDS);
        let voters: Vec<DeviceId> =
            report.iter().flat_map(|report| report.voters.iter().copied()).collect();
        let cluster = self.state.read().cluster.as_ref().map(|cluster| cluster.id);
        Ok(Response::new(PeerDescription {
            name: self.name.clone(),
            device_id: self.device.to_wire(),
            cluster_id: cluster.map(WireId::to_wire).unwrap_or_default(),
            leader: self.node.get().is_some_and(|node| node.leading().is_ok()),
            member: !voters.is_empty(),
            voters: ids_to_wire(&voters),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = Caller::require(&request, &[Role::Mds])?;
        let JoinRequest { name, device_id } = request.into_inner();
        caller.require_name("name", &name)?;
        let id = DeviceId::from_wire(&device_id).ok_or_else(|| bad_id("device_id", &device_id))?;
        let node = self.node.get().ok_or_else(|| Status::unavailable("not the leader"))?;
        node.leading()?;
        let _one_at_a_time = self.joining.lock().await;
        let cluster = membership::take_in(node, &name, id).await?;
        Ok(Response::new(JoinResponse { cluster_id: cluster.to_wire() }))
    }
}
