use serde_json::json;

use super::*;
use crate::fixtures::{at, engine};

fn pool(name: &str, spec: serde_json::Value) -> CurvePool {
    serde_json::from_value(json!({
        "apiVersion": "curve.io/v1alpha1", "kind": "CurvePool",
        "metadata": {"name": name, "namespace": "curve"}, "spec": spec,
    }))
    .expect("a CurvePool")
}

fn look(pool: &CurvePool, outcome: Outcome) -> CurvePoolStatus {
    summarize(pool, &CurvePoolStatus::default(), &outcome, Some(1), at(0))
}

#[test]
fn defaults_are_three_replicas_on_different_hosts() {
    let spec = pool_spec(&pool("fast", json!({"cluster": "demo"})));
    let expected = CreatePool {
        name: "fast".into(),
        replicas: 3,
        failure_domain: proto::FailureDomain::Host,
        device_class: String::new(),
        overcommit_percent: Some(100),
    };
    assert_eq!(spec, expected);
}

#[test]
fn an_overcommit_reaches_the_metadata_service_and_what_it_allows_the_status() {
    let pool = pool("default", json!({"cluster": "demo", "overcommitPercent": 250}));
    assert_eq!(pool_spec(&pool).overcommit_percent, Some(250));
    let mut engine = engine();
    let found = &mut engine.pools[0];
    (found.provisioned, found.provisioned_limit) = (15 << 30, 25 << 30);
    found.used = 8 << 30;
    let status = look(&pool, Outcome::Created(Box::new(engine)));
    assert_eq!((status.used.as_str(), status.provisioned.as_str()), ("8Gi", "15Gi"));
    assert_eq!(status.conditions[0].message, "8 copysets, 25Gi for volumes");
}

#[test]
fn a_pool_with_copysets_is_ready() {
    let pool = pool("default", json!({"cluster": "demo"}));
    let status = look(&pool, Outcome::Created(Box::new(engine())));
    assert_eq!((status.phase.as_str(), status.capacity.as_str()), ("Ready", "10Gi"));
    assert_eq!(status.copysets, Some(8));
}

#[test]
fn a_pool_without_enough_zones_says_how_many_there_are() {
    let pool = pool("default", json!({"cluster": "demo", "failureDomain": "zone"}));
    let mut engine = engine();
    engine.pools[0].copysets = 0;
    for device in &mut engine.devices {
        device.zone = "a".into();
    }
    let status = look(&pool, Outcome::Created(Box::new(engine)));
    assert_eq!(status.phase, "Pending");
    let message = &status.conditions[0].message;
    assert_eq!(message, "3 replicas need chunkservers on 3 different zones; 1 have one");
}

#[test]
fn refusals_and_absent_clusters_are_told() {
    let pool = pool("fast", json!({"cluster": "demo"}));
    let refused = look(&pool, Outcome::Refused("pool \"fast\" has 2 volumes".into()));
    assert_eq!(refused.phase, "Failed");
    assert_eq!(refused.conditions[0].message, "pool \"fast\" has 2 volumes");
    assert_eq!(look(&pool, Outcome::NoCluster).conditions[0].reason, "NoCluster");
    let silent = look(&pool, Outcome::Unreachable("timeout".into()));
    assert_eq!(silent.phase, "Pending");
}
