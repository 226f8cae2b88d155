//! Puts Curve on a cluster: build, image, chart, and the two examples the README shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, images};
use crate::command::{self, last_line, wait_until};
use crate::image::archive::Image;
use crate::image::catalog;
use crate::paths::Paths;
use crate::progress::Step;
use crate::tools::Tools;

/// Package and program.
pub const SIMULATOR: &str = "curve-sim";
pub const RELEASE_NAMESPACE: &str = "curve-system";
/// Three MDS and three chunkservers from nothing, on two busy cores.
const READY_LIMIT: Duration = Duration::from_secs(600);
/// What `examples/block-pvc.yaml` runs on the local cluster.
pub const EXAMPLE_IMAGE: &str = "localhost/curve-test:dev";
const EXAMPLE_POD: &str = "pod/block-demo";
/// Stands where a registry's host does in the names of images that are loaded by hand.
const LOCAL_REGISTRY: &str = "localhost";
const POD_LIMIT: Duration = Duration::from_secs(300);

/// A cluster's API, ours or the user's.
#[derive(Debug, Clone)]
pub struct Api {
    pub kubectl: PathBuf,
    pub helm: PathBuf,
    pub kubeconfig: PathBuf,
}

impl Api {
    pub fn of(cluster: &Cluster, tools: &Tools) -> Api {
        Api {
            kubectl: tools.kubectl(),
            helm: tools.helm(),
            kubeconfig: cluster.paths.admin_kubeconfig(),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        command::output(self.command(&self.kubectl).args(args))
    }

    fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get"], args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("parse kubectl's JSON")
    }
}

/// Builds the product's binaries, always all: another selection of packages has other features of
/// the dependencies that they share, and would compile those again. For development the simulator
/// is built with them, which brings these features to what [`test_command`] has: one build serves
/// both.
pub fn build_command(paths: &Paths, release: bool) -> Command {
    let mut cargo = cargo(paths);
    cargo.args(["build", "--package", "curve", "--package", "curve-operator"]);
    cargo.args(["--package", "curve-csi", "--bins"]);
    if !release {
        cargo.args(["--package", SIMULATOR]);
    }
    cargo
}

/// Builds the product's binaries; says which directory they are in.
pub fn build(paths: &Paths, release: bool, step: &mut Step) -> Result<PathBuf> {
    run_build(paths, build_command(paths, release), release, step)
}

/// `cargo test` of the whole workspace, so that dependencies keep to one set of features, but for
/// the fuzz targets: they have a build of their own, and their features would enter this one.
pub fn test_command(paths: &Paths) -> Command {
    let mut cargo = cargo(paths);
    cargo.args(["test", "--no-fail-fast", "--workspace", "--exclude", "curve-fuzz"]);
    cargo
}

/// Builds `curve` alone, optimized: a benchmark of the engine needs no operator and no CSI driver.
pub fn build_engine(paths: &Paths, step: &mut Step) -> Result<PathBuf> {
    let mut cargo = cargo(paths);
    cargo.args(["build", "--package", "curve", "--bins"]);
    run_build(paths, cargo, true, step)
}

fn run_build(paths: &Paths, mut cargo: Command, release: bool, step: &mut Step) -> Result<PathBuf> {
    if release {
        cargo.arg("--release");
    }
    let log = paths.cache.join("log/cargo-build.log");
    command::logged(&mut cargo, &log, || {
        step.say(last_line(&log));
    })?;
    step.say("cargo build is up to date");
    Ok(target_dir(paths)?.join(if release { "release" } else { "debug" }))
}

/// The cargo that started us, in the checkout.
pub fn cargo(paths: &Paths) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&paths.repo);
    // What that cargo told us of our own package: build scripts (ring's, for one) depend on these,
    // so that a build from here and one from a shell would each undo the other.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

pub fn target_dir(paths: &Paths) -> Result<PathBuf> {
    let text = command::output(cargo(paths).args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version=1",
    ]))?;
    let metadata: Value = serde_json::from_str(&text).context("parse cargo metadata")?;
    let dir = metadata["target_directory"].as_str().context("cargo metadata has no target")?;
    Ok(PathBuf::from(dir))
}

