//! Metrics of the operator.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Controller {
    Cluster,
    Pool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    controller: Controller,
}

/// Counters of all controllers of this process.
#[derive(Clone)]
pub struct Metrics {
    reconciles: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram>,
    leading: Gauge,
}

impl Metrics {
    /// Registers everything in a new registry.
    pub fn register() -> (Self, Arc<Registry>) {
        let metrics = Self {
            reconciles: Family::default(),
            failures: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.01, 4.0, 8))
            }),
            leading: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("curve_operator");
        registry.register("reconciles", "Reconciliations begun", metrics.reconciles.clone());
        registry.register("failures", "Reconciliations that failed", metrics.failures.clone());
        let help = "Duration of reconciliations";
        registry.register("reconcile_seconds", help, metrics.seconds.clone());
        registry.register("leading", "1 while this process leads", metrics.leading.clone());
        (metrics, Arc::new(registry))
    }

    /// Counts one reconciliation.
    pub fn observe(&self, controller: Controller, took: Duration, failed: bool) {
        let labels = Labels { controller };
        self.reconciles.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if failed {
            self.failures.get_or_create(&labels).inc();
        }
    }

    pub fn set_leading(&self, leading: bool) {
        self.leading.set(leading.into());
    }
}
