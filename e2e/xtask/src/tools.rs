//! The programs of the local cluster, built from the pinned Go modules in `e2e/tools` and cached.
//!
//! A cache entry is keyed by everything that decides its content and appears by one rename,
//! so a killed build leaves nothing half made and checkouts can share the cache.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::command;
use crate::paths::Paths;
use crate::progress::{Step, human};

/// Half of the digest: enough to never collide here, short enough for a path.
const KEY_HEX_DIGITS: usize = 16;

/// One Go module of `e2e/tools`; its binaries end up in one directory.
#[derive(Debug)]
pub struct Module {
    pub name: &'static str,
    cgo: bool,
    tags: &'static str,
    ldflags: &'static str,
    /// What to build: `tool` is every tool line of go.mod, `.` our own main package.
    target: &'static str,
    binaries: &'static [&'static str],
}

const KUBERNETES_VERSION_FLAGS: &str = "-X k8s.io/component-base/version.gitVersion=v1.36.3 \
     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";

/// In the order of the time they take, longest first: a failure in a long one shows early.
pub const MODULES: &[Module] = &[
    Module {
        name: "kubernetes",
        cgo: false,
        tags: "",
        ldflags: KUBERNETES_VERSION_FLAGS,
        target: "tool",
        binaries: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        ],
    },
    Module {
        name: "sidecars",
        cgo: false,
        tags: "",
        ldflags: "",
        target: "tool",
        binaries: &[
            "csi-provisioner",
            "csi-attacher",
            "csi-resizer",
            "csi-snapshotter",
            "snapshot-controller",
            "helm",
        ],
    },
    // Apart from the sidecars, which want a newer one: 5.4 is the suite of CSI 1.12, the
    // driver's contract.
    Module {
        name: "csi-sanity",
        cgo: false,
        tags: "",
        ldflags: "",
        target: "tool",
        binaries: &["csi-sanity"],
    },
    Module {
        name: "coredns",
        cgo: false,
        tags: "",
        ldflags: "",
        target: "tool",
        binaries: &["coredns"],
    },
    Module {
        name: "containerd",
        cgo: false,
        tags: "no_btrfs,no_devmapper,no_zfs",
        ldflags: "",
        target: "tool",
        binaries: &["containerd", "containerd-shim-runc-v2", "ctr"],
    },
    // The main package is the module's root, so Go names the binary `server`.
    Module {
        name: "etcd",
        cgo: false,
        tags: "",
        ldflags: "",
        target: "tool",
        binaries: &["server"],
    },
    Module {
        name: "runc-cni",
        cgo: true,
        // kubelet asks for the default seccomp profile for every sandbox.
        tags: "seccomp",
        ldflags: "",
        target: "tool",
        binaries: &["runc", "bridge", "loopback", "host-local", "portmap"],
    },
    Module { name: "pause", cgo: false, tags: "", ldflags: "", target: ".", binaries: &["pause"] },
    Module {
        name: "csi-spec",
        cgo: false,
        tags: "",
        ldflags: "",
        target: ".",
        binaries: &["csi-spec"],
    },
];

/// What runs the cluster itself; the rest is for what is deployed on it and for tests.
pub const CLUSTER_MODULES: &[&str] =
    &["kubernetes", "coredns", "containerd", "etcd", "runc-cni", "pause"];

/// Where each module's binaries are.
#[derive(Debug, Clone)]
pub struct Tools {
    dirs: BTreeMap<&'static str, PathBuf>,
}

impl Tools {
    /// Builds what the cache does not have. With `only`, just these modules.
    pub fn ensure(paths: &Paths, step: &mut Step, only: &[&str]) -> Result<Tools> {
        let wanted = MODULES.iter().filter(|m| only.is_empty() || only.contains(&m.name));
        let mut dirs = BTreeMap::new();
        let mut missing = Vec::new();
        for module in wanted {
            let dir = cache_dir(paths, module)?;
            if !dir.join("bin").is_dir() {
                missing.push(module);
            }
            dirs.insert(module.name, dir.join("bin"));
        }
        if missing.is_empty() {
            step.say(format!("all {} from the cache", dirs.len()));
            return Ok(Tools { dirs });
        }
        let go = command::find_program("go").context(
            "the Go toolchain is not on PATH: install Go 1.26 or newer, then run this again",
        )?;
        for (index, module) in missing.iter().enumerate() {
            let position = format!("{} of {}", index + 1, missing.len());
            build(paths, module, &go, &position, step)
                .with_context(|| format!("build e2e/tools/{}", module.name))?;
        }
        step.say(format!("built {}, {} from the cache", missing.len(), dirs.len() - missing.len()));
        Ok(Tools { dirs })
    }

    /// Only what the cache has: for commands that look at a cluster and build nothing.
    pub fn cached(paths: &Paths) -> Result<Tools> {
        let mut dirs = BTreeMap::new();
        for module in MODULES {
            let bin = cache_dir(paths, module)?.join("bin");
            if bin.is_dir() {
                dirs.insert(module.name, bin);
            }
        }
        Ok(Tools { dirs })
    }

    /// The directory of one module's binaries.
    pub fn dir(&self, module: &str) -> &Path {
        self.dirs.get(module).map_or(Path::new("/nonexistent"), PathBuf::as_path)
    }

