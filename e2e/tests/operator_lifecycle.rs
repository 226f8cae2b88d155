//! One cluster from its creation to its erasure: grown, brought to another image while it serves
//! and its operator dies, deleted with its data kept and made again, deleted for good.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::kubectl::{self, Namespace};
use curve_e2e::{engine, wait, workload};
use xtask::cluster::{Cluster, node};
use xtask::deploy::RELEASE_NAMESPACE;

const READY: Duration = Duration::from_secs(240);
/// Each restart waits for the cluster to be whole and to have settled.
const ROLLED: Duration = Duration::from_secs(420);
const OBJECT: &str = "curvecluster/small";
const HOST_PATH: &str = "/var/lib/curve-e2e-small";
const LOG_PATH: &str = "/var/lib/curve-e2e-small-log";
/// Another name for the operator's own image.
const OTHER_IMAGE: &str = "localhost/curve:e2e-other";

/// What a rolling update changes.
struct Version {
    /// Fields of the spec's image; the operator's own without any.
    image: &'static str,
    cpu: &'static str,
}

const FIRST: Version = Version { image: "", cpu: "20m" };
const SECOND: Version = Version { image: "tag: e2e-other", cpu: "25m" };

/// Removes what outlives a namespace, also when a step failed.
struct Leftovers<'a>(&'a str);

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        if std::env::var_os("CURVE_E2E_KEEP").is_some() {
            return;
        }
        let patch = r#"{"spec":{"deletionPolicy":"Destroy","destroyConfirmation":"small"}}"#;
        let _ = kubectl::run(&["-n", self.0, "patch", OBJECT, "--type=merge", "-p", patch]);
        let _ = kubectl::run(&["-n", self.0, "delete", OBJECT, "--timeout=120s"]);
        let _ = kubectl::run(&["delete", "storageclass", self.0]);
        let label = format!("curve.io/cluster-namespace={}", self.0);
        let _ = kubectl::run(&["delete", "pv", "-l", &label, "--wait=false"]);
        let _ = on_every_node(&["images", "rm", OTHER_IMAGE]);
    }
}

/// Runs `ctr` with these arguments on every node.
fn on_every_node(args: &[&str]) -> Result<()> {
    let cluster = Cluster::open()?;
    for index in 1..=cluster.node_count()? {
        let output = node::ctr(&cluster, index)?.args(args).output().context("run ctr")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {args:?} on node {index}: {error}");
    }
    Ok(())
}

fn apply(ns: &str, count: u32, version: &Version) -> Result<()> {
    let Version { image, cpu } = version;
    kubectl::apply(&format!(
        "apiVersion: curve.io/v1alpha1
kind: CurveCluster
metadata: {{name: small, namespace: {ns}}}
spec:
  image: {{{image}}}
  mds: {{storage: {{hostPath: {HOST_PATH}, size: 512Mi}}}}
  nodeSets:
  - name: disks
    count: {count}
    device: {{hostPath: {HOST_PATH}, size: 1Gi}}
    logDevice: {{hostPath: {LOG_PATH}, size: 512Mi}}
    resources: {{requests: {{cpu: {cpu}, memory: 64Mi}}}}
"
    ))?;
    Ok(())
}

/// Waits until the operator has carried the current spec out.
fn wait_ready(ns: &str, timeout: Duration) -> Result<()> {
    wait::until("the cluster to be ready", timeout, || {
        let fields = "{.metadata.generation} {.status.observedGeneration} {.status.phase} \
                      {.status.health} {.status.disks}";
        let seen = kubectl::field(ns, OBJECT, fields).map_err(|error| error.to_string())?;
        let words: Vec<&str> = seen.split(' ').collect();
        match words.as_slice() {
            [generation, observed, "Ready", "OK", _] if generation == observed => Ok(()),
            _ => {
                let conditions = "{.status.conditions[*].message}";
                Err(format!(
                    "{seen}: {}",
                    kubectl::field(ns, OBJECT, conditions).unwrap_or_default()
                ))
            }
        }
    })
}

fn pods(ns: &str, jsonpath: &str) -> Result<String> {
    let label = "curve.io/node-set=disks";
    kubectl::run(&["-n", ns, "get", "pods", "-l", label, "-o", &format!("jsonpath={jsonpath}")])
}

