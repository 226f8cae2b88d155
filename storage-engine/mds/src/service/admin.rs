//! Status, pools, schedulers and scrubs.

use bytes::Bytes;
use curve_types::{DeviceId, PoolId};
use curve_wire::pki::Role;
use curve_wire::proto::mds_admin_server::MdsAdmin;
use curve_wire::proto::{
    ClusterStatus, CreatePoolRequest, DeletePoolRequest, DeletePoolResponse, GetScrubsRequest,
    GetStatusRequest, ListPoolsRequest, ListPoolsResponse, PauseSchedulersRequest,
    PauseSchedulersResponse, Pool, Scrubs, SetScrubScheduleRequest, SetScrubScheduleResponse,
    StartScrubRequest, StartScrubResponse,
};
use tonic::{Request, Response, Status};

use super::Service;
use super::caller::Caller;
use crate::health::{Member, cluster_status, pool_message, pool_statuses};
use crate::log::{self, WireId, answer, command::Kind};
use crate::scrubs::scrubs;

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
            overcommit_percent: asked.overcommit_percent,
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
        let pools = self.0.look(pool_statuses);
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

    async fn start_scrub(
        &self,
        request: Request<StartScrubRequest>,
    ) -> Result<Response<StartScrubResponse>, Status> {
        Caller::require(&request, &CHANGERS)?;
        let StartScrubRequest { volume, request_id } = request.into_inner();
        let volume_id = match volume {
            Some(volume) => self.volume(Some(&volume), |id, _| id.to_wire())?,
            None => Bytes::new(),
        };
        let request = log::RequestScrub { volume_id };
        let answer = self.0.mutate(&request_id, Kind::RequestScrub(request)).await?;
        let answer::Kind::Copysets(copysets) = answer else {
            return Err(Status::internal("the state machine answered something else"));
        };
        Ok(Response::new(StartScrubResponse { copysets: copysets.ids }))
    }

    async fn get_scrubs(
        &self,
        request: Request<GetScrubsRequest>,
    ) -> Result<Response<Scrubs>, Status> {
        Caller::require(&request, &READERS)?;
        self.0.leading_now().await?;
        let volume = request.into_inner().volume;
        let volume =
            volume.map(|volume| self.volume(Some(&volume), |id, volume| (id, volume.pool)));
        let volume = volume.transpose()?;
        Ok(Response::new(self.0.look(|scene| scrubs(scene, volume))))
    }

    async fn set_scrub_schedule(
        &self,
        request: Request<SetScrubScheduleRequest>,
    ) -> Result<Response<SetScrubScheduleResponse>, Status> {
        Caller::require(&request, &CHANGERS)?;
        let SetScrubScheduleRequest { schedule, window_secs, request_id } = request.into_inner();
        let set = log::SetScrubSchedule { schedule, window_secs };
        self.0.mutate(&request_id, Kind::SetScrubSchedule(set)).await?;
        Ok(Response::new(SetScrubScheduleResponse {}))
    }
}

impl Service {
    fn members(&self) -> Vec<Member> {
        let members = self.0.state.read().members.clone();
        let own = self.0.device;
        let up = |name: &str, device: DeviceId| {
            device == own
                || self.0.peers.heard(name).is_some_and(|said| said.device_id == device.to_wire())
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