    pub fn kubectl(&self) -> PathBuf {
        self.dir("kubernetes").join("kubectl")
    }

    pub fn helm(&self) -> PathBuf {
        self.dir("sidecars").join("helm")
    }

    pub fn csi_sanity(&self) -> PathBuf {
        self.dir("csi-sanity").join("csi-sanity")
    }

    /// What a shell needs in front of its PATH to use the cluster's own tools.
    pub fn path_entries(&self) -> Vec<PathBuf> {
        ["kubernetes", "sidecars", "containerd"]
            .iter()
            .filter_map(|module| self.dirs.get(module).cloned())
            .collect()
    }

    /// Changes when the cluster's binaries could have: a cluster of other tools is replaced.
    pub fn fingerprint(&self) -> String {
        CLUSTER_MODULES.iter().map(|module| format!("{}\n", self.dir(module).display())).collect()
    }
}

fn build_flags(module: &Module) -> Vec<String> {
    let mut flags = vec!["-trimpath".into(), "-buildvcs=false".into()];
    if !module.tags.is_empty() {
        flags.extend(["-tags".into(), module.tags.into()]);
    }
    flags.extend(["-ldflags".into(), format!("-s -w {}", module.ldflags).trim_end().into()]);
    flags
}

fn cache_dir(paths: &Paths, module: &Module) -> Result<PathBuf> {
    let source = paths.repo.join("e2e/tools").join(module.name);
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum", "main.go"] {
        let path = source.join(file);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file != "go.mod" => {
                Vec::new()
            }
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
        };
        hash.update(format!("{file} {}\n", content.len()));
        hash.update(&content);
    }
    hash.update(format!("cgo {} {:?}", module.cgo, build_flags(module)));
    let key = &hex(&hash.finalize())[..KEY_HEX_DIGITS];
    Ok(paths.cache.join("tools").join(format!("{}-{key}", module.name)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn build(paths: &Paths, module: &Module, go: &Path, position: &str, step: &mut Step) -> Result<()> {
    let target = cache_dir(paths, module)?;
    let work = target.with_extension(format!("tmp{}", std::process::id()));
    let bin = work.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
    let started = std::time::Instant::now();
    step.say(format!("{} ({position}): fetching modules", module.name));
    let result = compile(paths, module, go, &bin, |packages, total| {
        step.say(format!(
            "{} ({position}): compiled {packages} of at most {total} packages, {}",
            module.name,
            human(started.elapsed())
        ));
    });
    let result = result.and_then(|()| {
        for binary in module.binaries {
            ensure!(bin.join(binary).is_file(), "go build made no {binary}");
        }
        fs::rename(&work, &target).with_context(|| format!("move to {}", target.display()))
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&work);
    } else {
        step.line(&format!("{} built in {}", module.name, human(started.elapsed())));
    }
    // A concurrent build of the same entry may have won the rename: its result is as good.
    if target.join("bin").is_dir() { Ok(()) } else { result }
}

fn compile(
    paths: &Paths,
    module: &Module,
    go: &Path,
    bin: &Path,
    mut report: impl FnMut(usize, usize),
) -> Result<()> {
    let prepare = |args: &[&str]| {
        let mut command = Command::new(go);
        command
            .args(args)
            .current_dir(paths.repo.join("e2e/tools").join(module.name))
            .env("CGO_ENABLED", if module.cgo { "1" } else { "0" })
            .env("GOFLAGS", "-mod=readonly")
            .stdin(Stdio::null());
        command
    };
    let mut list = prepare(&["list", "-deps"]);
    if !module.tags.is_empty() {
        list.args(["-tags", module.tags]);
    }
    let total = command::output(list.arg(module.target))?.lines().count();
    report(0, total);
    let mut build = prepare(&["build", "-v"]);
    let mut child = build
        .args(build_flags(module))
        .arg("-o")
        .arg(format!("{}/", bin.display()))
        .arg(module.target)
        .stderr(Stdio::piped())
        .spawn()
        .context("start go build")?;
    let mut stderr = child.stderr.take().context("take go's stderr")?;
    let packages = AtomicUsize::new(0);
    // `go build -v` names each package it compiles on stderr, beside its errors.
    let (status, said) = std::thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| {
            let mut said = Vec::new();
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut chunk) {
                let lines = chunk[..count].iter().filter(|byte| **byte == b'\n').count();
                packages.fetch_add(lines, Ordering::Relaxed);
                said.extend_from_slice(&chunk[..count]);
            }
            said
        });
        let status = loop {
            if let Some(status) = child.try_wait().context("wait for go build")? {
                break status;
            }
            report(packages.load(Ordering::Relaxed).min(total), total);
            std::thread::sleep(Duration::from_millis(100));
        };
        Ok((status, reader.join().unwrap_or_default()))
    })?;
    if !status.success() {
        bail!("go build failed ({status}):\n{}", command::tail(&String::from_utf8_lossy(&said)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_in_the_tree_with_its_checksums() {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools");
        for module in MODULES {
            assert!(tools.join(module.name).join("go.mod").is_file(), "{}", module.name);
        }
        for entry in fs::read_dir(&tools).expect("read e2e/tools") {
            let name = entry.expect("entry").file_name();
            let known = MODULES.iter().any(|module| name == module.name);
            assert!(known, "{name:?} is built by nothing");
        }
    }
}
