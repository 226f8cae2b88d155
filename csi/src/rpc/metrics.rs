//! Counts and times of RPCs.

use std::time::Duration;

use curve_wire::telemetry::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tonic::Code;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabels {
    method: &'static str,
    code: String,
}

/// Shared by all RPCs of a process.
#[derive(Clone)]
pub struct RpcMetrics {
    in_flight: Family<MethodLabel, Gauge>,
    outcomes: Family<OutcomeLabels, Counter>,
    seconds: Family<MethodLabel, Histogram, fn() -> Histogram>,
}

impl RpcMetrics {
    /// Adds the metrics to what the process serves.
    pub fn register(registry: &mut Registry) -> Self {
        // 1 ms (answered from state) to about 60 s (a mkfs that waits for a degraded cluster).
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 3.0, 11));
        let metrics = Self {
            in_flight: Family::default(),
            outcomes: Family::default(),
            seconds: Family::new_with_constructor(buckets),
        };
        let registry = registry.sub_registry_with_prefix("curve_csi");
        registry.register("rpcs_in_flight", "RPCs being carried out", metrics.in_flight.clone());
        registry.register("rpcs", "RPCs answered, by gRPC code", metrics.outcomes.clone());
        registry.register("rpc_seconds", "Time to answer an RPC", metrics.seconds.clone());
        metrics
    }

    /// Counts an RPC as in flight until the result is dropped.
    pub fn start(&self, method: &'static str) -> InFlight {
        let gauge = self.in_flight.get_or_create(&MethodLabel { method }).clone();
        gauge.inc();
        InFlight(gauge)
    }

    pub fn observe(&self, method: &'static str, code: Code, took: Duration) {
        self.outcomes.get_or_create(&OutcomeLabels { method, code: format!("{code:?}") }).inc();
        self.seconds.get_or_create(&MethodLabel { method }).observe(took.as_secs_f64());
    }
}

/// One RPC in flight.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
