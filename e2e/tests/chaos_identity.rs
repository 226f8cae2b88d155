//! A device or MDS directory that was wiped comes back under a new identity, catches up, and only
//! then counts; nothing is lost.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::{engine, kubectl, kubectl::Namespace, wait, workload};

const RECOVERED: Duration = Duration::from_secs(240);

/// The host directory behind a pod's claim.
fn host_dir(pod: &str) -> Result<PathBuf> {
    let object = format!("pod/{pod}");
    let path = "{.spec.volumes[?(@.persistentVolumeClaim)].persistentVolumeClaim.claimName}";
    let claim = kubectl::field(engine::NAMESPACE, &object, path)?;
    let volume = kubectl::field(engine::NAMESPACE, &format!("pvc/{claim}"), "{.spec.volumeName}")?;
    let dir = kubectl::run(&["get", "pv", &volume, "-o", "jsonpath={.spec.hostPath.path}"])?;
    ensure!(!dir.is_empty(), "volume {volume} of {pod} is not a host path");
    let node = engine::node_of(engine::NAMESPACE, pod)?;
    let cluster = xtask::cluster::Cluster::open()?;
    let dir = cluster.node_path(&node, &dir).context("the node's view of the host path")?;
    ensure!(dir.is_dir(), "{} is not a directory", dir.display());
    Ok(dir)
}

fn wipe(pod: &str, words: &[&str]) -> Result<()> {
    let dir = host_dir(pod)?;
    for entry in std::fs::read_dir(&dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    ensure!(engine::kill_processes("curve", words)? == 1, "kill the process of {pod}");
    Ok(())
}

fn device_id(name: &str) -> Result<String> {
    let status = engine::status()?;
    let devices = status["devices"].as_array().context("devices")?;
    devices
        .iter()
        .rev()
        .find(|device| device["name"] == name && device["out"] != true)
        .and_then(|device| Some(device["device_id"].as_str()?.to_owned()))
        .with_context(|| format!("device {name}"))
}

#[test]
fn a_wiped_device_comes_back_as_another_and_nothing_is_lost() -> Result<()> {
    engine::wait_healthy(RECOVERED)?;
    let namespace = Namespace::create("chaos-wipe")?;
    let ns = &namespace.0;
    workload::start(ns, "data", "Filesystem", "256Mi")?;
    let sum = workload::write_random(ns, "data", "/data/x", 64)?;
    let name = engine::busiest_leader()?;
    let old = device_id(&name)?;
    wipe(&name, &["chunkserver", &name])?;
    wait::until("the new device", RECOVERED, || match device_id(&name) {
        Ok(id) if id != old => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    engine::wait_healthy(RECOVERED)?;
    ensure!(workload::sum_of(ns, "data", "/data/x", 64)? == sum, "data changed");
    Ok(())
}

#[test]
fn an_mds_with_an_empty_directory_rejoins_as_another() -> Result<()> {
    let before = engine::wait_healthy(RECOVERED)?;
    let id_of = |status: &serde_json::Value| {
        let mds = status["mds"].as_array()?;
        let wiped = mds.iter().find(|mds| mds["name"] == "demo-mds-1")?;
        Some(wiped["device_id"].as_str()?.to_owned())
    };
    let old = id_of(&before).context("demo-mds-1 in curve status")?;
    wipe("demo-mds-1", &["mds", "demo-mds-1"])?;
    wait::until("demo-mds-1 to rejoin", RECOVERED, || {
        let status = engine::status().map_err(|error| error.to_string())?;
        match id_of(&status) {
            Some(id) if id != old && status["health"] == "ok" => Ok(()),
            other => Err(format!("{other:?} {}", status["messages"])),
        }
    })?;
    let after = engine::status()?;
    ensure!(after["cluster_id"] == before["cluster_id"], "the cluster changed its identity");
    Ok(())
}