/// Packs the image and puts it, with the sidecars, on every node.
pub fn load_images(
    cluster: &Cluster,
    tools: &Tools,
    binaries: &Path,
    step: &mut Step,
) -> Result<Image> {
    let curve = catalog::curve_image(&cluster.paths, binaries, step)?;
    let mut all = catalog::sidecar_images(&cluster.paths, tools)?;
    all.push(curve.clone());
    images::load(cluster, &all, step)?;
    step.say(curve.name.clone());
    Ok(curve)
}

/// CRDs and chart. `image` is what the release runs, `overrides` what this cluster changes in it.
pub fn install_chart(
    paths: &Paths,
    api: &Api,
    image: &str,
    overrides: &[String],
    step: &mut Step,
) -> Result<()> {
    let chart = paths.repo.join("charts/curve");
    // Helm installs a chart's CRDs once and never updates them.
    apply(api, &paths.repo.join("charts/curve/crds"))?;
    let (repository, tag) = image.rsplit_once(':').context("the image has no tag")?;
    let mut helm = api.command(&api.helm);
    helm.args(["upgrade", "--install", "curve"])
        .arg(&chart)
        .args(["--namespace", RELEASE_NAMESPACE, "--create-namespace"])
        .args(["--wait", "--timeout", "10m"])
        .args(["--set-string", &format!("image.repository={repository}")])
        .args(["--set-string", &format!("image.tag={tag}")])
        // What is being developed must run everywhere at once.
        .args(["--set-string", "agent.updateStrategy=RollingUpdate"])
        .args(overrides);
    let log = paths.cache.join("log/helm.log");
    step.say("helm upgrade --install");
    let result = command::logged(&mut helm, &log, || {
        step.say(pod_summary(api, RELEASE_NAMESPACE));
    });
    if result.is_err() {
        return result.with_context(|| unready_pods(api, RELEASE_NAMESPACE));
    }
    step.say(pod_summary(api, RELEASE_NAMESPACE));
    Ok(())
}

/// Applies `examples/cluster.yaml` and waits until every cluster is Ready. One that is there
/// already stays as its user changed it since: the example would ask to shrink what has grown.
pub fn create_cluster(paths: &Paths, api: &Api, step: &mut Step) -> Result<()> {
    let present = api.get(&["curveclusters", "--all-namespaces"])?;
    if present["items"].as_array().is_none_or(Vec::is_empty) {
        apply(api, &paths.repo.join("examples/cluster.yaml"))?;
    }
    let result = wait_until("waiting for the CurveCluster", READY_LIMIT, || {
        let list = api.get(&["curveclusters", "--all-namespaces"])?;
        let clusters = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(!clusters.is_empty(), "examples/cluster.yaml made no CurveCluster");
        let waiting: Vec<String> =
            clusters.iter().filter(|cluster| !is_ready(cluster)).map(describe_cluster).collect();
        match waiting.first() {
            None => Ok(Ok(())),
            Some(text) => {
                step.say(text.clone());
                Ok(Err(text.clone()))
            }
        }
    });
    result.with_context(|| unready_pods(api, "curve"))?;
    step.say("Ready");
    Ok(())
}

fn is_ready(cluster: &Value) -> bool {
    cluster["status"]["phase"] == "Ready"
        && cluster["status"]["observedGeneration"] == cluster["metadata"]["generation"]
}

fn describe_cluster(cluster: &Value) -> String {
    let name = cluster["metadata"]["name"].as_str().unwrap_or("?");
    let phase = cluster["status"]["phase"].as_str().unwrap_or("not seen by the operator yet");
    let conditions = cluster["status"]["conditions"].as_array().map(Vec::as_slice);
    let message = conditions
        .unwrap_or_default()
        .iter()
        .find(|condition| condition["type"] == "Progressing" || condition["type"] == "Available")
        .and_then(|condition| condition["message"].as_str())
        .unwrap_or_default();
    format!("{name}: {phase} {message}").trim_end().to_string()
}

