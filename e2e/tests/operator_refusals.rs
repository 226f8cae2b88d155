//! Specs that cannot be carried out, at a real API server: refused at once with the reason where
//! the schema can tell, told in a condition and an event where only the operator can.

use std::time::Duration;

use anyhow::{Result, ensure};
use curve_e2e::kubectl::{self, Namespace};

const TOLD: Duration = Duration::from_secs(60);

fn cluster(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: curve.io/v1alpha1
kind: CurveCluster
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"
    )
}

fn node_set(fields: &str) -> String {
    format!("{{nodeSets: [{{name: a, count: 3, {fields}}}]}}")
}

#[test]
fn impossible_values_are_refused_with_words_that_help() -> Result<()> {
    let namespace = Namespace::create("operator-refusals")?;
    let ns = &namespace.0;
    let device = "device: {hostPath: /var/lib/curve-e2e-refused, size: 1Gi}";
    let good = node_set(device);
    let destroy =
        format!("{{deletionPolicy: Destroy, nodeSets: [{{name: a, count: 3, {device}}}]}}");
    let cases = [
        ("demo", node_set("device: {hostPath: /x, size: 1Mi}"), "size must be 512Mi or more"),
        ("demo", node_set("device: {hostPath: /x}"), "size goes with hostPath"),
        ("demo", node_set("device: {}"), "exactly one of hostPath and volumeClaimTemplate"),
        ("demo", node_set("device: {hostPath: ../x, size: 1Gi}"), "should match"),
        ("demo", node_set("device: {hostPath: /x, size: 1Gi}, wal: {}"), "unknown field"),
        ("demo", destroy, "confirm it by setting destroyConfirmation"),
        ("a-name-that-is-much-longer-than-it-may-be", good, "at most 30 characters"),
    ];
    for (name, spec, words) in cases {
        let answer = kubectl::apply(&cluster(ns, name, &spec));
        let text = answer.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(text.contains(words), "{spec}: expected {words:?} in {text:?}");
    }
    let left = kubectl::run(&["-n", ns, "get", "curveclusters", "-o", "name"])?;
    ensure!(left.is_empty(), "something was accepted: {left}");
    Ok(())
}

#[test]
fn a_cluster_that_no_node_can_take_says_so() -> Result<()> {
    let namespace = Namespace::create("operator-places")?;
    let ns = &namespace.0;
    let spec = node_set(
        "device: {hostPath: /var/lib/curve-e2e-places, size: 1Gi}, \
         placement: {nodeSelector: {disk: none-has-this}}",
    );
    let spec = spec.replacen(
        "{nodeSets",
        "{mds: {placement: {nodeSelector: {disk: none-has-this}}}, nodeSets",
        1,
    );
    kubectl::apply(&cluster(ns, "nowhere", &spec))?;
    let object = "curvecluster/nowhere";
    let reason = "{.status.conditions[?(@.type==\"Progressing\")].reason}";
    kubectl::wait_field(ns, object, reason, "NotEnoughNodes", TOLD)?;
    let message =
        kubectl::field(ns, object, "{.status.conditions[?(@.type==\"Progressing\")].message}")?;
    ensure!(message.contains("0 of 3 pods of a are placed: 0 nodes can be used"), "{message}");
    kubectl::wait_field(ns, object, "{.status.phase}", "Pending", TOLD)?;
    let events = kubectl::run(&["-n", ns, "get", "events", "-o", "jsonpath={.items[*].reason}"])?;
    ensure!(events.contains("NotEnoughNodes"), "{events}");
    kubectl::run(&["-n", ns, "delete", object, "--timeout=60s"])?;
    Ok(())
}
