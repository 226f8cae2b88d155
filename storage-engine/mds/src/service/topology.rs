//! Where copysets are, pushed to whoever watches.

use std::pin::Pin;

use curve_wire::pki::Role;
use curve_wire::proto::mds_topology_server::MdsTopology;
use curve_wire::proto::{Topology, WatchRequest};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::Service;
use super::caller::Caller;

const WATCHERS: [Role; 5] =
    [Role::Agent, Role::Admin, Role::Csi, Role::Operator, Role::Chunkserver];

#[tonic::async_trait]
impl MdsTopology for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Topology, Status>> + Send>>;

    /// Ends with UNAVAILABLE when this process no longer leads: the watcher asks another.
    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Caller::require(&request, &WATCHERS)?;
        self.0.leading_now().await?;
        let mut over = false;
        let stream = WatchStream::new(self.0.topology.subscribe())
            .map(|topology| match topology {
                Some(topology) => Ok(topology.as_ref().clone()),
                None => Err(Status::unavailable("not the leader")),
            })
            .take_while(move |item| !std::mem::replace(&mut over, item.is_err()));
        Ok(Response::new(Box::pin(stream)))
    }
}
