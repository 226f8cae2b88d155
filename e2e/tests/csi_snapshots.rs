//! Snapshots and clones of claims on the local cluster, through the snapshot-controller and the
//! sidecars that a user's VolumeSnapshot goes through.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::{engine, kubectl, kubectl::Namespace, wait, workload};
use serde_json::Value;

const READY: Duration = Duration::from_secs(120);
/// Controller, sidecar and their back-offs.
const TAKEN: Duration = Duration::from_secs(120);
const DELETED: Duration = Duration::from_secs(180);
const CLASS: &str = "curve-block";
const FILE: &str = "/data/x";
const MIB: u32 = 16;

fn take_snapshot(namespace: &str, name: &str, claim: &str) -> Result<()> {
    kubectl::apply(&format!(
        "apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  volumeSnapshotClassName: {CLASS}
  source: {{persistentVolumeClaimName: {claim}}}
"
    ))?;
    wait_ready(namespace, &format!("volumesnapshot/{name}"))
}

fn wait_ready(namespace: &str, object: &str) -> Result<()> {
    wait::until(&format!("{object} to be ready"), TAKEN, || {
        let status = kubectl::field(namespace, object, "{.status}");
        let status = status.map_err(|error| error.to_string())?;
        let parsed: Value = serde_json::from_str(&status).unwrap_or_default();
        if parsed["readyToUse"] == true { Ok(()) } else { Err(status) }
    })
}

/// A claim with the data of `source`, which is written `KIND/NAME`.
fn claim_from(namespace: &str, name: &str, source: &str, mode: &str, size: &str) -> Result<()> {
    let (kind, from) = source.split_once('/').context("KIND/NAME")?;
    let group = match kind {
        "VolumeSnapshot" => "apiGroup: snapshot.storage.k8s.io, ",
        _ => "",
    };
    kubectl::apply(&format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  storageClassName: {CLASS}
  resources: {{requests: {{storage: {size}}}}}
  dataSource: {{{group}kind: {kind}, name: {from}}}
"
    ))?;
    Ok(())
}

/// Name of the volume behind a claim, which is that of its PersistentVolume.
fn volume_of(namespace: &str, claim: &str) -> Result<String> {
    kubectl::field(namespace, &format!("pvc/{claim}"), "{.spec.volumeName}")
}

fn delete(namespace: &str, objects: &[&str]) -> Result<()> {
    let timeout = format!("--timeout={}s", DELETED.as_secs());
    kubectl::run(&[&["-n", namespace, "delete", &timeout], objects].concat())?;
    Ok(())
}

/// Whether none of the words is found in what kubectl lists of a kind that has no namespace.
fn wait_gone(kind: &str, words: &[String]) -> Result<()> {
    wait::until(&format!("no {kind} of {words:?}"), DELETED, || {
        let all = kubectl::run(&["get", kind, "-o", "json"]).map_err(|error| error.to_string())?;
        match words.iter().find(|word| all.contains(*word)) {
            Some(word) => Err(format!("there is one of {word}")),
            None => Ok(()),
        }
    })
}

/// What the engine itself still has.
fn wait_gone_from_the_engine(volumes: &[String]) -> Result<()> {
    wait::until("the engine's volumes to be gone", DELETED, || {
        let pod = format!("{}-mds-0", engine::CLUSTER);
        let script = "curve volume list -o json";
        let all = kubectl::exec(engine::NAMESPACE, &pod, script).map_err(|e| e.to_string())?;
        match volumes.iter().find(|volume| all.contains(*volume)) {
            Some(volume) => Err(format!("there is {volume}")),
            None => Ok(()),
        }
    })
}

