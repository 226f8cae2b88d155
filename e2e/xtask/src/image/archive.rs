//! Writes one image archive: manifest.json, the configuration, and the layers, by digest.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::tools::hex;

/// Digits of the digest that go into a tag.
const TAG_HEX_DIGITS: usize = 12;

/// A layer that lies in a file, with the digest of its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layer {
    pub path: PathBuf,
    digest: String,
    size: u64,
}

impl Layer {
    pub fn from_file(path: &Path) -> Result<Layer> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut chunk = vec![0; 1 << 20];
        loop {
            let count =
                file.read(&mut chunk).with_context(|| format!("read {}", path.display()))?;
            if count == 0 {
                break;
            }
            size += count as u64;
            hash.update(&chunk[..count]);
        }
        Ok(Layer { path: path.to_path_buf(), digest: hex(&hash.finalize()), size })
    }

    /// Makes a layer at `path` of these files: (path in the image, source on this machine).
    /// Owner, times and order are fixed, so the same bytes give the same digest.
    pub fn of_files(path: &Path, files: &[(String, PathBuf)]) -> Result<Layer> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut tar = tar::Builder::new(BufWriter::new(file));
        for (name, source) in files {
            let mut input =
                File::open(source).with_context(|| format!("open {}", source.display()))?;
            let size = input.metadata().context("read the file's size")?.len();
            let mut header = plain_header(size);
            header.set_mode(0o755);
            tar.append_data(&mut header, name.trim_start_matches('/'), &mut input)
                .with_context(|| format!("add {name}"))?;
        }
        tar.into_inner().context("finish the layer")?.flush().context("write the layer")?;
        Layer::from_file(path)
    }
}

fn plain_header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

/// An image archive on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Full name with tag.
    pub name: String,
    pub archive: PathBuf,
    /// Digest of the configuration, which names every layer: the image's identity.
    pub digest: String,
}

/// What the image runs and how it is called.
#[derive(Debug)]
pub struct ImageSpec<'a> {
    pub repository: &'a str,
    /// None: the tag is `dev-` and the digest, so that a new build is a new name.
    pub tag: Option<&'a str>,
    pub entrypoint: &'a [&'a str],
    pub layers: &'a [Layer],
}

impl ImageSpec<'_> {
    fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<String> =
            self.layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
        let history: Vec<_> =
            self.layers.iter().map(|_| json!({"created": "1970-01-01T00:00:00Z"})).collect();
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        json!({
            "architecture": oci_architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": [path], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        })
        .to_string()
        .into_bytes()
    }

    /// Writes the archive below `dir`; one with the same digest is left as it is.
    pub fn write(&self, dir: &Path) -> Result<Image> {
        let config = self.config();
        let digest = hex(&Sha256::digest(&config));
        let tag = match self.tag {
            Some(tag) => tag.to_string(),
            None => format!("dev-{}", &digest[..TAG_HEX_DIGITS]),
        };
        let name = format!("{}:{tag}", self.repository);
        let file = format!("{}-{}.tar", self.repository.replace('/', "_"), &digest[..16]);
        let archive = dir.join(file);
        let image = Image { name: name.clone(), archive: archive.clone(), digest };
        if archive.is_file() {
            return Ok(image);
        }
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let temporary = archive.with_extension(format!("tmp{}", std::process::id()));
        self.write_archive(&temporary, &name, &config, &image.digest)
            .with_context(|| format!("write image {name}"))?;
        fs::rename(&temporary, &archive)
            .with_context(|| format!("move to {}", archive.display()))?;
        Ok(image)
    }

    fn write_archive(&self, path: &Path, name: &str, config: &[u8], digest: &str) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut tar = tar::Builder::new(BufWriter::new(file));
        let layers: Vec<String> =
            self.layers.iter().map(|layer| format!("{}.tar", layer.digest)).collect();
        let manifest = json!([{
            "Config": format!("{digest}.json"), "RepoTags": [name], "Layers": &layers,
        }])
        .to_string();
        let mut add = |name: &str, size: u64, data: &mut dyn Read| {
            tar.append_data(&mut plain_header(size), name, data)
                .with_context(|| format!("add {name}"))
        };
        add(&format!("{digest}.json"), config.len() as u64, &mut &config[..])?;
        for (layer, file_name) in self.layers.iter().zip(&layers) {
            let mut input = File::open(&layer.path)
                .with_context(|| format!("open {}", layer.path.display()))?;
            add(file_name, layer.size, &mut input)?;
        }
        add("manifest.json", manifest.len() as u64, &mut manifest.as_bytes())?;
        tar.into_inner().context("finish the archive")?.flush().context("write the archive")
    }
}

/// The running machine's architecture as image indexes spell it.
fn oci_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_image_and_a_changed_one_another_tag() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let source = dir.path().join("program");
        let build = |content: &str| {
            fs::write(&source, content).expect("write");
            let files = [("/usr/bin/program".to_string(), source.clone())];
            let layer = Layer::of_files(&dir.path().join("layer.tar"), &files).expect("layer");
            let spec = ImageSpec {
                repository: "localhost/x",
                tag: None,
                entrypoint: &["/usr/bin/program"],
                layers: &[layer],
            };
            spec.write(dir.path()).expect("image")
        };
        let (first, again, other) = (build("a"), build("a"), build("b"));
        assert_eq!(first.name, again.name);
        assert_ne!(first.name, other.name);
    }

    #[test]
    fn the_archive_names_its_layers_by_digest() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let source = dir.path().join("program");
        fs::write(&source, "x").expect("write");
        let files = [("/program".to_string(), source)];
        let layer = Layer::of_files(&dir.path().join("layer.tar"), &files).expect("layer");
        let digest = layer.digest.clone();
        let spec = ImageSpec {
            repository: "localhost/x",
            tag: Some("1"),
            entrypoint: &["/program"],
            layers: &[layer],
        };
        let image = spec.write(dir.path()).expect("image");
        let mut names = Vec::new();
        let mut archive = tar::Archive::new(File::open(image.archive).expect("open"));
        for entry in archive.entries().expect("entries") {
            names.push(entry.expect("entry").path().expect("path").display().to_string());
        }
        assert_eq!(
            names,
            [format!("{}.json", image.digest), format!("{digest}.tar"), "manifest.json".into()]
        );
    }
}
