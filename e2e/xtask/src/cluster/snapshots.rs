//! Volume snapshots on the local cluster: the CRDs and the controller that a cluster has once,
//! whatever its drivers. They are no part of Kubernetes, nor of our chart, which only uses them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;
use super::coredns::apply_text;
use crate::command;
use crate::image::catalog;
use crate::paths::{Paths, write_atomically};
use crate::progress::Step;

/// Pinned in `e2e/tools/sidecars/go.mod` as what the controller and the snapshotter are built with.
const CRD_MODULE: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";
const CONTROLLER: &str = "snapshot-controller";
const MANIFEST: &str = include_str!("../../manifests/snapshot-controller.yaml");
/// Stands for the image's name in the manifest.
const PLACEHOLDER: &str = "SNAPSHOT_CONTROLLER";

/// Before the chart is installed, which looks for the CRDs. The nodes have the image by then.
pub fn install(cluster: &Cluster, step: &mut Step) -> Result<()> {
    step.say("CRDs of volume snapshots");
    let crds = crds(&cluster.paths)?;
    let mut apply = cluster.kubectl();
    apply.args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(&crds);
    command::output(&mut apply).context("apply the CRDs of volume snapshots")?;
    let mut wait = cluster.kubectl();
    wait.args(["wait", "--for=condition=Established", "--timeout=60s", "-f"]).arg(&crds);
    command::output(&mut wait).context("wait for the CRDs of volume snapshots")?;
    let image = catalog::sidecar_name(&cluster.paths, CONTROLLER)?;
    apply_text(cluster, &MANIFEST.replace(PLACEHOLDER, &image)).context("deploy the controller")
}

/// One file with all of them, in the cache under the module's version.
fn crds(paths: &Paths) -> Result<PathBuf> {
    let version = catalog::pinned_version(paths, CRD_MODULE)?;
    let file = paths.cache.join("crds").join(format!("snapshots-{version}.yaml"));
    if !file.is_file() {
        let directory = module_directory(paths, &version)?.join("config/crd");
        write_atomically(&file, join_crds(&directory)?.as_bytes())?;
    }
    Ok(file)
}

/// Where Go keeps the module's source; it is fetched if need be.
fn module_directory(paths: &Paths, version: &str) -> Result<PathBuf> {
    let go = command::find_program("go").context(
        "the Go toolchain is not on PATH: install Go 1.26 or newer, then run this again",
    )?;
    let mut download = Command::new(go);
    download
        .args(["mod", "download", "-json", &format!("{CRD_MODULE}@{version}")])
        .current_dir(paths.repo.join("e2e/tools/sidecars"))
        .env("GOFLAGS", "-mod=readonly");
    let answer: Value = serde_json::from_str(&command::output(&mut download)?)
        .context("parse what go mod download says")?;
    let directory = answer["Dir"].as_str().context("go mod download names no directory")?;
    Ok(PathBuf::from(directory))
}

fn join_crds(directory: &Path) -> Result<String> {
    let list = || format!("list {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(list)? {
        let path = entry.with_context(list)?.path();
        // Beside the CRDs there is a file for kustomize.
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains("snapshot.storage"))
        {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "{} has no CRDs of volume snapshots", directory.display());
    files.sort();
    let mut text = String::new();
    for file in files {
        let crd = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        text.push_str("---\n");
        text.push_str(crd.trim_start_matches("---\n"));
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_crds_of_a_directory_become_one_file() {
        let directory = std::env::temp_dir().join(format!("curve-crds-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("mkdir");
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("write");
        assert!(join_crds(&directory).is_err());
        write("kustomization.yaml", "kind: Kustomization\n");
        write("snapshot.storage.k8s.io_b.yaml", "---\nkind: B\n");
        write("groupsnapshot.storage.k8s.io_a.yaml", "kind: A\n");
        let joined = join_crds(&directory).expect("joined");
        fs::remove_dir_all(&directory).expect("rm");
        assert_eq!(joined, "---\nkind: A\n\n---\nkind: B\n\n");
    }

    #[test]
    fn the_manifest_has_a_place_for_the_image() {
        assert_eq!(MANIFEST.matches(PLACEHOLDER).count(), 1);
    }
}
