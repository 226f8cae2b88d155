//! Tells the MDS what is here and takes its orders, once a second. IO never waits for this: while
//! no MDS answers, everything stays as it was last ordered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use curve_client::MdsClient;
use curve_raft::GroupReport;
use curve_types::{BLOCK_SIZE, DeviceId};
use curve_wire::proto::{DeviceMap, HeartbeatRequest, ReplicaReport, ScrubReport};
use tokio::time::MissedTickBehavior;

use crate::ChunkserverOptions;
use crate::orders::Orders;
use crate::server::BlockServer;

/// Often enough that the MDS tells a dead chunkserver from a slow one within seconds.
const PERIOD: Duration = Duration::from_secs(1);
/// A heartbeat that is older than this says nothing new.
const DEADLINE: Duration = Duration::from_secs(5);

/// Beats until dropped.
pub(crate) async fn beat(server: Arc<BlockServer>, options: ChunkserverOptions, mds: MdsClient) {
    let mds = mds.with_deadline(DEADLINE);
    let mut orders = Orders::new(server.clone());
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = false;
    let mut commits = server.store().commits();
    loop {
        ticks.tick().await;
        let reports = server.host().reports();
        server.metrics().observe(&server.store().usage(), &reports);
        let before = std::mem::replace(&mut commits, server.store().commits());
        let commit = commits.mean_since(&before);
        let request = request(&server, &options, &reports, commit);
        match mds.heartbeat(request).await {
            Ok(response) => {
                if std::mem::take(&mut silent) {
                    tracing::info!("the MDS answers again");
                }
                if let Some(devices) = response.devices {
                    let version = devices.version;
                    server.addresses().replace(version, addresses(devices));
                }
                orders.carry_out(response.host, response.drop).await;
                orders.lead(response.changes, response.transfers, &reports);
                server.scrub(response.scrubs);
            }
            Err(error) if silent => tracing::debug!(%error, "no answer to a heartbeat"),
            Err(error) => {
                silent = true;
                tracing::warn!(%error, "no answer to a heartbeat; IO goes on");
            }
        }
    }
}

fn request(
    server: &BlockServer,
    options: &ChunkserverOptions,
    reports: &[GroupReport],
    commit: Option<Duration>,
) -> HeartbeatRequest {
    let usage = server.store().usage();
    let mut scrubs = server.scrub_reports();
    let usable = usage.data_blocks_total.saturating_sub(usage.data_blocks_reserve);
    HeartbeatRequest {
        device_id: id_bytes(server.device()),
        address: options.advertise.clone(),
        host: options.host.clone(),
        zone: options.zone.clone(),
        capacity: usable * BLOCK_SIZE,
        used: usage.data_blocks_used * BLOCK_SIZE,
        replicas: reports.iter().map(|report| replica(report, scrubs.remove(&report.id))).collect(),
        known_topology: server.addresses().version(),
        commit_us: commit.map_or(0, |commit| commit.as_micros().max(1) as u64),
    }
}

fn replica(report: &GroupReport, scrub: Option<ScrubReport>) -> ReplicaReport {
    let ids = |ids: &std::collections::BTreeSet<DeviceId>| match report.is_leader {
        true => ids.iter().copied().map(id_bytes).collect(),
        false => Vec::new(),
    };
    ReplicaReport {
        copyset: report.id.0,
        leader: report.is_leader,
        term: report.term,
        applied: report.applied.unwrap_or(0),
        voters: ids(&report.voters),
        learners: ids(&report.learners),
        caught_up: ids(&report.caught_up),
        config_index: report.config_index.unwrap_or(0),
        leader_id: report.leader.map(id_bytes).unwrap_or_default(),
        scrub,
    }
}

fn id_bytes(id: DeviceId) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}

fn addresses(map: DeviceMap) -> HashMap<DeviceId, String> {
    let devices = map.devices.into_iter();
    devices
        .filter_map(|device| {
            let id: [u8; 16] = device.device_id[..].try_into().ok()?;
            Some((DeviceId::from_bytes(id), device.address))
        })
        .collect()
}
