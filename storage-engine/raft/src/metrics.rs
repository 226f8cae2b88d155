//! What this crate counts. Cheap to clone; all clones count together.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a proposal ended, or which lane a connection is for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct Label {
    pub kind: &'static str,
}

#[derive(Clone)]
pub(crate) struct Metrics {
    pub groups: Gauge,
    pub leaders: Gauge,
    pub incomplete: Gauge,
    pub proposals: Family<Label, Counter>,
    pub apply_seconds: Histogram,
    pub snapshot_sent_bytes: Counter,
    pub snapshot_received_bytes: Counter,
    pub snapshots_installed: Counter,
    pub connection_errors: Family<Label, Counter>,
    pub refused_frames: Counter,
    pub early_elections: Counter,
    pub lease_reads: Counter<u64, AtomicU64>,
    pub index_reads: Counter<u64, AtomicU64>,
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            groups: Gauge::default(),
            leaders: Gauge::default(),
            incomplete: Gauge::default(),
            proposals: Family::default(),
            // 2 us to 0.5 s.
            apply_seconds: Histogram::new(exponential_buckets(2e-6, 4.0, 10)),
            snapshot_sent_bytes: Counter::default(),
            snapshot_received_bytes: Counter::default(),
            snapshots_installed: Counter::default(),
            connection_errors: Family::default(),
            refused_frames: Counter::default(),
            early_elections: Counter::default(),
            lease_reads: Counter::default(),
            index_reads: Counter::default(),
        }
    }

    pub fn proposal(&self, outcome: &'static str) {
        self.proposals.get_or_create(&Label { kind: outcome }).inc();
    }

    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("curve_raft");
        registry.register("groups", "Replicas on this host", self.groups.clone());
        registry.register("leaders", "Replicas that lead", self.leaders.clone());
        registry.register(
            "incomplete",
            "Replicas that cannot lead until their leader has sent what damage took from their logs",
            self.incomplete.clone(),
        );
        registry.register("proposals", "Proposals by outcome", self.proposals.clone());
        registry.register("apply_seconds", "Time to apply one entry", self.apply_seconds.clone());
        registry.register(
            "snapshot_sent_bytes",
            "Bytes of snapshots sent to peers",
            self.snapshot_sent_bytes.clone(),
        );
        registry.register(
            "snapshot_received_bytes",
            "Bytes of snapshots received from peers",
            self.snapshot_received_bytes.clone(),
        );
        registry.register(
            "snapshots_installed",
            "Snapshots installed here",
            self.snapshots_installed.clone(),
        );
        registry.register(
            "connection_errors",
            "Failed or lost connections to peers, by lane",
            self.connection_errors.clone(),
        );
        registry.register(
            "refused_frames",
            "Frames from peers or strangers that were refused",
            self.refused_frames.clone(),
        );
        registry.register(
            "early_elections",
            "Elections started because the leader's connection closed",
            self.early_elections.clone(),
        );
        registry.register("lease_reads", "Reads served by lease", self.lease_reads.clone());
        registry.register("index_reads", "Reads confirmed by a quorum", self.index_reads.clone());
    }
}
