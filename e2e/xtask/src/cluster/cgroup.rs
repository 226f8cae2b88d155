//! The cluster's subtree of the cgroup hierarchies: where its processes are found again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The parent of everything this cluster runs, in every hierarchy.
const TREE: &str = "curve-e2e";
/// Where a node's own daemons run, beside the pods' groups that kubelet makes.
const SYSTEM: &str = "system";

/// The hierarchies of this machine: one per controller (v1), or the unified one (v2).
#[derive(Debug)]
pub struct Cgroups {
    /// Those that hold controllers: what our processes join.
    mounts: Vec<PathBuf>,
    /// A v2 hierarchy without controllers beside v1 ones: runc leaves groups in it too.
    extra: Vec<PathBuf>,
    unified: bool,
}

impl Cgroups {
    pub fn detect() -> Result<Cgroups> {
        let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
        let of_type = |wanted: &str| -> Vec<PathBuf> {
            mounts
                .lines()
                .filter_map(|line| {
                    let mut fields = line.split(' ').skip(1);
                    let path = fields.next()?;
                    (fields.next()? == wanted).then(|| PathBuf::from(path))
                })
                .collect()
        };
        let (v1, v2) = (of_type("cgroup"), of_type("cgroup2"));
        if !v1.is_empty() {
            return Ok(Cgroups { mounts: v1, extra: v2, unified: false });
        }
        if v2.is_empty() {
            bail!("no cgroup hierarchy is mounted: pods cannot run on this machine");
        }
        Ok(Cgroups { mounts: v2.into_iter().take(1).collect(), extra: Vec::new(), unified: true })
    }

    /// What kubelet is told as its root for the pods of `member`.
    pub fn kubelet_root(member: &str) -> String {
        format!("/{TREE}/{member}")
    }

    /// Makes the groups of `member` and returns those its daemons join.
    pub fn create(&self, member: &str) -> Result<Vec<PathBuf>> {
        let mut joined = Vec::new();
        for mount in &self.mounts {
            let mut path = mount.clone();
            for part in [TREE, member, SYSTEM] {
                if self.unified {
                    delegate_controllers(&path);
                }
                let parent = path.clone();
                path.push(part);
                fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
                // A new v1 cpuset group is empty and takes no process until it has these.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if !self.unified && path.join(file).exists() {
                        let value = fs::read(parent.join(file)).context("read the cpuset")?;
                        fs::write(path.join(file), value).context("fill the cpuset")?;
                    }
                }
            }
            joined.push(path);
        }
        Ok(joined)
    }

    /// Every process below `member`, or of the whole cluster.
    pub fn processes(&self, member: Option<&str>) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for top in self.tops(member) {
            walk(&top, &mut |dir| {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            });
        }
        found
    }

    /// Removes the groups, deepest first; what still holds a process stays.
    pub fn remove(&self, member: Option<&str>) {
        for top in self.tops(member) {
            walk(&top, &mut |dir| {
                let _ = fs::remove_dir(dir);
            });
        }
    }

    pub fn leftovers(&self, member: Option<&str>) -> Vec<PathBuf> {
        self.tops(member).into_iter().filter(|top| top.exists()).collect()
    }

    fn tops(&self, member: Option<&str>) -> Vec<PathBuf> {
        self.mounts
            .iter()
            .chain(&self.extra)
            .map(|mount| mount.join(TREE))
            .map(|tree| member.map_or(tree.clone(), |member| tree.join(member)))
            .collect()
    }
}

/// In a v2 hierarchy children get only the controllers their parent hands on.
fn delegate_controllers(parent: &Path) {
    for controller in ["cpu", "cpuset", "memory", "pids", "io"] {
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Children before their parent.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(dir);
}
