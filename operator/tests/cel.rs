//! The CEL rules of the CRDs, evaluated as the API server does: what is accepted, what is refused
//! and with which words.

use curve_operator::crd;
use kube_cel::Validator;
use serde_json::{Value, json};

fn schema(kind: &str) -> Value {
    let (_, definition) = crd::definitions()
        .into_iter()
        .find(|(_, definition)| definition.spec.names.kind == kind)
        .expect("a CRD of that kind");
    let schema = definition.spec.versions[0].schema.as_ref().expect("a schema");
    serde_json::to_value(schema.open_api_v3_schema.as_ref().expect("a schema")).expect("JSON")
}

/// Messages of all rules that refuse `new`, as an update of `old` if given.
fn refusals(kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(kind), new, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|error| error.message.clone()).collect(),
    }
}

/// The short form after defaulting, with the value at `pointer` replaced, or removed by `null`.
fn cluster(changes: &[(&str, Value)]) -> Value {
    let mut object = json!({
        "apiVersion": "curve.io/v1alpha1",
        "kind": "CurveCluster",
        "metadata": {"name": "demo", "namespace": "curve"},
        "spec": {
            "mds": {"replicas": 3},
            "nodeSets": [{
                "name": "default",
                "count": 3,
                "device": {"hostPath": "/var/lib/curve", "size": "10Gi"},
            }],
            "recovery": {"outAfter": "10m"},
            "deletionPolicy": "Retain",
        },
    });
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = object.pointer_mut(parent).expect("a parent");
        match parent {
            Value::Array(items) => {
                let index: usize = key.parse().expect("an index");
                items.truncate(index);
                items.push(value.clone());
            }
            _ if value.is_null() => {
                parent.as_object_mut().expect("an object").remove(key);
            }
            _ => parent[key] = value.clone(),
        }
    }
    object
}

const SET: &str = "/spec/nodeSets/0";

fn at(path: &str) -> String {
    format!("{SET}/{path}")
}

#[test]
fn the_short_form_is_accepted_also_when_nothing_changes() {
    let object = cluster(&[]);
    assert_eq!(refusals("CurveCluster", &object, None), [] as [&str; 0]);
    assert_eq!(refusals("CurveCluster", &object, Some(&object)), [] as [&str; 0]);
}

#[test]
fn what_can_be_carried_out_is_accepted() {
    let old = cluster(&[]);
    let second = json!({
        "name": "more", "count": 1,
        "device": {"volumeClaimTemplate": {"storageClassName": "x", "size": "1Gi"}},
    });
    let changes: [(&str, Value); 6] = [
        (&at("count"), json!(4)),
        (&at("resources"), json!({"requests": {"cpu": "1"}})),
        ("/spec/image", json!({"tag": "2"})),
        ("/spec/recovery/outAfter", json!("30s")),
        ("/spec/nodeSets/1", second),
        ("/spec/mds/resources", json!({"requests": {"cpu": "1"}})),
    ];
    for (pointer, value) in changes {
        let new = cluster(&[(pointer, value)]);
        assert_eq!(refusals("CurveCluster", &new, Some(&old)), [] as [&str; 0], "{pointer}");
    }
}

#[test]
fn impossible_values_are_refused_with_the_reason() {
    let claim = json!({"size": "10Gi"});
    let log_claim = json!({"volumeClaimTemplate": {"size": "1Gi"}});
    let log_beside = json!({"hostPath": "/var/lib/curve", "size": "1Gi"});
    let cases: [(&str, Value, &str); 12] = [
        ("/metadata/name", json!("1-demo"), "begins with a letter"),
        ("/metadata/name", json!("a-name-that-is-much-longer-than-it-may-be"), "30 characters"),
        ("/spec/mds/replicas", json!(2), "must be 3, or 1"),
        ("/spec/recovery/outAfter", json!("1s"), "between 10s and 168h"),
        ("/spec/deletionPolicy", json!("Destroy"), "confirm it by setting destroyConfirmation"),
        (&at("name"), json!("mds"), "taken by the metadata service"),
        (&at("device/hostPath"), Value::Null, "exactly one of hostPath and volumeClaimTemplate"),
        (&at("device/size"), Value::Null, "size goes with hostPath"),
        (&at("device/size"), json!("100Mi"), "512Mi or more"),
        (&at("device/volumeClaimTemplate"), claim, "exactly one of hostPath"),
        (&at("logDevice"), log_claim, "logDevice must be of the same kind"),
        (&at("logDevice"), log_beside, "must be on another disk"),
    ];
    for (pointer, value, words) in cases {
        let object = cluster(&[(pointer, value.clone())]);
        let refusals = refusals("CurveCluster", &object, None);
        assert!(refusals.iter().any(|r| r.contains(words)), "{pointer}={value}: {refusals:?}");
    }
}

