//! The images of the local cluster: what each holds and what it is called.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::archive::{Image, ImageSpec, Layer};
use super::debian_root;
use crate::cluster::coredns;
use crate::paths::{Paths, write_atomically};
use crate::progress::Step;
use crate::tools::{Tools, hex};

/// Named in containerd's configuration as every pod's sandbox.
pub const PAUSE: &str = "localhost/pause:1";
/// The pods of end-to-end tests: fio, mkfs, socat and a shell.
const TEST: &str = "localhost/curve-test:dev";
pub const CURVE_REPOSITORY: &str = "localhost/curve";

const CURVE_PACKAGES: &[&str] =
    &["ca-certificates", "e2fsprogs", "mount", "util-linux", "xfsprogs"];
const TEST_PACKAGES: &[&str] = &[
    "ca-certificates",
    "e2fsprogs",
    "fio",
    "iproute2",
    "mount",
    "openssl",
    "procps",
    "socat",
    "util-linux",
    "xfsprogs",
];

/// The product's programs; the image's entry point is always given by the pod.
const CURVE_BINARIES: &[&str] = &["curve", "curve-operator", "curve-csi"];

/// The upstream programs that the chart runs beside ours, under the versions that
/// `e2e/tools/sidecars/go.mod` pins.
const SIDECARS: &[(&str, &str)] = &[
    ("csi-provisioner", "github.com/kubernetes-csi/external-provisioner/v6"),
    ("csi-attacher", "github.com/kubernetes-csi/external-attacher/v4"),
    ("csi-resizer", "github.com/kubernetes-csi/external-resizer/v2"),
    ("csi-snapshotter", "github.com/kubernetes-csi/external-snapshotter/v8"),
    ("snapshot-controller", "github.com/kubernetes-csi/external-snapshotter/v8"),
];

fn image_dir(paths: &Paths) -> PathBuf {
    paths.cache.join("images")
}

/// What Kubernetes itself needs on every node, and the image that test pods run.
pub fn cluster_images(paths: &Paths, tools: &Tools, step: &mut Step) -> Result<Vec<Image>> {
    let test_root = debian_root::layer(paths, "test", TEST_PACKAGES, step)?;
    let (repository, tag) = split(TEST)?;
    let test = ImageSpec { repository, tag: Some(tag), entrypoint: &[], layers: &[test_root] };
    step.say("packing images");
    Ok(vec![
        program_image(paths, PAUSE, &tools.dir("pause").join("pause"))?,
        program_image(paths, coredns::IMAGE, &tools.dir("coredns").join("coredns"))?,
        test.write(&image_dir(paths))?,
    ])
}

fn split(name: &str) -> Result<(&str, &str)> {
    name.split_once(':').with_context(|| format!("image name {name} has no tag"))
}

/// The CSI sidecars as `localhost/NAME:VERSION`.
pub fn sidecar_images(paths: &Paths, tools: &Tools) -> Result<Vec<Image>> {
    SIDECARS
        .iter()
        .map(|(binary, _)| {
            let program = tools.dir("sidecars").join(binary);
            program_image(paths, &sidecar_name(paths, binary)?, &program)
        })
        .collect()
}

/// What the image of a sidecar is called.
pub fn sidecar_name(paths: &Paths, binary: &str) -> Result<String> {
    let known = SIDECARS.iter().find(|(name, _)| *name == binary);
    let (_, module) = known.with_context(|| format!("{binary} is no sidecar"))?;
    Ok(format!("localhost/{binary}:{}", pinned_version(paths, module)?))
}

/// The version of a module in `e2e/tools/sidecars/go.mod`.
pub fn pinned_version(paths: &Paths, module: &str) -> Result<String> {
    let go_mod = paths.repo.join("e2e/tools/sidecars/go.mod");
    let go_mod =
        std::fs::read_to_string(&go_mod).with_context(|| format!("read {}", go_mod.display()))?;
    let version = module_version(&go_mod, module);
    let version = version.with_context(|| format!("find {module} in e2e/tools/sidecars/go.mod"))?;
    Ok(version.to_owned())
}

fn module_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim_start_matches("require").split_whitespace();
        (words.next()? == module).then(|| words.next()).flatten()
    })
}

/// An image of one static program from the tool cache. That cache is keyed by content, so the
/// program's path decides the image and a second call reads nothing.
fn program_image(paths: &Paths, name: &str, program: &Path) -> Result<Image> {
    let dir = image_dir(paths);
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let (repository, tag) = split(name)?;
    let file = program.file_name().and_then(|file| file.to_str());
    let entrypoint = format!("/{}", file.context("program without a name")?);
    let key = hex(&Sha256::digest(format!("{name} {entrypoint} {}", program.display())));
    let record = dir.join(format!("{}.json", &key[..16]));
    if let Ok(bytes) = std::fs::read(&record) {
        let image: Image = serde_json::from_slice(&bytes).context("parse the image's record")?;
        if image.archive.is_file() {
            return Ok(image);
        }
    }
    let layer_path = dir.join(format!("{}.layer.tar", repository.replace('/', "_")));
    let layer = Layer::of_files(&layer_path, &[(entrypoint.clone(), program.to_path_buf())])?;
    let spec =
        ImageSpec { repository, tag: Some(tag), entrypoint: &[&entrypoint], layers: &[layer] };
    let image = spec.write(&dir)?;
    std::fs::remove_file(&layer_path).context("remove the layer")?;
    let text = serde_json::to_vec(&image).context("encode the image's record")?;
    write_atomically(&record, &text)?;
    Ok(image)
}

/// The product image from the binaries in `target/PROFILE`.
pub fn curve_image(paths: &Paths, binaries: &Path, step: &mut Step) -> Result<Image> {
    let root = debian_root::layer(paths, "curve", CURVE_PACKAGES, step)?;
    step.say("packing the binaries");
    let files: Vec<(String, PathBuf)> = CURVE_BINARIES
        .iter()
        .map(|name| (format!("/usr/bin/{name}"), binaries.join(name)))
        .collect();
    for (_, source) in &files {
        ensure!(source.is_file(), "{} has not been built", source.display());
    }
    let dir = image_dir(paths);
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let layer = Layer::of_files(&dir.join("curve.layer.tar"), &files)?;
    let spec = ImageSpec {
        repository: CURVE_REPOSITORY,
        tag: None,
        entrypoint: &[],
        layers: &[root, layer],
    };
    let image = spec.write(&dir)?;
    drop_older_archives(&dir, &image);
    Ok(image)
}

/// Every build has its own archive; only the newest is worth its disk space.
fn drop_older_archives(dir: &Path, keep: &Image) {
    let prefix = format!("{}-", CURVE_REPOSITORY.replace('/', "_"));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with(&prefix);
        let digest = name.to_string_lossy().len() == prefix.len() + "0123456789abcdef.tar".len();
        if ours && digest && entry.path() != keep.archive {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecar_versions_come_from_go_mod() {
        let go_mod = "require (\n\tgithub.com/x/y/v2 v2.3.4 // indirect\n)\nrequire a/b v1.0.0\n";
        assert_eq!(module_version(go_mod, "github.com/x/y/v2"), Some("v2.3.4"));
        assert_eq!(module_version(go_mod, "a/b"), Some("v1.0.0"));
        assert_eq!(module_version(go_mod, "github.com/x/y"), None);
    }

    #[test]
    fn every_sidecar_is_pinned() {
        let go_mod = include_str!("../../../tools/sidecars/go.mod");
        for (binary, module) in SIDECARS {
            assert!(module_version(go_mod, module).is_some(), "{binary}");
        }
    }
}