#[test]
fn a_cluster_lives_grows_changes_and_ends_as_its_spec_says() -> Result<()> {
    let namespace = Namespace::create("operator-life")?;
    let ns = namespace.0.as_str();
    let _leftovers = Leftovers(ns);

    apply(ns, 3, &FIRST)?;
    wait_ready(ns, READY)?;
    let table = kubectl::run(&["-n", ns, "get", "curveclusters"])?;
    ensure!(table.contains("3/3"), "{table}");
    let sum = store_something(ns)?;
    let id = kubectl::field(ns, OBJECT, "{.status.clusterId}")?;

    apply(ns, 4, &FIRST)?;
    kubectl::wait_field(ns, OBJECT, "{.status.disks}", "4/4", READY)?;
    wait_ready(ns, READY)?;
    let shrink = apply(ns, 3, &FIRST).err().context("a shrinking count was accepted")?;
    ensure!(shrink.to_string().contains("count cannot shrink"), "{shrink}");

    scrub_in_windows(ns)?;
    roll(ns)?;
    keep_and_return(ns, &id)?;
    find_it_again(ns, &sum)?;
    destroy(ns)
}

/// A file on a volume of this cluster; returns its sum. Its pod is gone afterwards.
fn store_something(ns: &str) -> Result<String> {
    kubectl::apply(&format!(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {ns}}}
provisioner: block.csi.curve.io
parameters: {{cluster: {ns}/small}}
"
    ))?;
    workload::claim_of(ns, ns, "kept", "Filesystem", "64Mi")?;
    workload::pod(ns, "writer", "kept", "Filesystem", None)?;
    workload::wait_running(ns, "writer")?;
    let sum = workload::write_random(ns, "writer", "/data/x", 16)?;
    workload::delete_pod(ns, "writer")?;
    Ok(sum)
}

fn find_it_again(ns: &str, sum: &str) -> Result<()> {
    workload::pod(ns, "reader", "kept", "Filesystem", None)?;
    workload::wait_running(ns, "reader")?;
    ensure!(workload::sum_of(ns, "reader", "/data/x", 16)? == sum, "the volume's data changed");
    workload::delete_pod(ns, "reader")?;
    let volume = kubectl::field(ns, "pvc/kept", "{.spec.volumeName}")?;
    kubectl::run(&["-n", ns, "delete", "pvc", "kept", "--timeout=60s"])?;
    kubectl::run(&["wait", "--for=delete", &format!("pv/{volume}"), "--timeout=60s"])?;
    Ok(())
}