#[test]
fn changes_that_would_lose_data_are_refused_with_the_reason() {
    let old = cluster(&[]);
    let other = json!({
        "name": "other", "count": 3, "device": {"hostPath": "/var/lib/curve", "size": "10Gi"},
    });
    let claim = json!({"volumeClaimTemplate": {"size": "10Gi"}});
    let storage = json!({"hostPath": "/fast", "size": "1Gi"});
    let cases: [(&str, Value, &str); 10] = [
        (&at("count"), json!(2), "count cannot shrink"),
        (&at("device/size"), json!("5Gi"), "raise count for more capacity"),
        (&at("device/size"), json!("20Gi"), "raise count for more capacity"),
        (&at("device/hostPath"), json!("/other"), "hostPath is fixed"),
        (&at("device"), claim, "hostPath is fixed"),
        (&at("deviceClass"), json!("ssd"), "deviceClass is fixed"),
        (&at("logDevice"), storage.clone(), "logDevice is fixed"),
        ("/spec/mds/replicas", json!(1), "mds.replicas is fixed"),
        ("/spec/mds/storage", storage, "mds.storage is fixed"),
        ("/spec/nodeSets/0", other, "a node set cannot be removed"),
    ];
    for (pointer, value, words) in cases {
        let new = cluster(&[(pointer, value.clone())]);
        let refusals = refusals("CurveCluster", &new, Some(&old));
        assert!(refusals.iter().any(|r| r.contains(words)), "{pointer}={value}: {refusals:?}");
    }
}

#[test]
fn destroy_needs_the_name_of_this_cluster() {
    let confirmed = |word: &str| {
        cluster(&[
            ("/spec/deletionPolicy", json!("Destroy")),
            ("/spec/destroyConfirmation", json!(word)),
        ])
    };
    assert_eq!(refusals("CurveCluster", &confirmed("demo"), None), [] as [&str; 0]);
    assert_eq!(refusals("CurveCluster", &confirmed("other"), None).len(), 1);
}

fn pool(spec: Value) -> Value {
    json!({
        "apiVersion": "curve.io/v1alpha1", "kind": "CurvePool",
        "metadata": {"name": "fast", "namespace": "curve"}, "spec": spec,
    })
}

#[test]
fn a_pool_needs_a_majority_after_one_loss_and_changes_nothing_but_its_overcommit() {
    let good = pool(json!({"cluster": "demo", "replicas": 3, "failureDomain": "host"}));
    assert_eq!(refusals("CurvePool", &good, Some(&good)), [] as [&str; 0]);
    let two = pool(json!({"cluster": "demo", "replicas": 2, "failureDomain": "host"}));
    assert!(refusals("CurvePool", &two, None)[0].contains("replicas must be 3 or more"));
    let zone = pool(json!({"cluster": "demo", "replicas": 3, "failureDomain": "zone"}));
    assert!(refusals("CurvePool", &zone, Some(&good))[0].contains("fixed at creation"));
    let classed = |class: &str| {
        let spec = json!({
            "cluster": "demo", "replicas": 3, "failureDomain": "host", "deviceClass": class,
        });
        pool(spec)
    };
    for (new, old) in
        [(classed("ssd"), &good), (good.clone(), &classed("ssd")), (classed("a"), &classed("b"))]
    {
        assert!(refusals("CurvePool", &new, Some(old))[0].contains("fixed at creation"));
    }
    let mut raised = good.clone();
    raised["spec"]["overcommitPercent"] = json!(200);
    assert_eq!(refusals("CurvePool", &raised, Some(&good)), [] as [&str; 0]);
    assert_eq!(refusals("CurvePool", &good, Some(&raised)), [] as [&str; 0]);
}

#[test]
fn the_range_of_an_overcommit_is_in_the_schema() {
    let schema = schema("CurvePool");
    let field = &schema["properties"]["spec"]["properties"]["overcommitPercent"];
    let found = (&field["default"], &field["minimum"], &field["maximum"]);
    let [default, minimum, maximum] = [json!(100), json!(100.0), json!(2000.0)];
    assert_eq!(found, (&default, &minimum, &maximum));
}
