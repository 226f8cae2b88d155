//! A pod that moves to another node takes its data along, and what stayed behind is fenced.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use curve_e2e::{engine, kubectl, kubectl::Namespace, wait, workload};
use xtask::cluster::Cluster;

const DETACHED: Duration = Duration::from_secs(180);

/// Brings a node back whatever the test did, so that later tests find the cluster whole.
struct Isolated<'a>(&'a Cluster, u8, String);

impl Drop for Isolated<'_> {
    fn drop(&mut self) {
        let _ = self.0.connect_node(self.1, true);
        let _ = kubectl::run(&["taint", "node", &self.2, "node.kubernetes.io/out-of-service-"]);
    }
}

/// The loop devices of a claim's volume on any node: all share the kernel.
fn loop_devices(namespace: &str, claim: &str) -> Result<Vec<String>> {
    let volume = kubectl::field(namespace, &format!("pvc/{claim}"), "{.spec.volumeName}")?;
    let handle = kubectl::run(&["get", "pv", &volume, "-o", "jsonpath={.spec.csi.volumeHandle}"])?;
    // The agent's file is named by the volume's id, the last part of the handle.
    let id = handle.rsplit('/').next().context("a volume handle")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").context("list /sys/block")? {
        let entry = entry?;
        // One without a file has no such attribute.
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file"));
        if file.is_ok_and(|file| file.trim_end().ends_with(id)) {
            found.push(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(found)
}

#[test]
fn a_moved_pod_finds_its_data_and_the_old_attachment_is_refused() -> Result<()> {
    engine::wait_healthy(DETACHED)?;
    let namespace = Namespace::create("chaos-move")?;
    let ns = &namespace.0;
    workload::claim(ns, "data", "Block", "256Mi")?;
    workload::pod(ns, "old", "data", "Block", Some("node3"))?;
    workload::wait_running(ns, "old")?;
    let devices = loop_devices(ns, "data")?;
    let [device] = devices.as_slice() else { bail!("loop devices of the claim: {devices:?}") };
    let write = |pod: &str, fill: &str| {
        let script = format!(
            "head -c 4194304 /dev/zero | tr '\\0' {fill} | dd of=/dev/data oflag=direct bs=1M \
             conv=fsync 2>&1 && dd if=/dev/data bs=1M count=4 iflag=direct 2>/dev/null | md5sum"
        );
        kubectl::exec(ns, pod, &script)
    };
    let old_sum = write("old", "a")?;

    let cluster = Cluster::open()?;
    cluster.connect_node(3, false)?;
    let _isolated = Isolated(&cluster, 3, "node3".to_owned());
    wait::until("node3 to be NotReady", DETACHED, || {
        let path = "{.status.conditions[?(@.type==\"Ready\")].status}";
        match kubectl::field("default", "node/node3", path) {
            Ok(status) if status != "True" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    let taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
    kubectl::run(&["taint", "node", "node3", taint, "--overwrite"])?;
    workload::pod(ns, "new", "data", "Block", Some("node2"))?;
    workload::wait_running(ns, "new")?;
    let read = "dd if=/dev/data bs=1M count=4 iflag=direct 2>/dev/null | md5sum";
    let moved = kubectl::exec(ns, "new", read)?;
    ensure!(
        old_sum.lines().last() == moved.lines().last(),
        "data changed while moving: {old_sum} became {moved}"
    );
    let new_sum = write("new", "b")?;

    // The node wakes up: what it still has open must change nothing and say so.
    cluster.connect_node(3, true)?;
    let devices = loop_devices(ns, "data")?;
    ensure!(devices.len() == 2 && devices.contains(device), "{device} is not in {devices:?}");
    let revived = Command::new("dd")
        .args(["if=/dev/zero", &format!("of={device}"), "bs=4096", "count=1", "oflag=direct"])
        .output()
        .context("dd")?;
    let said = String::from_utf8_lossy(&revived.stderr);
    ensure!(!revived.status.success(), "a fenced attachment accepted a write");
    ensure!(said.contains("Input/output error"), "a fenced write ended with {said}");
    let kept = kubectl::exec(ns, "new", read)?;
    ensure!(new_sum.lines().last() == kept.lines().last(), "a fenced write changed the volume");
    Ok(())
}
