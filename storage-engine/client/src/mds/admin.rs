//! Status, pools, schedulers and scrubs.

use curve_wire::proto::mds_admin_client::MdsAdminClient;
use curve_wire::proto::{
    ClusterStatus, CreatePoolRequest, DeletePoolRequest, FailureDomain, GetScrubsRequest,
    GetStatusRequest, ListPoolsRequest, PauseSchedulersRequest, Pool, PoolStatus, Scrubs,
    SetScrubScheduleRequest, StartScrubRequest, VolumeRef,
};

use super::leader::ANSWER_BYTES_MAX;
use super::{MdsClient, MdsError, VolumeBy, request_id};

/// A pool to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatePool {
    pub name: String,
    pub replicas: u32,
    pub failure_domain: FailureDomain,
    /// Empty: any.
    pub device_class: String,
    /// What its volumes may have in all, of its capacity. None: 100, or, of a pool that exists, as
    /// it was.
    pub overcommit_percent: Option<u32>,
}

impl MdsClient {
    pub async fn status(&self) -> Result<ClusterStatus, MdsError> {
        self.call("get status", GetStatusRequest {}, |channel, request| async move {
            let client = MdsAdminClient::new(channel);
            client.max_decoding_message_size(ANSWER_BYTES_MAX).get_status(request).await
        })
        .await
    }

    /// The existing pool if it has the same properties; it takes over another overcommit.
    pub async fn create_pool(&self, pool: CreatePool) -> Result<Pool, MdsError> {
        let request = CreatePoolRequest {
            name: pool.name,
            replicas: pool.replicas,
            failure_domain: pool.failure_domain.into(),
            device_class: pool.device_class,
            request_id: request_id(),
            overcommit_percent: pool.overcommit_percent.unwrap_or_default(),
        };
        self.call("create pool", request, |channel, request| async move {
            MdsAdminClient::new(channel).create_pool(request).await
        })
        .await
    }

    pub async fn list_pools(&self) -> Result<Vec<PoolStatus>, MdsError> {
        let answer = self
            .call("list pools", ListPoolsRequest {}, |channel, request| async move {
                MdsAdminClient::new(channel).list_pools(request).await
            })
            .await?;
        Ok(answer.pools)
    }

    /// Pauses schedulers (none named: all), or lets them go on.
    pub async fn pause_schedulers(
        &self,
        schedulers: Vec<String>,
        paused: bool,
    ) -> Result<(), MdsError> {
        let request = PauseSchedulersRequest { schedulers, paused, request_id: request_id() };
        self.call("pause schedulers", request, |channel, request| async move {
            MdsAdminClient::new(channel).pause_schedulers(request).await
        })
        .await?;
        Ok(())
    }

    /// Asks for a scrub of the copysets that hold a volume, or of all; answers which they are.
    pub async fn start_scrub(&self, volume: Option<&str>) -> Result<Vec<u32>, MdsError> {
        let request = StartScrubRequest { volume: volume.map(by_name), request_id: request_id() };
        let answer = self
            .call("start scrub", request, |channel, request| async move {
                MdsAdminClient::new(channel).start_scrub(request).await
            })
            .await?;
        Ok(answer.copysets)
    }

    /// Of the copysets that hold a volume, or of all.
    pub async fn scrubs(&self, volume: Option<&str>) -> Result<Scrubs, MdsError> {
        let request = GetScrubsRequest { volume: volume.map(by_name) };
        self.call("get scrubs", request, |channel, request| async move {
            let client = MdsAdminClient::new(channel);
            client.max_decoding_message_size(ANSWER_BYTES_MAX).get_scrubs(request).await
        })
        .await
    }

    /// Lets scrubs run in windows of `window_secs` from each minute of a cron expression on; in
    /// none in particular if it is empty.
    pub async fn set_scrub_schedule(
        &self,
        schedule: &str,
        window_secs: u64,
    ) -> Result<(), MdsError> {
        let (schedule, request_id) = (schedule.to_owned(), request_id());
        let request = SetScrubScheduleRequest { schedule, window_secs, request_id };
        self.call("set scrub schedule", request, |channel, request| async move {
            MdsAdminClient::new(channel).set_scrub_schedule(request).await
        })
        .await?;
        Ok(())
    }

    pub async fn delete_pool(&self, name: &str) -> Result<(), MdsError> {
        let request = DeletePoolRequest { name: name.to_owned(), request_id: request_id() };
        self.call("delete pool", request, |channel, request| async move {
            MdsAdminClient::new(channel).delete_pool(request).await
        })
        .await?;
        Ok(())
    }
}

fn by_name(name: &str) -> VolumeRef {
    VolumeBy::from(name).into()
}
