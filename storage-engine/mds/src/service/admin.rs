//! Status, pools and schedulers.

use curve_types::PoolId;
use curve_wire::pki::Role;
use curve_wire::proto::mds_admin_server::MdsAdmin;
use curve_wire::proto::{
    ClusterStatus, CreatePoolRequest, DeletePoolRequest, DeletePoolResponse, GetStatusRequest,
    ListPoolsRequest, ListPoolsResponse, PauseSchedulersRequest, PauseSchedulersResponse, Pool,
};
use tonic::{Request, Response, Status};

use super::Service;
use super::caller::Caller;
use crate::health::{Member, cluster_status, pool_message, pool_status};
use crate::log::{self, answer, command::Kind};

const READERS: [Role; 3] = [Role::Admin, Role::Operator, Role::Csi];
const CHANGERS: [Role; 2] = [Role::Admin, Role::Operator];

#[tonic::async_trait]
impl MdsAdmin for Service {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        Caller::require(&request, &READERS)?;
        self.0.leading_now().await?;
        let members = self.members();
        Ok(Response::new(self.0.look(|scene| cluster_status(scene, &members))))
    }

    async fn create_pool(
        &self,
        request: Request<CreatePoolRequest>,
    ) -> Result<Response<Pool>, Status> {
        Caller::require(&request, &CHANGERS)?;
        let asked = request.into_inner();
        let create = log::CreatePool {
            name: asked.name,
            replicas: asked.replicas,
            failure_domain: u32::try_from(asked.failure_domain).unwrap_or(u32::MAX),
            device_class: asked.device_class,
        };
        let answer = self.0.mutate(&asked.request_id, Kind::CreatePool(create)).await?;
        let answer::Kind::Pool(id) = answer else {
            return Err(Status::internal("the state machine answered something else"));
        };
        let state = self.0.state.read();
        if !state.pools.contains_key(&PoolId(id)) {
            return Err(Status::aborted("the pool was deleted meanwhile"));
        }
        Ok(Response::new(pool_message(&state, PoolId(id))))
    }

    async fn list_pools(
        &self,
        request: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        Caller::require(&request, &READERS)?;
        self.0.leading_now().await?;
        let pools = self
            .0
            .look(|scene| scene.state.pools.keys().map(|id| pool_status(scene, *id)).collect());
        Ok(Response::new(ListPoolsResponse { pools }))
    }

    async fn delete_pool(
        &self,
        request: Request<DeletePoolRequest>,
    ) -> Result<Response<DeletePoolResponse>, Status> {
        Caller::require(&request, &CHANGERS)?;
        let asked = request.into_inner();
        self.0.mutate(&asked.request_id, Kind::DeletePool(asked.name)).await?;
        Ok(Response::new(DeletePoolResponse {}))
    }

    async fn pause_schedulers(
        &self,
        request: Request<PauseSchedulersRequest>,
    ) -> Result<Response<PauseSchedulersResponse>, Status> {
        Caller::require(&request, &CHANGERS)?;
        let PauseSchedulersRequest { schedulers, paused, request_id } = request.into_inner();
        let pause = log::PauseSchedulers { schedulers, paused };
        self.0.mutate(&request_id, Kind::PauseSchedulers(pause)).await?;
        Ok(Response::new(PauseSchedulersResponse {}))
    }
}

impl Service {
    fn members(&self) -> Vec<Member> {
        let members = self.0.state.read().members.clone();
        let own = self.0.device;
        let up = |name: &str, device| {
            device == own
                || self
                    .0
                    .peers
                    .heard(name)
                    .is_some_and(|said| said.device_id == <_ as log::WireId>::to_wire(device))
        };
        members
            .into_iter()
            .map(|(name, device)| Member {
                up: up(&name, device),
                leader: device == own,
                name,
                device,
            })
            .collect()
    }
}
