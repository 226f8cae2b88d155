//! The Helm chart, rendered by helm itself: `$CURVE_HELM` (`cargo xtask test` sets it), or
//! `helm` of the PATH.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use serde_json::Value;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join("charts/curve")
}

fn helm(args: &[&str]) -> Output {
    let program = std::env::var("CURVE_HELM").unwrap_or_else(|_| "helm".into());
    let output = Command::new(&program).args(args).output();
    output.unwrap_or_else(|error| panic!("run {program}: {error}"))
}

/// The rendered objects with these `--set` values, for a cluster without the API of snapshots.
fn render(values: &[&str]) -> Result<Vec<Value>, String> {
    render_for(&[], values)
}

/// The same for a cluster that has it.
fn render_with_snapshots(values: &[&str]) -> Result<Vec<Value>, String> {
    render_for(&["--api-versions", "snapshot.storage.k8s.io/v1"], values)
}

fn render_for(cluster: &[&str], values: &[&str]) -> Result<Vec<Value>, String> {
    let chart = chart();
    let mut args = vec!["template", "curve", chart.to_str().expect("UTF-8")];
    args.extend(["--namespace", "curve-system", "--include-crds"]);
    args.extend(cluster);
    args.extend(values.iter().flat_map(|value| ["--set", value]));
    let output = helm(&args);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let documents = serde_yaml::Deserializer::from_str(&text);
    let objects = documents.map(|document| Value::deserialize(document).expect("YAML"));
    Ok(objects.filter(|object| !object.is_null()).collect())
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// All containers with the pod template that they belong to.
fn containers(objects: &[Value]) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for object in objects {
        let containers = &object["spec"]["template"]["spec"]["containers"];
        for container in containers.as_array().into_iter().flatten() {
            let pod = object["metadata"]["name"].as_str().unwrap_or_default();
            let name = container["name"].as_str().unwrap_or_default();
            found.push((format!("{pod}/{name}"), container.clone()));
        }
    }
    found
}

