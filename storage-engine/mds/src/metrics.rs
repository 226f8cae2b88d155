//! The MDS's metrics. Set by the leader's loop; a follower shows that it follows and nothing else,
//! so that sums over processes are right.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::fill::Fill;
use crate::state::{Comparison, EndedScrub};
use crate::view::{Condition, Scene};

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

type Bytes = Gauge<u64, AtomicU64>;

#[derive(Default)]
pub struct Metrics {
    leader: Gauge,
    term: Gauge,
    chunkservers: Family<StateLabel, Gauge>,
    copysets: Family<StateLabel, Gauge>,
    volumes: Family<StateLabel, Gauge>,
    pool_capacity: Family<PoolLabel, Bytes>,
    pool_used: Family<PoolLabel, Bytes>,
    pool_provisioned: Family<PoolLabel, Bytes>,
    pool_provisioned_limit: Family<PoolLabel, Bytes>,
    scrubs: Family<StateLabel, Gauge>,
    scrub_findings: Family<KindLabel, Gauge>,
    oldest_scrub: Gauge,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("curve_mds");
        registry.register("leader", "1 at the leader", self.leader.clone());
        registry.register("term", "Raft term, at the leader", self.term.clone());
        registry.register("chunkservers", "Chunkservers by state", self.chunkservers.clone());
        registry.register("copysets", "Copysets by state", self.copysets.clone());
        registry.register("volumes", "Volumes by state", self.volumes.clone());
        let capacity = self.pool_capacity.clone();
        let help = "Bytes that can be stored in a pool, each counted once";
        registry.register_with_unit("pool_capacity", help, Unit::Bytes, capacity);
        let used = self.pool_used.clone();
        let help = "Bytes stored in a pool, each counted once";
        registry.register_with_unit("pool_used", help, Unit::Bytes, used);
        let provisioned = self.pool_provisioned.clone();
        let help = "Sum of the sizes of a pool's volumes";
        registry.register_with_unit("pool_provisioned", help, Unit::Bytes, provisioned);
        let limit = self.pool_provisioned_limit.clone();
        let help = "Sizes that the volumes of a pool may have in all: its capacity and overcommit";
        registry.register_with_unit("pool_provisioned_limit", help, Unit::Bytes, limit);
        registry.register("scrubs", "Copysets to be scrubbed, by state", self.scrubs.clone());
        let help = "What the last scrub of each copyset found: damaged blocks by what became of \
                    them, and copysets whose replicas differ";
        registry.register("scrub_findings", help, self.scrub_findings.clone());
        let help = "Time since the scrub began that is longest ago of all copysets' last ones";
        let oldest = self.oldest_scrub.clone();
        registry.register_with_unit("oldest_scrub_age", help, Unit::Seconds, oldest);
    }

    pub fn on_follower(&self) {
        self.leader.set(0);
        self.term.set(0);
        self.chunkservers.clear();
        self.copysets.clear();
        self.volumes.clear();
        self.clear_pools();
        self.scrubs.clear();
        self.scrub_findings.clear();
        self.oldest_scrub.set(0);
    }

    pub fn on_leader(&self, term: u64, scene: Scene<'_>) {
        self.leader.set(1);
        self.term.set(i64::try_from(term).unwrap_or(i64::MAX));
        let state = scene.state;
        let current = || state.devices.iter().filter(|(_, device)| !device.superseded);
        let up = current().filter(|(id, _)| scene.is_up(**id)).count();
        set(&self.chunkservers, "up", up);
        set(&self.chunkservers, "down", current().count() - up);

        let conditions = || {
            let all = state.copysets.iter();
            all.map(|(id, copyset)| scene.condition(*id, copyset))
        };
        let count = |wanted: fn(&Condition) -> bool| conditions().filter(wanted).count();
        set(&self.copysets, "whole", count(|c| *c == Condition::Whole));
        set(&self.copysets, "degraded", count(|c| matches!(c, Condition::Degraded { .. })));
        set(&self.copysets, "unavailable", count(|c| *c == Condition::Unavailable));

        let snapshots = state.volumes.values().filter(|v| v.snapshot.is_some() && !v.deleting);
        set(&self.volumes, "snapshot", snapshots.count());
        let volumes = || state.volumes.values().filter(|v| v.snapshot.is_none() || v.deleting);
        let attached = volumes().filter(|volume| !volume.sessions.is_empty()).count();
        let deleting = volumes().filter(|volume| volume.deleting).count();
        set(&self.volumes, "attached", attached);
        set(&self.volumes, "deleting", deleting);
        set(&self.volumes, "idle", volumes().count() - attached - deleting);
        self.observe_pools(scene);
        self.observe_scrubs(scene);
    }

    fn observe_pools(&self, scene: Scene<'_>) {
        for (id, fill) in Fill::of_pools(scene) {
            let Some(pool) = scene.state.pools.get(&id) else { continue };
            let label = PoolLabel { pool: pool.name.clone() };
            let limit = scene.state.provisioned_limit(id);
            self.pool_capacity.get_or_create(&label).set(fill.capacity);
            self.pool_used.get_or_create(&label).set(fill.used);
            self.pool_provisioned.get_or_create(&label).set(fill.provisioned);
            self.pool_provisioned_limit.get_or_create(&label).set(limit);
        }
    }

    fn clear_pools(&self) {
        self.pool_capacity.clear();
        self.pool_used.clear();
        self.pool_provisioned.clear();
        self.pool_provisioned_limit.clear();
    }

    fn observe_scrubs(&self, scene: Scene<'_>) {
        let scrubs = || scene.state.scrubs.copysets.values();
        set(&self.scrubs, "requested", scrubs().filter(|scrub| scrub.requested).count());
        set(&self.scrubs, "running", scrubs().filter(|scrub| scrub.running.is_some()).count());
        let last = || scrubs().filter_map(|scrub| scrub.last.as_ref());
        let differ = |last: &&EndedScrub| last.comparison() == Comparison::Differ;
        let found = |kind: &'static str, count: u64| {
            let gauge = self.scrub_findings.get_or_create(&KindLabel { kind });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        found("repaired", last().map(|last| last.total(|found| found.repaired)).sum());
        found("lost", last().map(|last| last.total(|found| found.lost)).sum());
        found("unrepaired", last().map(|last| last.total(|found| found.unrepaired)).sum());
        found("differing", last().filter(differ).count() as u64);
        let ages = last().map(|last| scene.now_unix_ms.saturating_sub(last.began_unix_ms) / 1000);
        self.oldest_scrub.set(i64::try_from(ages.max().unwrap_or(0)).unwrap_or(i64::MAX));
    }
}

fn set(family: &Family<StateLabel, Gauge>, state: &'static str, count: usize) {
    family.get_or_create(&StateLabel { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
}