/// Applies `examples/block-pvc.yaml` and waits until its pod says that it read what it wrote. A
/// pod of a former run goes first: what it once said proves nothing about now.
pub fn write_from_a_pod(paths: &Paths, api: &Api, image: &str, step: &mut Step) -> Result<String> {
    let example = fs::read_to_string(paths.repo.join("examples/block-pvc.yaml"))
        .context("read examples/block-pvc.yaml")?;
    let manifest = example.replace(EXAMPLE_IMAGE, image);
    let file = paths.cache.join("block-pvc.yaml");
    fs::write(&file, manifest).with_context(|| format!("write {}", file.display()))?;
    api.kubectl(&["delete", "--ignore-not-found", "--timeout=2m", EXAMPLE_POD])?;
    apply(api, &file)?;
    let result = wait_until("waiting for the example's pod", POD_LIMIT, || {
        let value = api.get(&[EXAMPLE_POD])?;
        let phase = value["status"]["phase"].as_str().unwrap_or("Unknown").to_string();
        step.say(format!("{EXAMPLE_POD} is {phase}"));
        let said = logs(api, EXAMPLE_POD);
        if phase == "Failed" {
            bail!("{EXAMPLE_POD} failed:\n{said}");
        }
        Ok(if said.trim_end().ends_with("OK") { Ok(()) } else { Err(format!("{phase}\n{said}")) })
    });
    result.with_context(|| pod_events(api, EXAMPLE_POD))?;
    step.say("written and read back");
    Ok(logs(api, EXAMPLE_POD))
}

fn logs(api: &Api, pod: &str) -> String {
    api.kubectl(&["logs", "--tail=10", pod]).unwrap_or_default()
}

fn pod_events(api: &Api, pod: &str) -> String {
    let text = api.kubectl(&["describe", pod]).unwrap_or_default();
    let events = text.split_once("Events:").map_or(text.as_str(), |(_, events)| events);
    format!("events of {pod}:\n{}", command::tail(events))
}

fn apply(api: &Api, file: &Path) -> Result<()> {
    let path = file.to_str().context("the path of a manifest is not UTF-8")?;
    api.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", path]).map(drop)
}

fn pods(api: &Api, namespace: &str) -> Vec<(String, bool, String)> {
    let list = api.get(&["--namespace", namespace, "pods"]).unwrap_or_default();
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|pod| {
            let containers = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice);
            let containers = containers.unwrap_or_default();
            let ready = !containers.is_empty() && containers.iter().all(|c| c["ready"] == true);
            let reason = containers
                .iter()
                .find_map(|container| {
                    let waiting = &container["state"]["waiting"];
                    let message = waiting["message"].as_str().unwrap_or_default();
                    Some(format!("{} {message}", waiting["reason"].as_str()?))
                })
                .unwrap_or_else(|| pod["status"]["phase"].as_str().unwrap_or("?").to_string());
            (pod["metadata"]["name"].as_str().unwrap_or("?").to_string(), ready, reason)
        })
        .collect()
}

fn pod_summary(api: &Api, namespace: &str) -> String {
    let pods = pods(api, namespace);
    let ready = pods.iter().filter(|(_, ready, _)| *ready).count();
    format!("{ready} of {} pods Ready in {namespace}", pods.len())
}

fn unready_pods(api: &Api, namespace: &str) -> String {
    let mut text = format!("pods of {namespace} that are not Ready:\n");
    for (name, ready, reason) in pods(api, namespace) {
        if !ready {
            let log = api
                .kubectl(&["-n", namespace, "logs", "--tail=5", "--all-containers", &name])
                .unwrap_or_default();
            text.push_str(&format!("  {name}: {reason}\n{}", command::tail(&log)));
        }
    }
    text
}

/// What the local cluster changes in the chart: the sidecars are those we built and loaded.
pub fn local_overrides() -> Vec<String> {
    vec!["--set-string".into(), format!("sidecars.registry={LOCAL_REGISTRY}")]
}

/// The same if that cluster's nodes were given the sidecars by hand, as the local cluster's are.
pub fn overrides_of(api: &Api) -> Result<Vec<String>> {
    let nodes = api.get(&["nodes"])?;
    let nodes = nodes["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let images = nodes.iter().flat_map(|node| node["status"]["images"].as_array()).flatten();
    let mut names = images.flat_map(|image| image["names"].as_array()).flatten();
    let sidecar = format!("{LOCAL_REGISTRY}/csi-provisioner:");
    let there = names.any(|name| name.as_str().is_some_and(|name| name.starts_with(&sidecar)));
    Ok(if there { local_overrides() } else { Vec::new() })
}
