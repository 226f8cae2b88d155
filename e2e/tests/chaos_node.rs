//! A node that is gone for good: its copysets are rebuilt on a fourth, and the resources say so.

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
    let sum = kubectl::exec(
        ns,
        "data",
        "head -c 33554432 /dev/urandom >/data/x && sync && md5sum </data/x",
    )?;

    if devices < 4 {
        cluster.add_node()?;
        let patch = r#"[{"op":"replace","path":"/spec/nodeSets/0/count","value":4}]"#;
        kubectl::run(&["-n", engine::NAMESPACE, "patch", object, "--type=json", "-p", patch])?;
        engine::wait_device("demo-default-3", true, REBUILT)?;
    }
    let short = r#"{"spec":{"recovery":{"outAfter":"15s"}}}"#;
    kubectl::run(&["-n", engine::NAMESPACE, "patch", object, "--type=merge", "-p", short])?;
    // The change rolls the MDS pods: with one of them restarting, the node would take the quorum.
    let generation = kubectl::field(engine::NAMESPACE, object, "{.metadata.generation}")?;
    let observed = "{.status.observedGeneration}";
    kubectl::wait_field(engine::NAMESPACE, object, observed, &generation, REBUILT)?;
    kubectl::wait_field(engine::NAMESPACE, object, "{.status.phase}", "Ready", REBUILT)?;
    engine::wait_healthy(REBUILT)?;

    let victim: u8 = 2;
    cluster.stop_node(victim)?;
    let _stopped = Stopped(&cluster, victim);
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
    ensure!(kubectl::exec(ns, "data", "md5sum </data/x")? == sum, "data changed");
    let events = kubectl::run(&["-n", engine::NAMESPACE, "get", "events"])?;
    for reason in ["CopysetsDegraded", "CopysetsWhole", "MdsReplaced"] {
        ensure!(events.contains(reason), "no event {reason}:\n{events}");
    }
    Ok(())
}
