use serde_json::Value;

use super::*;
use crate::cluster::placement::Bindings;
use crate::fixtures::{credentials, validated_with};

/// Everything built, by kind and name, as one JSON document.
fn built(cluster: &ValidatedCluster, bindings: &[Bindings], family: AddressFamily) -> Value {
    let credentials = credentials();
    let inputs = BuildInputs {
        credentials: &credentials,
        bindings,
        hostnames: &[("node1".to_owned(), "host-of-node1".to_owned())].into(),
        disruptions: Disruptions { mds: 1, chunkservers: 1 },
        cluster_id: Some("0a0a0a0a-0000-0000-0000-000000000001"),
        operator_namespace: "curve-system",
        family,
    };
    serde_json::to_value(all(build(cluster, &inputs))).expect("JSON")
}

fn all(objects: ClusterObjects) -> BTreeMap<String, Value> {
    let ClusterObjects {
        service_accounts,
        secrets,
        services,
        volumes,
        stateful_sets,
        disruption_budgets,
        connections,
        roles,
        role_bindings,
    } = objects;
    let mut all = Vec::new();
    all.extend(service_accounts.iter().map(to_value));
    all.extend(secrets.iter().map(to_value));
    all.extend(services.iter().map(to_value));
    all.extend(volumes.iter().map(to_value));
    all.extend(stateful_sets.iter().map(to_value));
    all.extend(disruption_budgets.iter().map(to_value));
    all.extend(connections.iter().map(to_value));
    all.extend(roles.iter().map(to_value));
    all.extend(role_bindings.iter().map(to_value));
    let named = |object: Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"])), object)
    };
    all.into_iter().map(named).collect()
}

fn to_value<T: serde::Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("JSON")
}

fn bound(nodes: &[&str]) -> Bindings {
    nodes.iter().enumerate().map(|(i, node)| (i as u32, (*node).to_owned())).collect()
}

/// Compares with a file of `operator/tests/fixtures`; `CURVE_FIXTURES=write` writes it instead.
fn assert_fixture(name: &str, actual: &Value) {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var("CURVE_FIXTURES").as_deref() == Ok("write") {
        let text = serde_json::to_string_pretty(actual).expect("JSON") + "\n";
        std::fs::write(&path, text).expect("write the fixture");
    }
    let text = std::fs::read_to_string(&path).expect("read the fixture");
    let expected: Value = serde_json::from_str(&text).expect("parse the fixture");
    let (expected, actual) = (expected.as_object(), actual.as_object());
    let (expected, actual) = (expected.expect("an object"), actual.expect("an object"));
    for (object, wanted) in expected {
        assert_eq!(actual.get(object), Some(wanted), "{name}: {object}");
    }
    assert_eq!(actual.len(), expected.len(), "{name}: {:?}", actual.keys());
}

#[test]
fn the_short_form_becomes_these_objects() {
    let nodes = ["node1", "node2", "node3"];
    let cluster = validated_with(json!({}));
    let actual = built(&cluster, &[bound(&nodes), bound(&nodes)], AddressFamily::V4);
    assert_fixture("short", &actual);
}

#[test]
fn the_long_form_becomes_these_objects() {
    let claim = json!({"volumeClaimTemplate": {"storageClassName": "local-nvme", "size": "1Ti"}});
    let resources = json!({"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}});
    let placement = json!({
        "nodeSelector": {"disk": "nvme"},
        "tolerations": [{"key": "storage", "operator": "Exists"}],
    });
    let cluster = validated_with(json!({
        "image": {"repository": "registry.example/other", "tag": "9", "pullPolicy": "Always"},
        "mds": {"replicas": 1, "storage": claim, "resources": resources, "placement": placement},
        "nodeSets": [{
            "name": "nvme", "count": 6, "deviceClass": "nvme", "device": claim,
            "resources": resources, "placement": placement,
        }],
        "recovery": {"outAfter": "1h"},
    }));
    let actual = built(&cluster, &[Bindings::new(), Bindings::new()], AddressFamily::V6);
    assert_fixture("long", &actual);
}

#[test]
fn a_log_gets_a_volume_a_claim_and_a_place_in_the_pod() {
    let cluster = validated_with(json!({"nodeSets": [{
        "name": "hdd", "count": 1, "device": {"hostPath": "/hdd", "size": "1Ti"},
        "logDevice": {"hostPath": "/nvme", "size": "4Gi"},
    }]}));
    let actual = built(&cluster, &[bound(&["node1"]), bound(&["node1"])], AddressFamily::V4);
    let volume = &actual["PersistentVolume curve.curve.demo-hdd-0.log"]["spec"];
    let path = volume["hostPath"]["path"].as_str().expect("a path");
    assert!(path.starts_with("/nvme/") && path.ends_with("/demo-hdd-0"), "{path}");
    assert_eq!(volume["claimRef"]["name"], "log-demo-hdd-0");
    assert_eq!(volume["capacity"]["storage"], "4Gi");
    let set = &actual["StatefulSet demo-hdd"]["spec"];
    assert_eq!(set["volumeClaimTemplates"][1]["metadata"]["name"], "log");
    let container = &set["template"]["spec"]["containers"][0];
    let mount = json!({"name": "log", "mountPath": "/log"});
    assert!(container["volumeMounts"].as_array().expect("mounts").contains(&mount));
    let args: Vec<&str> =
        container["args"].as_array().expect("words").iter().filter_map(Value::as_str).collect();
    let flags = ["--log-device", "/log/log", "--log-device-size", "4294967296"];
    assert!(args.windows(4).any(|words| words == flags), "{args:?}");
}

#[test]
fn a_set_gets_only_as_many_replicas_as_have_a_place() {
    let cluster = validated_with(json!({}));
    let actual = built(&cluster, &[bound(&["node1"]), bound(&[])], AddressFamily::V4);
    assert_eq!(actual["StatefulSet demo-mds"]["spec"]["replicas"], 1);
    assert_eq!(actual["StatefulSet demo-default"]["spec"]["replicas"], 0);
}

#[test]
fn no_container_may_gain_privileges() {
    let cluster = validated_with(json!({}));
    let actual = built(&cluster, &[bound(&[]), bound(&[])], AddressFamily::V4);
    for set in ["StatefulSet demo-mds", "StatefulSet demo-default"] {
        let pod = &actual[set]["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
        assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null());
    }
}

#[test]
fn connections_wait_for_the_identity_of_the_cluster() {
    let credentials = credentials();
    let inputs = BuildInputs {
        credentials: &credentials,
        bindings: &[],
        hostnames: &BTreeMap::new(),
        disruptions: Disruptions { mds: 1, chunkservers: 1 },
        cluster_id: None,
        operator_namespace: "curve-system",
        family: AddressFamily::V4,
    };
    assert!(build(&validated_with(json!({})), &inputs).connections.is_empty());
}
