//! What a CurvePool asks for, and what became of it. Pure.

use curve_client::CreatePool;
use curve_wire::proto::{self, ClusterStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::cluster::health;
use crate::cluster::status::quantity;
use crate::condition::{ConditionState, set_condition};
use crate::crd::{CurvePool, CurvePoolStatus, FailureDomain};

/// Result of talking to the metadata service.
#[derive(Debug)]
pub enum Outcome {
    NoCluster,
    Unreachable(String),
    Refused(String),
    Created(Box<ClusterStatus>),
    Deleted,
}

/// The pool as the metadata service is asked for it.
pub fn pool_spec(pool: &CurvePool) -> CreatePool {
    CreatePool {
        name: pool.name_any(),
        replicas: pool.spec.replicas.unsigned_abs(),
        failure_domain: match pool.spec.failure_domain {
            FailureDomain::Host => proto::FailureDomain::Host,
            FailureDomain::Zone => proto::FailureDomain::Zone,
        },
        device_class: pool.spec.device_class.clone().unwrap_or_default(),
        overcommit_percent: Some(pool.spec.overcommit_percent.unsigned_abs()),
    }
}

/// The status after one look.
pub fn summarize(
    pool: &CurvePool,
    old: &CurvePoolStatus,
    outcome: &Outcome,
    generation: Option<i64>,
    now: Timestamp,
) -> CurvePoolStatus {
    let mut status = CurvePoolStatus { observed_generation: generation, ..old.clone() };
    let (phase, state) = match outcome {
        Outcome::NoCluster => {
            let message = format!("there is no CurveCluster {} here", pool.spec.cluster);
            ("Pending", ConditionState::no("NoCluster", message))
        }
        Outcome::Unreachable(reason) => {
            let message = format!("the metadata service does not answer: {reason}");
            ("Pending", ConditionState::no("MdsUnreachable", message))
        }
        Outcome::Refused(reason) => ("Failed", ConditionState::no("Refused", reason.clone())),
        Outcome::Deleted => ("Deleting", ConditionState::no("Deleted", "the pool is gone")),
        Outcome::Created(engine) => describe(pool, engine, &mut status),
    };
    let deleting = pool.metadata.deletion_timestamp.is_some();
    status.phase = if deleting { "Deleting" } else { phase }.into();
    set_condition(&mut status.conditions, "Ready", state, generation, now);
    status
}

fn describe(
    pool: &CurvePool,
    engine: &ClusterStatus,
    status: &mut CurvePoolStatus,
) -> (&'static str, ConditionState) {
    let name = pool.name_any();
    let found = engine.pools.iter().find(|p| p.pool.as_ref().is_some_and(|p| p.name == name));
    let Some(found) = found else {
        return ("Pending", ConditionState::no("Creating", "the pool is being created"));
    };
    status.capacity = quantity(found.logical_capacity);
    status.used = quantity(found.used);
    status.provisioned = quantity(found.provisioned);
    status.copysets = Some(found.copysets);
    if found.copysets > 0 {
        let limit = quantity(found.provisioned_limit);
        let message = format!("{} copysets, {limit} for volumes", found.copysets);
        return ("Ready", ConditionState::yes("Serving", message));
    }
    let domain = match pool.spec.failure_domain {
        FailureDomain::Host => "hosts",
        FailureDomain::Zone => "zones",
    };
    let class = pool.spec.device_class.as_deref();
    let up = health::up(engine);
    let fitting = engine.devices.iter().filter(|device| {
        up.contains(&device.name) && class.is_none_or(|class| class == device.device_class)
    });
    let domains: std::collections::BTreeSet<&str> = fitting
        .map(|device| match pool.spec.failure_domain {
            FailureDomain::Zone if !device.zone.is_empty() => device.zone.as_str(),
            _ => device.host.as_str(),
        })
        .collect();
    let message = format!(
        "{} replicas need chunkservers on {} different {domain}{}; {} have one",
        pool.spec.replicas,
        pool.spec.replicas,
        class.map(|class| format!(" with device class {class}")).unwrap_or_default(),
        domains.len()
    );
    ("Pending", ConditionState::no("NotEnoughDomains", message))
}

#[cfg(test)]
mod tests;
