//! Loads image archives into the nodes' containerds, skipping what a node has already.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Cluster, node};
use crate::command;
use crate::image::archive::Image;
use crate::image::catalog::{self, CURVE_REPOSITORY};
use crate::paths::write_atomically;
use crate::progress::Step;

/// How many builds of the product image a node keeps: the running one and the one before,
/// which pods of a rolling update may still need to restart from.
const CURVE_IMAGES_KEPT: usize = 2;

/// Keeps kubelet from deleting an image when the disk runs full: it could not pull it again.
const PINNED: &str = "io.cri-containerd.pinned=pinned";

/// Name to digest, in the node's own data: it is gone together with the images.
type Loaded = BTreeMap<String, String>;

fn record_path(cluster: &Cluster, index: u8) -> PathBuf {
    node::dir(cluster, index).join("images.json")
}

fn loaded(cluster: &Cluster, index: u8) -> Loaded {
    let bytes = fs::read(record_path(cluster, index)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// What every node runs before the first pod can start, and what was last loaded on the others:
/// a node that joins later, or was off then, has no registry to pull from.
pub fn load_at_start(cluster: &Cluster, index: u8) -> Result<()> {
    let mut images = catalog::cluster_images(&cluster.paths, &cluster.tools, &mut Step::quiet())?;
    let last: Vec<Image> = match fs::read(last_loaded_path(cluster)) {
        Ok(bytes) => serde_json::from_slice(&bytes).context("parse the list of loaded images")?,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("read the list of loaded images"),
    };
    // The cache may have been cleaned since.
    images.extend(last.into_iter().filter(|image| image.archive.exists()));
    load_on(cluster, index, &images)
}

fn last_loaded_path(cluster: &Cluster) -> PathBuf {
    cluster.paths.state.join("images.json")
}

/// Loads `images` on every running node at once.
pub fn load(cluster: &Cluster, images: &[Image], step: &mut Step) -> Result<()> {
    let list = serde_json::to_vec_pretty(images).context("encode the list of images")?;
    write_atomically(&last_loaded_path(cluster), &list)?;
    let nodes: Vec<u8> =
        (1..=cluster.node_count()?).filter(|index| node::is_running(cluster, *index)).collect();
    step.say(format!("loading {} images on {} nodes", images.len(), nodes.len()));
    std::thread::scope(|scope| {
        let tasks: Vec<_> = nodes
            .iter()
            .map(|index| scope.spawn(move || load_on(cluster, *index, images)))
            .collect();
        for task in tasks {
            match task.join() {
                Ok(result) => result?,
                Err(_) => bail!("an image loader panicked"),
            }
        }
        Ok(())
    })
}

fn load_on(cluster: &Cluster, index: u8, images: &[Image]) -> Result<()> {
    let mut record = loaded(cluster, index);
    for image in images {
        if record.get(&image.name) == Some(&image.digest) {
            continue;
        }
        let file = File::open(&image.archive)
            .with_context(|| format!("open {}", image.archive.display()))?;
        let mut ctr = node::ctr(cluster, index)?;
        ctr.args(["images", "import", "--label", PINNED, "-"]).stdin(file);
        let output = ctr.output().context("start ctr")?;
        if !output.status.success() {
            bail!(
                "loading {} on {} failed:\n{}",
                image.name,
                node::name(index),
                command::tail(&String::from_utf8_lossy(&output.stderr))
            );
        }
        record.insert(image.name.clone(), image.digest.clone());
        save(cluster, index, &record)?;
        if image.name.starts_with(&format!("{CURVE_REPOSITORY}:")) {
            drop_older_builds(cluster, index, &image.name)?;
        }
    }
    Ok(())
}

fn save(cluster: &Cluster, index: u8, record: &Loaded) -> Result<()> {
    let text = serde_json::to_vec_pretty(record).context("encode the image record")?;
    write_atomically(&record_path(cluster, index), &text)
}

/// Builds in the order they were loaded, oldest first, in one line each.
fn drop_older_builds(cluster: &Cluster, index: u8, newest: &str) -> Result<()> {
    let path = node::dir(cluster, index).join("curve-builds");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut builds: Vec<&str> = text.lines().filter(|line| *line != newest).collect();
    builds.push(newest);
    let surplus = builds.len().saturating_sub(CURVE_IMAGES_KEPT);
    let mut record = loaded(cluster, index);
    for old in &builds[..surplus] {
        let _ = command::output(node::ctr(cluster, index)?.args(["images", "rm", old]));
        record.remove(*old);
    }
    save(cluster, index, &record)?;
    write_atomically(&path, (builds[surplus..].join("\n") + "\n").as_bytes())
}
