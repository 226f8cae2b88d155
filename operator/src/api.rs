//! What the controllers ask of a cluster's metadata service.

use std::time::Duration;

use async_trait::async_trait;
use curve_client::CreatePool;
use curve_wire::pki::Identity;
use curve_wire::proto::ClusterStatus;
use thiserror::Error;

/// A call that takes longer is given up; the next reconciliation tries again.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Which metadata service, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// UID of the CurveCluster and hash of its authority: one connection is kept per key.
    pub key: String,
    /// `HOST:PORT` of every member.
    pub endpoints: Vec<String>,
    pub identity: Identity,
}

/// The metadata service did not do what was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ApiError {
    /// Nobody answered, or nobody leads; worth another try.
    #[error("{0}")]
    Unreachable(String),
    /// It answered no.
    #[error("{0}")]
    Refused(String),
}

/// The metadata service of any cluster.
#[async_trait]
pub trait ClusterApi: Send + Sync + 'static {
    async fn status(&self, target: &Target) -> Result<ClusterStatus, ApiError>;
    /// Done as well if the pool is already there with the same properties.
    async fn create_pool(&self, target: &Target, pool: &CreatePool) -> Result<(), ApiError>;
    /// Scrubs run in windows of `window_secs` from each minute of the cron expression on.
    async fn set_scrub_schedule(
        &self,
        target: &Target,
        schedule: &str,
        window_secs: u64,
    ) -> Result<(), ApiError>;
    /// Done as well if there is no such pool.
    async fn delete_pool(&self, target: &Target, name: &str) -> Result<(), ApiError>;
}
