//! What a process exports about its open volumes.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use curve_types::VolumeId;

use super::qos::ThrottleMetrics;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OpLabels {
    volume: String,
    op: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct VolumeLabels {
    volume: String,
}

/// Metrics of all volumes that one process has open. Register once, pass to each `Volume::open`.
#[derive(Clone)]
pub struct VolumeMetrics {
    operations: Family<OpLabels, Counter>,
    errors: Family<OpLabels, Counter>,
    bytes: Family<OpLabels, Counter>,
    latency: Family<OpLabels, Histogram, fn() -> Histogram>,
    retries: Family<VolumeLabels, Counter>,
    in_flight_bytes: Family<VolumeLabels, Gauge>,
    fenced: Family<VolumeLabels, Gauge>,
    throttled: Family<VolumeLabels, Counter>,
    throttled_seconds: Family<VolumeLabels, Counter<f64, AtomicU64>>,
}

impl std::fmt::Debug for VolumeMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeMetrics(…)")
    }
}

/// From a cached read to an IO that waited for an election.
const LATENCY_BOUNDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_BOUNDS)
}

impl Default for VolumeMetrics {
    /// Metrics that nobody exports.
    fn default() -> Self {
        Self {
            operations: Family::default(),
            errors: Family::default(),
            bytes: Family::default(),
            latency: Family::new_with_constructor(latency_histogram),
            retries: Family::default(),
            in_flight_bytes: Family::default(),
            fenced: Family::default(),
            throttled: Family::default(),
            throttled_seconds: Family::default(),
        }
    }
}

impl VolumeMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self {
            operations,
            errors,
            bytes,
            latency,
            retries,
            in_flight_bytes,
            fenced,
            throttled,
            throttled_seconds,
        } = &metrics;
        registry.register("curve_volume_operations", "Block operations ended", operations.clone());
        registry.register("curve_volume_errors", "Block operations that failed", errors.clone());
        registry.register_with_unit(
            "curve_volume_transferred",
            "Bytes read, written, zeroed or discarded",
            Unit::Bytes,
            bytes.clone(),
        );
        registry.register_with_unit(
            "curve_volume_latency",
            "Time of a block operation",
            Unit::Seconds,
            latency.clone(),
        );
        registry.register("curve_volume_retries", "Requests sent again", retries.clone());
        registry.register_with_unit(
            "curve_volume_in_flight",
            "Bytes of operations under way",
            Unit::Bytes,
            in_flight_bytes.clone(),
        );
        registry.register("curve_volume_fenced", "1 once the attachment is fenced", fenced.clone());
        registry.register(
            "curve_volume_throttled_operations",
            "Block operations that waited for the volume's limits",
            throttled.clone(),
        );
        registry.register_with_unit(
            "curve_volume_throttled",
            "Time that block operations waited for the volume's limits",
            Unit::Seconds,
            throttled_seconds.clone(),
        );
        metrics
    }

    pub(super) fn of(&self, volume: VolumeId) -> OneVolume {
        let name = volume.to_string();
        let op = |op| {
            let labels = OpLabels { volume: name.clone(), op };
            OpMetrics {
                operations: self.operations.get_or_create_owned(&labels),
                errors: self.errors.get_or_create_owned(&labels),
                bytes: self.bytes.get_or_create_owned(&labels),
                latency: self.latency.get_or_create_owned(&labels),
            }
        };
        let labels = VolumeLabels { volume: name.clone() };
        OneVolume {
            read: op("read"),
            write: op("write"),
            discard: op("discard"),
            write_zeroes: op("write_zeroes"),
            retries: self.retries.get_or_create_owned(&labels),
            in_flight_bytes: self.in_flight_bytes.get_or_create_owned(&labels),
            fenced: self.fenced.get_or_create_owned(&labels),
            throttled: ThrottleMetrics {
                operations: self.throttled.get_or_create_owned(&labels),
                seconds: self.throttled_seconds.get_or_create_owned(&labels),
            },
            all: self.clone(),
            name,
        }
    }
}

pub(super) struct OpMetrics {
    operations: Counter,
    errors: Counter,
    bytes: Counter,
    latency: Histogram,
}

impl OpMetrics {
    pub fn record(&self, ok: bool, bytes: u64, took: Duration) {
        self.operations.inc();
        match ok {
            true => self.bytes.inc_by(bytes),
            false => self.errors.inc(),
        };
        self.latency.observe(took.as_secs_f64());
    }
}

/// The series of one volume; they end with it.
pub(super) struct OneVolume {
    pub read: OpMetrics,
    pub write: OpMetrics,
    pub discard: OpMetrics,
    pub write_zeroes: OpMetrics,
    pub retries: Counter,
    pub in_flight_bytes: Gauge,
    pub fenced: Gauge,
    pub throttled: ThrottleMetrics,
    all: VolumeMetrics,
    name: String,
}

impl Drop for OneVolume {
    fn drop(&mut self) {
        let VolumeMetrics {
            operations,
            errors,
            bytes,
            latency,
            retries,
            in_flight_bytes,
            fenced,
            throttled,
            throttled_seconds,
        } = &self.all;
        for op in ["read", "write", "discard", "write_zeroes"] {
            let labels = OpLabels { volume: self.name.clone(), op };
            operations.remove(&labels);
            errors.remove(&labels);
            bytes.remove(&labels);
            latency.remove(&labels);
        }
        let labels = VolumeLabels { volume: self.name.clone() };
        retries.remove(&labels);
        in_flight_bytes.remove(&labels);
        fenced.remove(&labels);
        throttled.remove(&labels);
        throttled_seconds.remove(&labels);
    }
}
