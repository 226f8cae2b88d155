//! Status, pools and schedulers.

use curve_wire::proto::mds_admin_client::MdsAdminClient;
use curve_wire::proto::{
    ClusterStatus, CreatePoolRequest, DeletePoolRequest, FailureDomain, GetStatusRequest,
    ListPoolsRequest, PauseSchedulersRequest, Pool, PoolStatus,
};

use super::leader::ANSWER_BYTES_MAX;
use super::{MdsClient, MdsError, request_id};

/// A pool to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatePool {
    pub name: String,
    pub replicas: u32,
    pub failure_domain: FailureDomain,
    /// Empty: any.
    pub device_class: String,
}

impl MdsClient {
    pub async fn status(&self) -> Result<ClusterStatus, MdsError> {
        self.call("get status", GetStatusRequest {}, |channel, request| async move {
            let client = MdsAdminClient::new(channel);
            client.max_decoding_message_size(ANSWER_BYTES_MAX).get_status(request).await
        })
        .await
    }

    pub async fn create_pool(&self, pool: CreatePool) -> Result<Pool, MdsError> {
        let request = CreatePoolRequest {
            name: pool.name,
            replicas: pool.replicas,
            failure_domain: pool.failure_domain.into(),
            device_class: pool.device_class,
            request_id: request_id(),
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

    pub async fn delete_pool(&self, name: &str) -> Result<(), MdsError> {
        let request = DeletePoolRequest { name: name.to_owned(), request_id: request_id() };
        self.call("delete pool", request, |channel, request| async move {
            MdsAdminClient::new(channel).delete_pool(request).await
        })
        .await?;
        Ok(())
    }
}
