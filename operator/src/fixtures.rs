//! Objects that tests start from.

use curve_wire::pki::Identity;
use curve_wire::proto::{ClusterStatus, DeviceStatus, Health, MdsStatus, Pool, PoolStatus};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::cluster::credentials::Credentials;
use crate::cluster::validate::{ValidatedCluster, validate};
use crate::crd::CurveCluster;

pub const OWN_IMAGE: &str = "registry.example/curve:0.1.0";

/// The short form of the README.
pub fn short_form() -> Value {
    json!({
        "apiVersion": "curve.io/v1alpha1",
        "kind": "CurveCluster",
        "metadata": {"name": "demo", "namespace": "curve", "uid": "u-1", "generation": 1},
        "spec": {
            "nodeSets": [{
                "name": "default",
                "count": 3,
                "device": {"hostPath": "/var/lib/curve", "size": "10Gi"},
            }],
        },
    })
}

/// The short form with the members of `changes` merged into its spec.
pub fn cluster_with(changes: Value) -> CurveCluster {
    let mut value = short_form();
    merge(&mut value["spec"], changes);
    serde_json::from_value(value).expect("a CurveCluster")
}

pub fn validated_with(changes: Value) -> ValidatedCluster {
    validate(&cluster_with(changes), OWN_IMAGE).expect("valid")
}

fn merge(target: &mut Value, changes: Value) {
    match changes {
        Value::Object(members) if target.is_object() => {
            for (key, value) in members {
                merge(&mut target[key.as_str()], value);
            }
        }
        other => *target = other,
    }
}

/// A ready node, with a zone unless empty.
pub fn node(name: &str, zone: &str) -> Node {
    let mut labels = json!({"kubernetes.io/hostname": name});
    if !zone.is_empty() {
        labels["topology.kubernetes.io/zone"] = json!(zone);
    }
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .expect("a Node")
}

pub fn unready(mut node: Node) -> Node {
    let status = node.status.as_mut().expect("status");
    status.conditions.as_mut().expect("conditions")[0].status = "Unknown".into();
    node
}

pub fn nodes(count: usize) -> Vec<Node> {
    (1..=count).map(|i| node(&format!("node{i}"), "")).collect()
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("in range")
}

/// A StatefulSet whose controller has caught up, at revision `new`.
pub fn stateful_set(name: &str, node_set: Option<&str>) -> StatefulSet {
    let labels = node_set.map_or(json!({}), |name| json!({"curve.io/node-set": name}));
    serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 2, "labels": labels},
        "status": {"observedGeneration": 2, "updateRevision": "new", "replicas": 3},
    }))
    .expect("a StatefulSet")
}

/// A pod of `set` that became ready at second 0.
pub fn pod(set: &str, ordinal: u32, revision: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{set}-{ordinal}"),
            "labels": {"controller-revision-hash": revision},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": set,
                "uid": format!("uid-{set}"), "controller": true,
            }],
        },
        "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": at(0).to_string()},
        ]},
    }))
    .expect("a Pod")
}

/// A whole cluster of three chunkservers and eight copysets.
pub fn engine() -> ClusterStatus {
    let device = |ordinal: u8| DeviceStatus {
        device_id: vec![ordinal; 16].into(),
        name: format!("demo-default-{ordinal}"),
        host: format!("node{}", ordinal + 1),
        up: true,
        capacity: 10 << 30,
        used: 1 << 27,
        replicas: 8,
        ..DeviceStatus::default()
    };
    let mds = |ordinal: u8| MdsStatus {
        name: format!("demo-mds-{ordinal}"),
        device_id: vec![100 + ordinal; 16].into(),
        up: true,
        leader: ordinal == 0,
    };
    let pool = Pool { id: 1, name: "default".into(), replicas: 3, ..Pool::default() };
    ClusterStatus {
        cluster_name: "demo".into(),
        cluster_id: vec![7; 16].into(),
        version: "0.1.0".into(),
        health: Health::Ok.into(),
        mds: (0..3).map(mds).collect(),
        devices: (0..3).map(device).collect(),
        pools: vec![PoolStatus {
            pool: Some(pool),
            logical_capacity: 10 << 30,
            provisioned_limit: 10 << 30,
            copysets: 8,
            ..PoolStatus::default()
        }],
        copysets_whole: 8,
        ..ClusterStatus::default()
    }
}

/// Credentials whose secrets can be read in a fixture.
pub fn credentials() -> Credentials {
    let identity = |name: &str| Identity {
        ca_pem: "CA".into(),
        cert_pem: format!("CERT {name}"),
        key_pem: format!("KEY {name}"),
    };
    Credentials {
        authority: "0123456789abcdef".into(),
        cluster_key: "CLUSTER KEY".into(),
        mds: identity("mds"),
        chunkserver: identity("chunkserver"),
        admin: identity("admin"),
        csi: identity("csi"),
        agents: [("node1".to_owned(), identity("node1"))].into(),
        operator: identity("operator"),
    }
}
