//! The metadata service over the network.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use curve_client::{CreatePool, MdsClient, MdsError, MdsErrorKind};
use curve_wire::proto::ClusterStatus;

use crate::api::{ApiError, CALL_TIMEOUT, ClusterApi, Target};

/// Connections to the metadata services of all clusters, made when first used.
#[derive(Default)]
pub struct MdsConnections {
    clients: Mutex<HashMap<String, (Vec<String>, MdsClient)>>,
}

impl MdsConnections {
    fn client(&self, target: &Target) -> Result<MdsClient, ApiError> {
        let mut known = self.clients.lock().expect("never poisoned");
        if let Some((endpoints, client)) = known.get(&target.key)
            && *endpoints == target.endpoints
        {
            return Ok(client.clone());
        }
        let client = MdsClient::connect(&target.endpoints, &target.identity)
            .map_err(to_api_error)?
            .with_deadline(CALL_TIMEOUT);
        known.insert(target.key.clone(), (target.endpoints.clone(), client.clone()));
        Ok(client)
    }
}

#[async_trait]
impl ClusterApi for MdsConnections {
    async fn status(&self, target: &Target) -> Result<ClusterStatus, ApiError> {
        self.client(target)?.status().await.map_err(to_api_error)
    }

    async fn create_pool(&self, target: &Target, pool: &CreatePool) -> Result<(), ApiError> {
        self.client(target)?.create_pool(pool.clone()).await.map(drop).map_err(to_api_error)
    }

    async fn set_scrub_schedule(
        &self,
        target: &Target,
        schedule: &str,
        window_secs: u64,
    ) -> Result<(), ApiError> {
        let set = self.client(target)?.set_scrub_schedule(schedule, window_secs).await;
        set.map_err(to_api_error)
    }

    async fn delete_pool(&self, target: &Target, name: &str) -> Result<(), ApiError> {
        match self.client(target)?.delete_pool(name).await {
            Err(error) if error.kind == MdsErrorKind::NotFound => Ok(()),
            answer => answer.map_err(to_api_error),
        }
    }
}

fn to_api_error(error: MdsError) -> ApiError {
    match error.kind {
        MdsErrorKind::Unavailable | MdsErrorKind::Internal => {
            ApiError::Unreachable(error.to_string())
        }
        MdsErrorKind::NotFound
        | MdsErrorKind::AlreadyExists
        | MdsErrorKind::FailedPrecondition
        | MdsErrorKind::Exhausted
        | MdsErrorKind::InvalidArgument
        | MdsErrorKind::PermissionDenied => ApiError::Refused(error.message),
    }
}
