//! What a chunkserver exports.

use std::time::Duration;

use curve_raft::GroupReport;
use curve_store::Usage;
use curve_types::BLOCK_SIZE;
use curve_wire::chunk::ChunkError;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::repair::{Finder, Outcome};

/// Kinds of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Propose,
    Read,
    PeerRead,
    Changes,
    Unknown,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Propose => "propose",
            Self::Read => "read",
            Self::PeerRead => "peer_read",
            Self::Changes => "changes",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RequestLabels {
    op: &'static str,
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OpLabels {
    op: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RepairLabels {
    found_by: &'static str,
    outcome: &'static str,
}

#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<OpLabels, Counter>,
    latency: Family<OpLabels, Histogram, fn() -> Histogram>,
    capacity: Gauge,
    used: Gauge,
    wal_size: Gauge,
    wal_used: Gauge,
    log_payload: Gauge,
    copysets: Gauge,
    leaders: Gauge,
    stopped: Gauge,
    serving: Gauge,
    repairs: Family<RepairLabels, Counter>,
    differing: Counter,
    scrubbed: Counter,
    scrub_walks: Counter,
    held_back: Counter,
}

/// From a write on a fast disk to one that waited for an election.
const LATENCY_BOUNDS: [f64; 13] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_BOUNDS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            bytes: Family::default(),
            latency: Family::new_with_constructor(latency_histogram),
            capacity: Gauge::default(),
            used: Gauge::default(),
            wal_size: Gauge::default(),
            wal_used: Gauge::default(),
            log_payload: Gauge::default(),
            copysets: Gauge::default(),
            leaders: Gauge::default(),
            stopped: Gauge::default(),
            serving: Gauge::default(),
            repairs: Family::default(),
            differing: Counter::default(),
            scrubbed: Counter::default(),
            scrub_walks: Counter::default(),
            held_back: Counter::default(),
        }
    }
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("curve_chunkserver");
        let bytes = |registry: &mut Registry, name, help, gauge: &Gauge| {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        };
        registry.register("requests", "Requests answered", self.requests.clone());
        let help = "Bytes of commands received and of data sent";
        registry.register_with_unit("transferred", help, Unit::Bytes, self.bytes.clone());
        let help = "Time from a request to its answer";
        registry.register_with_unit("latency", help, Unit::Seconds, self.latency.clone());
        bytes(registry, "capacity", "Bytes usable for chunk data", &self.capacity);
        bytes(registry, "used", "Bytes of chunk data stored", &self.used);
        bytes(registry, "wal_size", "Bytes of the write-ahead log", &self.wal_size);
        bytes(registry, "wal_used", "Bytes of the write-ahead log in use", &self.wal_used);
        let help = "Bytes of data blocks that log entries refer to";
        bytes(registry, "log_payload", help, &self.log_payload);
        registry.register("copysets", "Replicas here", self.copysets.clone());
        registry.register("leaders", "Replicas here that lead", self.leaders.clone());
        registry.register("stopped", "Replicas here that failed", self.stopped.clone());
        registry.register("serving", "1 while requests are taken", self.serving.clone());
        let help = "Damaged blocks, by who found them and what became of them";
        registry.register("block_repairs", help, self.repairs.clone());
        let help = "Bytes of stored blocks that the scrub has read";
        registry.register_with_unit("scrubbed", help, Unit::Bytes, self.scrubbed.clone());
        let help = "Replicas here of which the scrub has read all blocks";
        registry.register("scrub_walks", help, self.scrub_walks.clone());
        let help = "Requests of greedy volumes that waited because of modest ones";
        registry.register("requests_held_back", help, self.held_back.clone());
        let help = "Blocks of which replicas hold copies that are valid and differ";
        registry.register("differing_blocks", help, self.differing.clone());
    }

    pub fn record(
        &self,
        operation: Operation,
        error: Option<&ChunkError>,
        bytes: u64,
        took: Duration,
    ) {
        let op = operation.as_str();
        let outcome = error.map_or("ok", outcome);
        self.requests.get_or_create(&RequestLabels { op, outcome }).inc();
        self.bytes.get_or_create(&OpLabels { op }).inc_by(bytes);
        self.latency.get_or_create(&OpLabels { op }).observe(took.as_secs_f64());
    }

    pub fn observe(&self, usage: &Usage, reports: &[GroupReport]) {
        let usable = usage.data_blocks_total.saturating_sub(usage.data_blocks_reserve);
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.capacity, usable * BLOCK_SIZE);
        set(&self.used, usage.data_blocks_used * BLOCK_SIZE);
        set(&self.wal_size, usage.wal_bytes_total);
        set(&self.wal_used, usage.wal_bytes_used);
        set(&self.log_payload, usage.data_blocks_logged * BLOCK_SIZE);
        set(&self.copysets, reports.len() as u64);
        set(&self.leaders, reports.iter().filter(|report| report.is_leader).count() as u64);
        set(&self.stopped, reports.iter().filter(|report| report.failure.is_some()).count() as u64);
    }

    pub fn repair(&self, finder: Finder, outcome: Outcome) {
        let labels = RepairLabels { found_by: finder.as_str(), outcome: outcome.as_str() };
        self.repairs.get_or_create(&labels).inc();
    }

    pub fn scrubbed(&self, bytes: u64) {
        self.scrubbed.inc_by(bytes);
    }

    pub fn held_back(&self) -> Counter {
        self.held_back.clone()
    }

    pub fn scrub_walked(&self) {
        self.scrub_walks.inc();
    }

    pub fn replicas_differ(&self) {
        self.differing.inc();
    }

    pub fn set_serving(&self, serving: bool) {
        self.serving.set(i64::from(serving));
    }
}

fn outcome(error: &ChunkError) -> &'static str {
    match error {
        ChunkError::NotLeader { .. } => "not_leader",
        ChunkError::NoSuchCopyset => "no_such_copyset",
        ChunkError::Fenced { .. } => "fenced",
        ChunkError::Deleted => "deleted",
        ChunkError::Stale => "stale",
        ChunkError::NoSpace => "no_space",
        ChunkError::Unavailable => "unavailable",
        ChunkError::BadRequest => "bad_request",
        ChunkError::Forbidden => "forbidden",
        ChunkError::Damaged => "damaged",
        ChunkError::Frozen => "frozen",
        ChunkError::Thawed => "thawed",
        ChunkError::Moved => "moved",
    }
}