#[test]
fn a_snapshot_keeps_the_old_data_and_a_clone_has_the_new_and_deletion_leaves_nothing() -> Result<()>
{
    engine::wait_healthy(READY)?;
    let namespace = Namespace::create("csi-snapshots")?;
    let ns = &namespace.0;
    workload::start(ns, "origin", "Filesystem", "256Mi")?;
    let node = engine::node_of(ns, "origin")?;
    let old = workload::write_random(ns, "origin", FILE, MIB)?;
    take_snapshot(ns, "taken", "origin")?;
    let new = workload::write_random(ns, "origin", FILE, MIB)?;
    ensure!(old != new, "two random files are the same");

    // Both on the node of their origin: three file systems with one UUID side by side.
    claim_from(ns, "restored", "VolumeSnapshot/taken", "Filesystem", "512Mi")?;
    claim_from(ns, "cloned", "PersistentVolumeClaim/origin", "Filesystem", "256Mi")?;
    for name in ["restored", "cloned"] {
        workload::pod(ns, name, name, "Filesystem", Some(&node))?;
    }
    for (name, sum) in [("restored", &old), ("cloned", &new)] {
        workload::wait_running(ns, name)?;
        ensure!(workload::sum_of(ns, name, FILE, MIB)? == *sum, "{name} has other data");
    }
    let size = kubectl::exec(ns, "restored", "df -B1 --output=size /data | tail -n1")?;
    let size: u64 = size.trim().parse().context("df's number")?;
    ensure!(size > 400 << 20, "the restored file system has {size} bytes of 512 MiB");

    // What is written to either stays there.
    workload::write_random(ns, "restored", FILE, MIB)?;
    workload::write_random(ns, "cloned", FILE, MIB)?;
    ensure!(workload::sum_of(ns, "origin", FILE, MIB)? == new, "the origin has changed");

    let claims = ["origin", "restored", "cloned"];
    let volumes = claims.map(|claim| volume_of(ns, claim)).into_iter();
    let volumes = volumes.collect::<Result<Vec<String>>>()?;
    for name in claims {
        workload::delete_pod(ns, name)?;
    }
    // The origin goes first: neither the snapshot nor the clone needs it.
    delete(ns, &["pvc", "origin"])?;
    wait_gone("pv", &volumes[..1])?;
    claim_from(ns, "again", "VolumeSnapshot/taken", "Filesystem", "256Mi")?;
    workload::pod(ns, "again", "again", "Filesystem", None)?;
    workload::wait_running(ns, "again")?;
    ensure!(workload::sum_of(ns, "again", FILE, MIB)? == old, "the snapshot has other data");
    let volumes = [&volumes[..], &[volume_of(ns, "again")?]].concat();
    workload::delete_pod(ns, "again")?;
    delete(ns, &["volumesnapshot", "taken"])?;
    delete(ns, &["pvc", "restored", "cloned", "again"])?;
    wait_gone("volumesnapshotcontents", std::slice::from_ref(ns))?;
    wait_gone("pv", &volumes)?;
    wait_gone_from_the_engine(&volumes)
}

#[test]
fn a_raw_volume_is_restored_byte_by_byte() -> Result<()> {
    engine::wait_healthy(READY)?;
    let namespace = Namespace::create("csi-snap-raw")?;
    let ns = &namespace.0;
    workload::start(ns, "origin", "Block", "64Mi")?;
    let old = workload::write_random(ns, "origin", "/dev/data", MIB)?;
    take_snapshot(ns, "taken", "origin")?;
    workload::write_random(ns, "origin", "/dev/data", MIB)?;
    claim_from(ns, "restored", "VolumeSnapshot/taken", "Block", "64Mi")?;
    workload::pod(ns, "restored", "restored", "Block", None)?;
    workload::wait_running(ns, "restored")?;
    let found = workload::sum_of(ns, "restored", "/dev/data", MIB)?;
    ensure!(found == old, "the restored device has other data");
    delete(ns, &["volumesnapshot", "taken"])
}

#[test]
fn a_group_snapshot_takes_every_claim_that_it_selects() -> Result<()> {
    engine::wait_healthy(READY)?;
    let namespace = Namespace::create("csi-snap-group")?;
    let ns = &namespace.0;
    for name in ["one", "two", "other"] {
        workload::claim(ns, name, "Block", "64Mi")?;
        kubectl::wait_field(ns, &format!("pvc/{name}"), "{.status.phase}", "Bound", READY)?;
    }
    kubectl::run(&["-n", ns, "label", "pvc", "one", "two", "app=data"])?;
    kubectl::apply(&format!(
        "apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {{name: taken, namespace: {ns}}}
spec:
  volumeGroupSnapshotClassName: {CLASS}
  source: {{selector: {{matchLabels: {{app: data}}}}}}
"
    ))?;
    wait_ready(ns, "volumegroupsnapshot/taken")?;
    wait::until("a snapshot of each claim", TAKEN, || {
        let found = kubectl::run(&["-n", ns, "get", "volumesnapshots", "-o", "name"]);
        let found = found.map_err(|error| error.to_string())?;
        if found.lines().count() == 2 { Ok(()) } else { Err(found) }
    })?;
    delete(ns, &["volumegroupsnapshot", "taken"])?;
    wait_gone("volumegroupsnapshotcontents", std::slice::from_ref(ns))?;
    wait_gone("volumesnapshotcontents", std::slice::from_ref(ns))
}