/// Another image and other resources reach every pod, one after the other, and no two are ever away together, though
/// the operator that began it dies.
fn roll(ns: &str) -> Result<()> {
    let deployment = "deployment/curve-operator";
    let own = "{.spec.template.spec.containers[0].image}";
    let own = kubectl::field(RELEASE_NAMESPACE, deployment, own)?;
    on_every_node(&["images", "tag", "--force", &own, OTHER_IMAGE])?;
    apply(ns, 4, &SECOND)?;
    let mut killed = false;
    let deadline = std::time::Instant::now() + ROLLED;
    loop {
        let ready = pods(ns, "{.items[*].status.conditions[?(@.type==\"Ready\")].status}")?;
        let away = 4 - ready.split(' ').filter(|status| *status == "True").count();
        ensure!(away <= 1, "{away} chunkservers are away together: {ready}");
        let images = pods(ns, "{.items[*].spec.containers[0].image}")?;
        let cpu = pods(ns, "{.items[*].spec.containers[0].resources.requests.cpu}")?;
        let done = images.split(' ').filter(|image| *image == OTHER_IMAGE).count();
        if done == 4 && cpu == "25m 25m 25m 25m" && away == 0 {
            break;
        }
        if done > 0 && !killed {
            kill_leading_operator()?;
            killed = true;
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "after {ROLLED:?} pods run {images} with {cpu}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    wait_ready(ns, READY)?;
    let events = kubectl::run(&["-n", ns, "get", "events", "-o", "jsonpath={.items[*].reason}"])?;
    ensure!(events.contains("RollingUpdate") && events.contains("Ready"), "{events}");
    let label = "app.kubernetes.io/component=mds";
    let image = "jsonpath={.items[*].spec.containers[0].image}";
    let images = kubectl::run(&["-n", ns, "get", "pods", "-l", label, "-o", image])?;
    ensure!(images == [OTHER_IMAGE; 3].join(" "), "the MDS run {images}");
    Ok(())
}

/// Without a chance to give the lease back, and its pod with it: the other replica takes over.
fn kill_leading_operator() -> Result<()> {
    let holder =
        || kubectl::field(RELEASE_NAMESPACE, "lease/curve-operator", "{.spec.holderIdentity}");
    let leader = holder()?;
    let killed = engine::kill_in_pod("curve-operator", &leader)?;
    ensure!(killed == 1, "killed {killed} processes of {leader}, expected 1");
    let now = ["--grace-period=0", "--force", "--wait=false"];
    let delete = ["-n", RELEASE_NAMESPACE, "delete", "pod", &leader];
    kubectl::run(&[&delete[..], &now].concat())?;
    wait::until("another operator to lead", Duration::from_secs(60), || match holder() {
        Ok(now) if now != leader && !now.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// The spec says when scrubs run; one that makes no sense is refused, and says why.
fn scrub_in_windows(ns: &str) -> Result<()> {
    let set = |schedule: &str| {
        let scrub = serde_json::json!({"schedule": schedule});
        let patch = serde_json::json!({"spec": {"scrub": scrub}}).to_string();
        kubectl::run(&["-n", ns, "patch", OBJECT, "--type=merge", "-p", &patch])
    };
    set("0 1 * * *")?;
    let status = ["-n", ns, "exec", "small-mds-0", "--", "curve", "scrub", "status"];
    wait::until("the windows of scrubs", READY, || match kubectl::run(&status) {
        Ok(said) if said.contains("\"0 1 * * *\" (UTC), 5.0 h each") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let refused = set("tonight").err().context("a schedule without fields was taken")?;
    ensure!(format!("{refused:#}").contains("spec.scrub.schedule"), "{refused:#}");
    set("0 25 * * *")?;
    let progressing = "{.status.conditions[?(@.type==\"Progressing\")].reason}";
    kubectl::wait_field(ns, OBJECT, progressing, "ScrubRefused", READY)?;
    set("0 2 * * *")?;
    wait_ready(ns, READY)
}

/// Without a word about the data, deletion keeps it for the cluster that comes next.
fn keep_and_return(ns: &str, id: &str) -> Result<()> {
    kubectl::run(&["-n", ns, "delete", OBJECT, "--timeout=120s"])?;
    wait::until("the pods to stop", READY, || match pods(ns, "{.items[*].metadata.name}") {
        Ok(names) if names.is_empty() => Ok(()),
        Ok(names) => Err(names),
        Err(error) => Err(error.to_string()),
    })?;
    apply(ns, 3, &SECOND)?;
    kubectl::wait_field(ns, OBJECT, "{.status.phase}", "Failed", READY)?;
    let message =
        kubectl::field(ns, OBJECT, "{.status.conditions[?(@.type==\"Progressing\")].message}")?;
    ensure!(message.contains("raise count to what it was"), "{message}");
    apply(ns, 4, &SECOND)?;
    wait_ready(ns, READY)?;
    let again = kubectl::field(ns, OBJECT, "{.status.clusterId}")?;
    ensure!(again == id, "the cluster was {id} and is {again}");
    Ok(())
}

/// With the word, nothing is left: neither volumes nor directories.
fn destroy(ns: &str) -> Result<()> {
    let patch = r#"{"spec":{"deletionPolicy":"Destroy","destroyConfirmation":"small"}}"#;
    kubectl::run(&["-n", ns, "patch", OBJECT, "--type=merge", "-p", patch])?;
    kubectl::run(&["-n", ns, "delete", OBJECT, "--timeout=180s"])?;
    let label = format!("curve.io/cluster-namespace={ns}");
    wait::until("the volumes to go", READY, || {
        match kubectl::run(&["get", "pv", "-l", &label, "-o", "name"]) {
            Ok(names) if names.is_empty() => Ok(()),
            Ok(names) => Err(names),
            Err(error) => Err(error.to_string()),
        }
    })?;
    kubectl::apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: look, namespace: {ns}}}
spec:
  restartPolicy: Never
  nodeSelector: {{kubernetes.io/hostname: node1}}
  containers:
  - name: look
    image: localhost/curve-test:dev
    imagePullPolicy: Never
    command: [sh, -c, \"ls -A /host /log\"]
    volumeMounts: [{{name: host, mountPath: /host}}, {{name: log, mountPath: /log}}]
  volumes:
  - {{name: host, hostPath: {{path: {HOST_PATH}}}}}
  - {{name: log, hostPath: {{path: {LOG_PATH}}}}}
"
    ))?;
    kubectl::wait_field(ns, "pod/look", "{.status.phase}", "Succeeded", READY)?;
    let left = kubectl::run(&["-n", ns, "logs", "look"])?;
    ensure!(!left.contains(ns), "left on node1: {left}");
    let secrets = kubectl::run(&["-n", ns, "get", "secrets", "-o", "name"])?;
    ensure!(!secrets.contains("small-"), "{secrets}");
    Ok(())
}
