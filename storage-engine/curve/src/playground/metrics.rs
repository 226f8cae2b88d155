//! What a playground itself exports: how its children are. Their own metrics are at their ports.

use curve_wire::telemetry::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ChildLabel {
    child: String,
}

pub struct Metrics {
    up: Family<ChildLabel, Gauge>,
    restarts: Family<ChildLabel, Counter>,
}

/// The series of one child.
pub struct ChildMetrics {
    pub up: Gauge,
    pub restarts: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { up: Family::default(), restarts: Family::default() };
        let registry = registry.sub_registry_with_prefix("curve_playground");
        registry.register("child_up", "1 while the child runs", metrics.up.clone());
        let help = "Times the child ended by itself, each time to be started again";
        registry.register("child_restarts", help, metrics.restarts.clone());
        metrics
    }

    pub fn of(&self, child: &str) -> ChildMetrics {
        let labels = ChildLabel { child: child.to_owned() };
        ChildMetrics {
            up: self.up.get_or_create_owned(&labels),
            restarts: self.restarts.get_or_create_owned(&labels),
        }
    }
}
