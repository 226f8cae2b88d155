//! Claims on the local cluster: every form of volume, growing, moving, and the plugin's restart.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::{engine, kubectl, kubectl::Namespace, wait, workload};

const READY: Duration = Duration::from_secs(120);
/// external-resizer, kubelet's resize and their back-offs.
const GROWN: Duration = Duration::from_secs(240);

/// A storage class that lives as long as the value.
struct StorageClass(String);

impl StorageClass {
    /// Of the demo cluster, with one more parameter.
    fn create(prefix: &str, key: &str, value: &str) -> Result<Self> {
        let name = format!("{prefix}-{}", std::process::id());
        let cluster = format!("{}/{}", engine::NAMESPACE, engine::CLUSTER);
        kubectl::apply(&format!(
            "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {name}}}
provisioner: block.csi.curve.io
allowVolumeExpansion: true
parameters: {{cluster: {cluster}, {key}: \"{value}\"}}
"
        ))?;
        Ok(Self(name))
    }
}

impl Drop for StorageClass {
    fn drop(&mut self) {
        let _ = kubectl::run(&["delete", "storageclass", &self.0, "--ignore-not-found"]);
    }
}

fn claim_of_class(namespace: &str, name: &str, class: &str, size: &str) -> Result<()> {
    kubectl::apply(&format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: {class}
  resources: {{requests: {{storage: {size}}}}}
"
    ))?;
    Ok(())
}

/// Writes 32 MiB through the page cache and reads them back from the volume.
fn write_and_read_back(namespace: &str, pod: &str, file: &str) -> Result<String> {
    let script = format!(
        "set -e; head -c 33554432 /dev/urandom >/tmp/x; dd if=/tmp/x of={file} bs=1M conv=fsync \
         2>/dev/null; a=$(md5sum </tmp/x); \
         b=$(dd if={file} bs=1M count=32 iflag=direct 2>/dev/null | md5sum); rm /tmp/x; \
         [ \"$a\" = \"$b\" ] && echo \"$a\""
    );
    kubectl::exec(namespace, pod, &script)
}

fn read_sum(namespace: &str, pod: &str, file: &str) -> Result<String> {
    let script = format!("dd if={file} bs=1M count=32 iflag=direct 2>/dev/null | md5sum");
    kubectl::exec(namespace, pod, &script)
}

#[test]
fn a_pod_writes_and_reads_back_on_ext4_xfs_and_a_raw_device() -> Result<()> {
    engine::wait_healthy(READY)?;
    let namespace = Namespace::create("csi-forms")?;
    let ns = &namespace.0;
    let xfs = StorageClass::create("csi-xfs", "csi.storage.k8s.io/fstype", "xfs")?;
    workload::claim(ns, "ext4", "Filesystem", "256Mi")?;
    workload::claim(ns, "raw", "Block", "256Mi")?;
    claim_of_class(ns, "xfs", &xfs.0, "320Mi")?;
    for (name, mode) in [("ext4", "Filesystem"), ("xfs", "Filesystem"), ("raw", "Block")] {
        workload::pod(ns, name, name, mode, None)?;
    }
    for (name, file) in [("ext4", "/data/x"), ("xfs", "/data/x"), ("raw", "/dev/data")] {
        workload::wait_running(ns, name)?;
        write_and_read_back(ns, name, file)?;
    }
    for name in ["ext4", "xfs"] {
        let found = kubectl::exec(ns, name, "awk '$2 == \"/data\" {print $3}' /proc/mounts")?;
        ensure!(found.trim() == name, "{name} is mounted as {found}");
    }
    Ok(())
}

/// The kernel grows a mounted ext4 only for a root that has it; the development machine's has not.
fn has_cap_sys_resource() -> Result<bool> {
    const BIT: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("CapBnd")?;
    Ok(u64::from_str_radix(line.trim(), 16)? >> BIT & 1 == 1)
}

fn wait_size(ns: &str, pod: &str, script: &str, least: u64) -> Result<()> {
    wait::until(&format!("{pod} to grow"), GROWN, || {
        let text = kubectl::exec(ns, pod, script).map_err(|error| error.to_string())?;
        match text.trim().parse::<u64>() {
            Ok(size) if size >= least => Ok(()),
            _ => Err(text),
        }
    })
}

#[test]
fn a_volume_grows_while_a_pod_uses_it() -> Result<()> {
    engine::wait_healthy(READY)?;
    let namespace = Namespace::create("csi-grow")?;
    let ns = &namespace.0;
    let xfs = StorageClass::create("csi-grow", "csi.storage.k8s.io/fstype", "xfs")?;
    claim_of_class(ns, "xfs", &xfs.0, "320Mi")?;
    workload::pod(ns, "xfs", "xfs", "Filesystem", None)?;
    workload::start(ns, "ext4", "Filesystem", "256Mi")?;
    workload::start(ns, "raw", "Block", "256Mi")?;
    workload::wait_running(ns, "xfs")?;
    let sum = write_and_read_back(ns, "ext4", "/data/x")?;
    for claim in ["xfs", "ext4", "raw"] {
        let patch = r#"{"spec":{"resources":{"requests":{"storage":"512Mi"}}}}"#;
        kubectl::run(&["-n", ns, "patch", "pvc", claim, "--type=merge", "-p", patch])?;
    }
    let df = "df -B1 --output=size /data | tail -n1";
    wait_size(ns, "raw", "blockdev --getsize64 /dev/data", 512 << 20)?;
    wait_size(ns, "xfs", df, 400 << 20)?;
    if !has_cap_sys_resource()? {
        // The device has grown; the file system does when the next pod mounts it.
        workload::delete_pod(ns, "ext4")?;
        workload::pod(ns, "ext4", "ext4", "Filesystem", None)?;
        workload::wait_running(ns, "ext4")?;
    }
    wait_size(ns, "ext4", df, 400 << 20)?;
    ensure!(read_sum(ns, "ext4", "/data/x")? == sum, "data changed while growing");
    Ok(())
}

#[test]
fn a_pod_on_another_node_finds_what_the_first_one_wrote() -> Result<()> {
    engine::wait_healthy(READY)?;
    let namespace = Namespace::create("csi-move")?;
    let ns = &namespace.0;
    workload::claim(ns, "data", "Filesystem", "256Mi")?;
    workload::pod(ns, "first", "data", "Filesystem", Some("node1"))?;
    workload::wait_running(ns, "first")?;
    let sum = write_and_read_back(ns, "first", "/data/x")?;
    workload::delete_pod(ns, "first")?;
    workload::pod(ns, "second", "data", "Filesystem", Some("node2"))?;
    workload::wait_running(ns, "second")?;
    ensure!(engine::node_of(ns, "second")? == "node2", "the pod did not move");
    ensure!(read_sum(ns, "second", "/data/x")? == sum, "data changed while moving");
    Ok(())
}

#[test]
fn a_restart_of_the_node_plugin_does_not_disturb_io() -> Result<()> {
    engine::wait_healthy(READY)?;
    let namespace = Namespace::create("csi-restart")?;
    let ns = &namespace.0;
    workload::start(ns, "busy", "Filesystem", "512Mi")?;
    workload::start_fio(ns, "busy", "--filename=/data/file", 25)?;
    std::thread::sleep(Duration::from_secs(5));
    let killed = engine::kill_processes("curve-csi", &["node"])?;
    ensure!(killed > 0, "no node plugin was running");
    workload::finish_fio(ns, "busy", READY)?;
    // The plugin is back: volumes can be mounted, and the busy one unmounted.
    workload::start(ns, "next", "Filesystem", "256Mi")?;
    workload::delete_pod(ns, "busy")
}
