//! Waits until a volume could be used: an MDS leads, every chunkserver reports, and all copysets of
//! the pool `default`, which is made if it is missing, have a leader and all replicas.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use curve_client::{ClientConfig, CreatePool, MdsClient, MdsErrorKind};
use curve_types::REPLICAS_MIN;
use curve_wire::proto::{ClusterStatus, FailureDomain};

use super::plan::Plan;
use crate::cluster;
use crate::output::id_text;

const POLL: Duration = Duration::from_millis(100);
/// One question; the MDS group may still be electing.
const DEADLINE: Duration = Duration::from_secs(5);
/// Elections, formatting and the first copysets take seconds, a long log to replay more.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Unready for this long, the reason is logged, and again each time.
const REPORT: Duration = Duration::from_secs(10);
const POOL: &str = "default";

/// A cluster that is ready.
pub struct Found {
    pub cluster_id: String,
    /// Chunkserver's name to device id.
    pub devices: BTreeMap<String, String>,
}

pub async fn wait(dir: &Path, plan: &Plan) -> Result<Found> {
    let config = ClientConfig::load(&dir.join("client.toml"))?;
    let mds = cluster::connect(&config)?.with_deadline(DEADLINE);
    let (started, mut reported) = (Instant::now(), Instant::now());
    loop {
        let why = match check(&mds, plan).await {
            Ok(found) => return Ok(found),
            Err(why) => why,
        };
        if started.elapsed() > TIMEOUT {
            bail!("not ready after {TIMEOUT:?}: {why}; see {}", dir.join("log").display());
        }
        if reported.elapsed() > REPORT {
            tracing::info!(why, "not ready yet");
            reported = Instant::now();
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What is still missing.
async fn check(mds: &MdsClient, plan: &Plan) -> Result<Found, String> {
    let status = mds.status().await.map_err(|error| error.to_string())?;
    let devices = devices(&status, plan)?;
    let name = |pool: &curve_wire::proto::PoolStatus| pool.pool.clone().unwrap_or_default().name;
    let Some(pool) = status.pools.iter().find(|pool| name(pool) == POOL) else {
        create_pool(mds).await?;
        return Err("the pool is being made".to_owned());
    };
    let copysets: u32 = status.pools.iter().map(|pool| pool.copysets).sum();
    if pool.copysets == 0 || status.copysets_whole != copysets {
        let whole = status.copysets_whole;
        return Err(format!("{whole} of {copysets} copysets are whole"));
    }
    Ok(Found { cluster_id: id_text(&status.cluster_id), devices })
}

fn devices(status: &ClusterStatus, plan: &Plan) -> Result<BTreeMap<String, String>, String> {
    let up = status.devices.iter().filter(|device| device.up && !device.out);
    let up: BTreeMap<String, String> =
        up.map(|device| (device.name.clone(), id_text(&device.device_id))).collect();
    match plan.chunkservers.iter().find(|server| !up.contains_key(&server.name)) {
        Some(missing) => Err(format!("{} does not report", missing.name)),
        None => Ok(up),
    }
}

async fn create_pool(mds: &MdsClient) -> Result<(), String> {
    let pool = CreatePool {
        name: POOL.to_owned(),
        replicas: REPLICAS_MIN,
        failure_domain: FailureDomain::Host,
        device_class: String::new(),
        overcommit_percent: None,
    };
    match mds.create_pool(pool).await {
        Err(error) if error.kind != MdsErrorKind::AlreadyExists => Err(error.to_string()),
        _ => Ok(()),
    }
}
