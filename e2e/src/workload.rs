//! Claims and pods as the tests need them.

use std::time::Duration;

use anyhow::Result;

use crate::{engine, kubectl, wait};

/// Image with fio and file-system tools, loaded into every node by `cargo xtask`.
const IMAGE: &str = "localhost/curve-test:dev";
/// Pulling nothing and formatting a small volume: half a minute under load, and some.
const POD_START: Duration = Duration::from_secs(180);

/// A claim of the example's storage class.
pub fn claim(namespace: &str, name: &str, mode: &str, size: &str) -> Result<()> {
    claim_of("curve-block", namespace, name, mode, size)
}

/// A claim of the storage class `class`.
pub fn claim_of(class: &str, namespace: &str, name: &str, mode: &str, size: &str) -> Result<()> {
    kubectl::apply(&format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  storageClassName: {class}
  resources: {{requests: {{storage: {size}}}}}
"
    ))?;
    Ok(())
}

/// A pod that sleeps with the claim at /data (Filesystem) or /dev/data (Block), on `node` if given.
pub fn pod(namespace: &str, name: &str, claim: &str, mode: &str, node: Option<&str>) -> Result<()> {
    let volume = if mode == "Block" {
        "volumeDevices: [{name: data, devicePath: /dev/data}]"
    } else {
        "volumeMounts: [{name: data, mountPath: /data}]"
    };
    let place = node.map_or_else(String::new, |node| {
        format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}\n")
    });
    kubectl::apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
{place}  containers:
  - name: work
    image: {IMAGE}
    imagePullPolicy: Never
    command: [sleep, infinity]
    {volume}
  volumes:
  - {{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}
"
    ))?;
    Ok(())
}

/// Waits until a pod runs; the error carries its last events.
pub fn wait_running(namespace: &str, name: &str) -> Result<()> {
    let object = format!("pod/{name}");
    wait::until(&format!("{namespace}/{name} to run"), POD_START, || {
        match kubectl::field(namespace, &object, "{.status.phase}") {
            Ok(phase) if phase == "Running" => Ok(()),
            Ok(phase) => {
                let field = format!("involvedObject.name={name}");
                let events = ["-n", namespace, "get", "events", "--field-selector", &field];
                Err(format!("{phase}\n{}", kubectl::run(&events).unwrap_or_default()))
            }
            Err(error) => Err(error.to_string()),
        }
    })
}

/// Claim and pod at once; returns when the pod runs.
pub fn start(namespace: &str, name: &str, mode: &str, size: &str) -> Result<()> {
    claim(namespace, name, mode, size)?;
    pod(namespace, name, name, mode, None)?;
    wait_running(namespace, name)
}

/// Deletes a pod and waits until it is gone.
pub fn delete_pod(namespace: &str, name: &str) -> Result<()> {
    kubectl::run(&["-n", namespace, "delete", "pod", name, "--timeout=120s"])?;
    Ok(())
}

/// Sum of the first `mib` MiB of a file or device of the pod, read from the volume and not from the
/// node's page cache.
pub fn sum_of(namespace: &str, pod: &str, path: &str, mib: u32) -> Result<String> {
    let read = format!("dd if={path} bs=1M count={mib} iflag=direct 2>/dev/null | md5sum");
    kubectl::exec(namespace, pod, &read)
}

/// Writes `mib` random MiB to a file of the pod, synced, and returns their sum as `sum_of` does.
pub fn write_random(namespace: &str, pod: &str, path: &str, mib: u32) -> Result<String> {
    let write = format!("dd if=/dev/urandom of={path} bs=1M count={mib} conv=fsync 2>/dev/null");
    kubectl::exec(namespace, pod, &write)?;
    sum_of(namespace, pod, path, mib)
}

/// Starts fio with verification in the pod's background; `finish_fio` gets its verdict.
pub fn start_fio(namespace: &str, pod: &str, target: &str, seconds: u32) -> Result<()> {
    let job = format!(
        "nohup fio --name=verify {target} --size=128M --rw=randwrite --bs=4k --iodepth=16 \
         --ioengine=libaio --direct=1 --verify=crc32c --verify_backlog=512 --verify_fatal=1 \
         --time_based --runtime={seconds} --output-format=normal >/tmp/fio.log 2>&1; \
         echo $? >/tmp/fio.status"
    );
    kubectl::exec(namespace, pod, &format!("rm -f /tmp/fio.status; ({job}) >/dev/null 2>&1 &"))?;
    Ok(())
}

/// Whether fio has not ended yet.
pub fn fio_runs(namespace: &str, pod: &str) -> Result<bool> {
    let look = "test -e /tmp/fio.status && echo ended || echo runs";
    Ok(kubectl::exec(namespace, pod, look)?.trim() == "runs")
}

/// Waits for fio's end and fails unless it was clean.
pub fn finish_fio(namespace: &str, pod: &str, timeout: Duration) -> Result<()> {
    let status = wait::until(&format!("fio in {pod}"), timeout, || {
        kubectl::exec(namespace, pod, "cat /tmp/fio.status 2>/dev/null || tail -c 300 /tmp/fio.log")
            .map_err(|error| error.to_string())
            .and_then(|text| text.trim().parse::<i32>().map_err(|_| text))
    })?;
    if status != 0 {
        let log = kubectl::exec(namespace, pod, "tail -n 40 /tmp/fio.log")?;
        let health = engine::status().map(|status| status.to_string());
        anyhow::bail!("fio in {pod} ended with {status}:\n{log}\ncluster: {health:?}");
    }
    Ok(())
}
