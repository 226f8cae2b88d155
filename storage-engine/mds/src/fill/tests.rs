//! Pools that fill up, with and without promises that they could not keep.

use std::time::Duration;

use curve_types::{CopysetId, DeviceId, SHARDS_PER_POOL, ShardRange, VolumeId};

use super::*;
use crate::health::cluster_status;
use crate::log::{self, WireId, command::Kind};
use crate::state::{Copyset, Device, State};
use crate::view::{Heard, Report, View};

const GIB: u64 = 1 << 30;
const POOL: PoolId = PoolId(1);

fn device(n: u8) -> DeviceId {
    DeviceId::from_bytes([n; 16])
}

fn volume(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 16])
}

/// Three devices that hold every shard: the pool can store 19 GiB.
struct Cluster {
    state: State,
    view: View,
}

impl Cluster {
    fn new(overcommit_percent: u32) -> Self {
        let mut state = State::default();
        let id = curve_types::ClusterId::from_bytes([1; 16]).to_wire();
        let form =
            log::FormCluster { cluster_id: id, name: "demo".to_owned(), members: Vec::new() };
        apply(&mut state, Kind::FormCluster(form));
        let (name, replicas) = ("default".to_owned(), 3);
        let pool = log::CreatePool { name, replicas, overcommit_percent, ..Default::default() };
        apply(&mut state, Kind::CreatePool(pool));
        for n in 1..=3 {
            let (name, capacity) = (format!("cs-{n}"), 20 * GIB);
            let found = Device { host: name.clone(), name, capacity, ..Device::default() };
            state.devices.insert(device(n), found);
        }
        let copyset = Copyset {
            pool: POOL,
            shards: ShardRange { first: 0, end: SHARDS_PER_POOL },
            voters: (1..=3).map(device).collect(),
            active: true,
            config_index: 1,
            joining: None,
            splitting: None,
            split_from: None,
        };
        state.copysets.insert(CopysetId(1), copyset);
        Self { state, view: View::begin(Duration::ZERO) }
    }

    fn with_volume(mut self, n: u8, size: u64) -> Self {
        let (volume_id, name) = (volume(n).to_wire(), format!("v{n}"));
        let pool = "default".to_owned();
        let create = log::CreateVolume { volume_id, name, pool, size, ..Default::default() };
        apply(&mut self.state, Kind::CreateVolume(create));
        self
    }

    fn with_snapshot(mut self, of: u8, n: u8) -> Self {
        let (volume_id, snapshot_id) = (volume(of).to_wire(), volume(n).to_wire());
        let begin = log::BeginSnapshot { volume_id, name: format!("s{n}"), snapshot_id };
        let begin = log::BeginSnapshots { snapshots: vec![begin] };
        apply(&mut self.state, Kind::BeginSnapshots(begin));
        self
    }

    /// Each device says that it stores so much.
    fn storing(mut self, used: u64) -> Self {
        for n in 1..=3 {
            let report = Report { leader: n == 1, term: 1, ..Report::default() };
            let replicas = [(CopysetId(1), report)].into();
            let heard = Heard { capacity: 20 * GIB, used, commit: None, replicas };
            self.view.on_heartbeat(&self.state, device(n), Duration::from_secs(1), heard);
        }
        self
    }

    fn scene(&self) -> Scene<'_> {
        let (now, out_after) = (Duration::from_secs(1), Duration::from_secs(60));
        Scene { state: &self.state, view: &self.view, now, now_unix_ms: 0, out_after }
    }

    fn health(&self) -> (Health, Vec<String>) {
        let status = cluster_status(self.scene(), &[]);
        (status.health(), status.messages)
    }
}

fn apply(state: &mut State, kind: Kind) {
    let answer = state.apply(log::Command { kind: Some(kind), ..Default::default() }).kind;
    assert!(!matches!(answer, Some(log::answer::Kind::Refused(_))), "{answer:?}");
}

#[test]
fn an_overcommitted_pool_that_fills_up_is_told_once_with_its_numbers() {
    let thin = || Cluster::new(200).with_volume(7, 30 * GIB);
    assert_eq!(thin().storing(14 * GIB).health(), (Health::Ok, Vec::new()));
    let filling = "pool \"default\" is filling up: 15 GiB of 19 GiB are used and 30 GiB are \
                   provisioned; writes will fail when it is full: add chunkservers, delete volumes \
                   or snapshots, or trim file systems";
    assert_eq!(thin().storing(15 * GIB).health(), (Health::Warn, vec![filling.to_owned()]));
    let (health, messages) = thin().storing(18 * GIB).health();
    assert_eq!(health, Health::Error);
    let of_pool: Vec<_> = messages.iter().filter(|said| said.starts_with("pool")).collect();
    assert_eq!(of_pool.len(), 1, "{messages:?}");
    assert!(of_pool[0].contains("is nearly full: 18 GiB of 19 GiB"), "{messages:?}");
}

#[test]
fn a_pool_whose_volumes_all_fit_may_be_as_full_as_they_are() {
    let thick = || Cluster::new(200).with_volume(7, 18 * GIB);
    assert_eq!(thick().storing(16 * GIB).health(), (Health::Ok, Vec::new()));
    // What the volume overwrites stays, for its snapshot.
    let (health, messages) = thick().with_snapshot(7, 20).storing(16 * GIB).health();
    assert_eq!(health, Health::Warn);
    assert!(messages[0].contains("is filling up"), "{messages:?}");
}

#[test]
fn what_a_pool_stores_is_its_part_of_its_devices() {
    let mut cluster = Cluster::new(100).storing(6 * GIB);
    let fill = Fill::of_pools(cluster.scene())[&POOL];
    assert_eq!((fill.used, fill.capacity), (6 * GIB, 19 * GIB));
    let other = Copyset { pool: PoolId(2), ..cluster.state.copysets[&CopysetId(1)].clone() };
    cluster.state.copysets.insert(CopysetId(2), other);
    assert_eq!(Fill::of_pools(cluster.scene())[&POOL].used, 3 * GIB);
}

#[test]
fn a_status_carries_limit_and_fill_of_each_pool() {
    let cluster = Cluster::new(200).with_volume(7, 30 * GIB).storing(15 * GIB);
    let pools = cluster_status(cluster.scene(), &[]).pools;
    assert_eq!(pools[0].pool.as_ref().expect("a pool").overcommit_percent, 200);
    assert_eq!((pools[0].provisioned_limit, pools[0].fill()), (38 * GIB, Health::Warn));
}

#[test]
fn metrics_show_each_pool_for_as_long_as_this_process_leads() {
    let cluster = Cluster::new(200).with_volume(7, 30 * GIB).storing(15 * GIB);
    let metrics = crate::metrics::Metrics::default();
    let mut registry = curve_wire::telemetry::Registry::default();
    metrics.register(&mut registry);
    metrics.on_leader(7, cluster.scene());
    let text = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        text
    };
    let shown = text();
    for (name, gib) in
        [("capacity", 19), ("used", 15), ("provisioned", 30), ("provisioned_limit", 38)]
    {
        let line = format!("curve_mds_pool_{name}_bytes{{pool=\"default\"}} {}\n", gib * GIB);
        assert!(shown.contains(&line), "{line}{shown}");
    }
    metrics.on_follower();
    assert!(!text().contains("pool=\"default\""));
}
