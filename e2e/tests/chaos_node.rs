//! A node that is gone for good: its copysets are rebuilt on a fourth, and the resources say so.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::{engine, kubectl, kubectl::Namespace, wait, workload};
use xtask::cluster::Cluster;

const REBUILT: Duration = Duration::from_secs(420);

/// Boots the node again whatever happens, so that later tests find it.
struct Stopped<'a>(&'a Cluster, u8);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = self.0.start_node(self.1);
    }
}

#[test]
fn a_lost_nodes_copysets_are_rebuilt_on_a_fourth_chunkserver() -> Result<()> {
    engine::wait_healthy(REBUILT)?;
    let cluster = Cluster::open()?;
    let object = "curvecluster/demo";
    let status = engine::status()?;
    let devices = status["devices"].as_array().context("devices")?.len();
    let namespace = Namespace::create("chaos-node")?;
    let ns = &namespace.0;
    workload::claim(ns, "data", "Filesystem", "256Mi")?;
    workload::pod(ns, "data", "data", "Filesystem", Some("node1"))?;
    workload::wait_running(ns, "data")?;
    let sum = workload::write_random(ns, "data", "/data/x", 32)?;

    if devices < 4 {
        cluster.add_node()?;
        let patch = r#"[{"op":"replace","path":"/spec/nodeSets/0/count","value":4}]"#;
        kubectl::run(&["-n", engine::NAMESPACE, "patch", object, "--type=json", "-p", patch])?;
        engine::wait_device("demo-default-3", true, REBUILT)?;
    }
    // Longer than it takes to replace an operator that dies with the node: it has to see the loss.
    let short = r#"{"spec":{"recovery":{"outAfter":"45s"}}}"#;
    kubectl::run(&["-n", engine::NAMESPACE, "patch", object, "--type=merge", "-p", short])?;
    // The change rolls the MDS pods: with one of them restarting, the node would take the quorum.
    let generation = kubectl::field(engine::NAMESPACE, object, "{.metadata.generation}")?;
    let observed = "{.status.observedGeneration}";
    kubectl::wait_field(engine::NAMESPACE, object, observed, &generation, REBUILT)?;
    kubectl::wait_field(engine::NAMESPACE, object, "{.status.phase}", "Ready", REBUILT)?;
    engine::wait_healthy(REBUILT)?;

    let events_before = events()?;
    let victim: u8 = 2;
    cluster.stop_node(victim)?;
    let _stopped = Stopped(&cluster, victim);
    wait::until("curve status to be degraded", REBUILT, || match engine::status() {
        Ok(status) if status["health"] != "ok" && status["copysets_degraded"] != 0 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let degraded = "{.status.conditions[?(@.type==\"Degraded\")].status}";
    kubectl::wait_field(engine::NAMESPACE, object, degraded, "True", REBUILT)?;
    wait::until("every copyset whole again", REBUILT, || {
        let status = engine::status().map_err(|error| error.to_string())?;
        let whole = status["copysets_degraded"] == 0 && status["copysets_unavailable"] == 0;
        if whole { Ok(()) } else { Err(status["messages"].to_string()) }
    })?;
    // With the node still gone: its MDS has started anew elsewhere, and nothing is missing.
    engine::wait_healthy(REBUILT)?;
    kubectl::wait_field(engine::NAMESPACE, object, degraded, "False", REBUILT)?;
    let status = engine::status()?;
    let fourth = status["devices"].as_array().into_iter().flatten();
    let replicas =
        |name: &str| fourth.clone().find(|device| device["name"] == name)?["replicas"].as_u64();
    ensure!(replicas("demo-default-3") > Some(0), "the fourth holds nothing: {status}");
    ensure!(workload::sum_of(ns, "data", "/data/x", 32)? == sum, "data changed");
    let new: Vec<String> = events()?.difference(&events_before).cloned().collect();
    for reason in ["CopysetsDegraded", "CopysetsWhole", "MdsReplaced"] {
        ensure!(new.iter().any(|event| event.starts_with(reason)), "no event {reason}: {new:?}");
    }
    Ok(())
}

/// Reason and version of every event of the cluster's namespace: a repeated one has a new version.
fn events() -> Result<BTreeSet<String>> {
    let path =
        "{range .items[*]}{.reason} {.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}";
    let args = ["-n", engine::NAMESPACE, "get", "events", "-o", &format!("jsonpath={path}")];
    Ok(kubectl::run(&args)?.lines().map(str::to_owned).collect())
}