#[test]
fn the_chart_passes_lint() {
    let chart = chart();
    let output = helm(&["lint", "--strict", chart.to_str().expect("UTF-8")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_component_is_there() {
    let objects = render(&[]);
    let objects = objects.expect("renders");
    for (kind, name) in [
        ("CustomResourceDefinition", "curveclusters.curve.io"),
        ("CustomResourceDefinition", "curvepools.curve.io"),
        ("Deployment", "curve-operator"),
        ("Deployment", "curve-csi-controller"),
        ("DaemonSet", "curve-csi-node"),
        ("DaemonSet", "curve-agent"),
        ("CSIDriver", "block.csi.curve.io"),
        ("StorageClass", "curve-block"),
    ] {
        find(&objects, kind, name);
    }
    let class = find(&objects, "StorageClass", "curve-block");
    assert_eq!(class["parameters"]["cluster"], "curve/demo");
    assert_eq!(class["allowVolumeExpansion"], true);
    let operator = &find(&objects, "Deployment", "curve-operator")["spec"];
    assert_eq!(operator["replicas"], 2);
}

#[test]
fn only_what_touches_the_node_is_privileged() {
    let objects = render_with_snapshots(&[]);
    for (name, container) in containers(&objects.expect("renders")) {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        if ["curve-agent/agent", "curve-csi-node/driver"].contains(&name.as_str()) {
            assert_eq!(context["privileged"], true, "{name}");
        } else {
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["runAsNonRoot"], true, "{name}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
        }
    }
}

#[test]
fn no_role_has_wildcards_and_only_the_operator_may_read_secrets() {
    let objects = render_with_snapshots(&[]);
    for object in objects.expect("renders") {
        let name = &object["metadata"]["name"];
        for rule in object["rules"].as_array().into_iter().flatten() {
            assert!(!rule.to_string().contains("\"*\""), "{name}: {rule}");
            let mentions = |key: &str, word: &str| {
                rule[key].as_array().is_some_and(|words| words.iter().any(|w| w == word))
            };
            if mentions("resources", "secrets") {
                assert_eq!(name, "curve-operator");
                let lists = mentions("verbs", "list") || mentions("verbs", "watch");
                assert!(object["kind"] == "Role" || !lists, "{rule}");
            }
        }
    }
}

#[test]
fn values_reach_the_objects() {
    let values = [
        "image.repository=registry.example/curve",
        "image.tag=v9",
        "sidecars.registry=localhost",
        "storageClass.cluster=prod/main",
        "csi.kubeletDir=/data/kubelet",
    ];
    let objects = render_with_snapshots(&values);
    let objects = objects.expect("renders");
    for (name, container) in containers(&objects) {
        let image = container["image"].as_str().unwrap_or_default();
        let ours = image == "registry.example/curve:v9";
        let sidecar = image.starts_with("localhost/csi-");
        assert!(ours || sidecar, "{name}: {image}");
    }
    let class = find(&objects, "StorageClass", "curve-block");
    assert_eq!(class["parameters"]["cluster"], "prod/main");
    let node = find(&objects, "DaemonSet", "curve-csi-node").to_string();
    assert!(node.contains("/data/kubelet/plugins_registry") && !node.contains("/var/lib/kubelet"));
}

#[test]
fn a_value_that_does_not_exist_is_refused() {
    for value in ["operator.replica=2", "storageClass.cluster=demo", "csi.kubeletDir=relative"] {
        let rendered = render(&[value]);
        assert!(rendered.is_err(), "{value}");
    }
}

#[test]
fn the_storage_class_can_be_left_out() {
    let objects = render(&["storageClass.create=false"]);
    assert!(objects.expect("renders").iter().all(|object| object["kind"] != "StorageClass"));
}

fn rules(objects: &[Value]) -> String {
    let rules = objects.iter().filter(|object| !object["rules"].is_null());
    rules.map(|object| object["rules"].to_string()).collect()
}

#[test]
fn snapshots_are_served_where_the_cluster_has_their_api() {
    let objects = render_with_snapshots(&[]).expect("renders");
    let class = find(&objects, "VolumeSnapshotClass", "curve-block");
    assert_eq!(class["driver"], "block.csi.curve.io");
    assert_eq!(class["deletionPolicy"], "Delete");
    let all = containers(&objects);
    let sidecar = all.iter().find(|(name, _)| name == "curve-csi-controller/snapshotter");
    let args = &sidecar.expect("the snapshotter").1["args"];
    let elects = args.as_array().expect("args").iter().any(|arg| arg == "--leader-election");
    assert!(elects, "{args}");
    assert!(rules(&objects).contains("volumesnapshotcontents/status"));
    let left_out = render_with_snapshots(&["snapshotClass.create=false"]).expect("renders");
    assert!(left_out.iter().all(|object| object["kind"] != "VolumeSnapshotClass"));
}

#[test]
fn nothing_speaks_of_snapshots_where_the_cluster_has_no_api_of_theirs() {
    let objects = render(&[]).expect("renders");
    assert!(objects.iter().all(|object| object["kind"] != "VolumeSnapshotClass"));
    assert!(containers(&objects).iter().all(|(name, _)| !name.ends_with("/snapshotter")));
    assert!(!rules(&objects).contains("snapshot.storage.k8s.io"));
}

/// A dead agent's devices fail all IO: an upgrade of the chart must not end agents under pods.
#[test]
fn an_upgrade_leaves_running_agents_alone() {
    let objects = render(&[]);
    let objects = objects.expect("renders");
    let strategy = &find(&objects, "DaemonSet", "curve-agent")["spec"]["updateStrategy"];
    assert_eq!(*strategy, serde_json::json!({"type": "OnDelete"}));
}

/// kubelet dials the registration socket with its escaped path as `:authority`; our server refuses
/// the call before any of our code if that is no authority by the book.
#[test]
fn the_registration_sockets_path_is_an_authority_once_kubelet_has_escaped_it() {
    let objects = render(&[]);
    let objects = objects.expect("renders");
    let node = find(&objects, "DaemonSet", "curve-csi-node");
    let args = &node["spec"]["template"]["spec"]["containers"][0]["args"];
    let args: Vec<&str> = args.as_array().expect("args").iter().filter_map(Value::as_str).collect();
    let at = args.iter().position(|arg| *arg == "--registration-socket").expect("the flag");
    let escaped = args[at + 1].replace('/', "%2F");
    assert!(escaped.parse::<http::uri::Authority>().is_ok(), "{escaped}");
}
