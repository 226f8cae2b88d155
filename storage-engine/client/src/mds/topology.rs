//! Where copysets and devices are, followed through the MDS's stream. While no MDS answers, the
//! last map stays in use: it is a hint that chunkservers correct.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use curve_types::{CopysetId, DeviceId, PoolId, ShardId, ShardRange};
use curve_wire::proto::mds_topology_client::MdsTopologyClient;
use curve_wire::proto::{CopysetInfo, Topology, WatchRequest};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::MdsClient;
use super::leader::ANSWER_BYTES_MAX;
use crate::backoff::Backoff;

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Who replicates a range of shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub copyset: CopysetId,
    pub shards: ShardRange,
    pub voters: Vec<DeviceId>,
    /// As last reported.
    pub leader: Option<DeviceId>,
}

/// One version of the cluster's map.
#[derive(Clone, Default, Debug)]
pub(crate) struct TopologyMap {
    pub version: u64,
    addresses: HashMap<DeviceId, String>,
    /// Per pool, in order of shards.
    routes: HashMap<PoolId, Vec<Arc<Route>>>,
}

impl TopologyMap {
    fn of(topology: Topology) -> Self {
        let devices = topology.devices.unwrap_or_default().devices;
        let addresses = devices
            .into_iter()
            .filter_map(|device| Some((device_id(&device.device_id)?, device.address)))
            .collect();
        let mut routes: HashMap<PoolId, Vec<Arc<Route>>> = HashMap::new();
        for copyset in topology.copysets {
            let pool = routes.entry(PoolId(copyset.pool)).or_default();
            pool.push(Arc::new(Route::of(&copyset)));
        }
        routes.values_mut().for_each(|pool| pool.sort_by_key(|route| route.shards.first));
        Self { version: topology.version, addresses, routes }
    }

    /// The copyset that owns a shard.
    pub fn route(&self, pool: PoolId, shard: ShardId) -> Option<&Arc<Route>> {
        let routes = self.routes.get(&pool)?;
        let after = routes.partition_point(|route| route.shards.first <= shard.0);
        routes.get(after.checked_sub(1)?).filter(|route| route.shards.contains(shard))
    }

    /// Whether every shard of the pool has an owner.
    pub fn covers(&self, pool: PoolId) -> bool {
        let shards =
            self.routes.get(&pool).into_iter().flatten().map(|r| r.shards.end - r.shards.first);
        shards.sum::<u32>() == curve_types::SHARDS_PER_POOL
    }

    pub fn address(&self, device: DeviceId) -> Option<&str> {
        self.addresses.get(&device).map(String::as_str)
    }
}

impl Route {
    fn of(info: &CopysetInfo) -> Self {
        Self {
            copyset: CopysetId(info.id),
            shards: ShardRange { first: info.shard_first, end: info.shard_end },
            voters: info.voters.iter().filter_map(device_id).collect(),
            leader: device_id(&info.leader),
        }
    }
}

/// None if it is not 16 bytes, or nil.
fn device_id(bytes: &Bytes) -> Option<DeviceId> {
    let raw: [u8; 16] = bytes[..].try_into().ok()?;
    Some(DeviceId::from_bytes(raw)).filter(|id| !id.is_nil())
}

/// Follows the map until dropped.
pub(crate) struct TopologyWatch {
    map: watch::Receiver<Arc<TopologyMap>>,
    task: JoinHandle<()>,
}

impl Drop for TopologyWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TopologyWatch {
    pub fn start(mds: MdsClient) -> Arc<Self> {
        let (sender, map) = watch::channel(Arc::new(TopologyMap::default()));
        let task = tokio::spawn(follow(mds, sender));
        Arc::new(Self { map, task })
    }

    pub fn current(&self) -> Arc<TopologyMap> {
        self.map.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<TopologyMap>> {
        self.map.clone()
    }
}

async fn follow(mds: MdsClient, sender: watch::Sender<Arc<TopologyMap>>) {
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
    loop {
        for channel in mds.channels() {
            let mut client =
                MdsTopologyClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let Ok(answer) = client.watch(WatchRequest {}).await else { continue };
            let mut stream = answer.into_inner();
            while let Ok(Some(topology)) = stream.message().await {
                backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
                accept(&sender, topology);
            }
            tracing::debug!("the topology stream ended");
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// A map older than the one we have comes from a leader that was replaced.
fn accept(sender: &watch::Sender<Arc<TopologyMap>>, topology: Topology) {
    let map = TopologyMap::of(topology);
    sender.send_if_modified(|current| {
        let newer = map.version >= current.version;
        if newer {
            *current = Arc::new(map);
        }
        newer
    });
}
