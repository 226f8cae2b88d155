//! The one local Kubernetes cluster of this machine: a control plane and a few nodes.
//!
//! Every node has its own network, mount and host-name namespace, its own /var and /run, its own
//! containerd and kubelet. The control plane and the switch between the nodes live in a network
//! namespace of their own, so that no port, firewall rule or other cluster of the machine is in
//! the way. Everything carries one name in the cgroup tree: that is what clean-up goes by.

pub mod cgroup;
pub mod cleanup;
pub mod control_plane;
pub mod coredns;
pub mod images;
pub mod network;
pub mod node;
pub mod pki;
pub mod process;
pub mod record;
pub mod snapshots;
pub mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{self, wait_until};
use crate::image;
use crate::paths::Paths;
use crate::progress::Step;
use crate::tools::Tools;
use cgroup::Cgroups;
pub use network::MAX_NODES;
use record::{Phase, Record};

/// A cold start on two busy cores takes about a minute; this is for a machine under load.
const START_LIMIT: Duration = Duration::from_secs(300);

/// What one node takes of the disk once the examples run on it: images twice, a device of 4 GiB.
const NODE_BYTES: u64 = 8 << 30;

#[derive(Debug)]
pub struct Cluster {
    pub paths: Paths,
    pub tools: Tools,
    cgroups: Cgroups,
}

impl Cluster {
    pub fn new(paths: Paths, tools: Tools) -> Result<Cluster> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the local cluster makes namespaces, mounts and cgroups: run this as root, e.g.\n  \
             sudo -E env \"PATH=$PATH\" cargo xtask up\n\
             or use a cluster you have with --kubeconfig FILE"
        );
        Ok(Cluster { paths, tools, cgroups: Cgroups::detect()? })
    }

    /// The running cluster, for tests and for commands that only look at it.
    pub fn open() -> Result<Cluster> {
        let paths = Paths::from_env()?;
        let tools = Tools::cached(&paths)?;
        let cluster = Cluster::new(paths, tools)?;
        let record = Record::load(&cluster.paths)?;
        ensure!(
            record.is_some_and(|record| record.phase == Phase::Running),
            "no local cluster is running: start one with `cargo xtask up`"
        );
        Ok(cluster)
    }

    pub fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(self.tools.kubectl());
        kubectl.env("KUBECONFIG", self.paths.admin_kubeconfig());
        kubectl
    }

    pub fn get_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = command::output(self.kubectl().arg("get").args(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).context("parse kubectl's JSON")
    }

    /// Brings up a cluster of at least `nodes` nodes, reusing what runs and is healthy.
    pub fn ensure(&self, nodes: u8, step: &mut Step) -> Result<()> {
        ensure!((1..=MAX_NODES).contains(&nodes), "a cluster has 1 to {MAX_NODES} nodes");
        let fingerprint = self.tools.fingerprint();
        let mut record = match Record::load(&self.paths)? {
            Some(record) if record.phase == Phase::Running && record.tools == fingerprint => record,
            Some(_) => {
                step.line("a first start did not finish, or other tools made it: starting afresh");
                self.remove(true)?;
                Record::starting(nodes, fingerprint)
            }
            None => {
                self.remove(false)?;
                Record::starting(nodes, fingerprint)
            }
        };
        // Made before the nodes start, which only load them: this is where the time goes.
        image::catalog::cluster_images(&self.paths, &self.tools, step)?;
        self.check_disk(record.nodes.max(nodes))?;
        let reused = record.phase == Phase::Running && self.control_plane_answers();
        if !reused {
            cleanup::processes_and_namespaces(self)?;
            record.nodes = record.nodes.max(nodes);
            record.save(&self.paths)?;
            step.say("starting the control plane");
            pki::ensure(self, record.nodes)?;
            network::create_switch()?;
            control_plane::start(self, step)?;
        }
        record.nodes = record.nodes.max(nodes);
        pki::ensure(self, record.nodes)?;
        for index in 1..=record.nodes {
            if !node::is_running(self, index) {
                step.say(format!("starting node{index}"));
                self.start_node(index)?;
            }
        }
        let wanted: Vec<u8> = (1..=record.nodes).collect();
        self.wait_nodes_ready(&wanted, step)?;
        if !reused {
            coredns::apply(self)?;
        }
        coredns::wait_ready(self, step)?;
        record.phase = Phase::Running;
        record.save(&self.paths)?;
        let how = if reused { "already running" } else { "started" };
        step.say(format!("{} nodes Ready, {how}", record.nodes));
        Ok(())
    }

    /// A full disk would show as evicted pods and lost images much later.
    fn check_disk(&self, nodes: u8) -> Result<()> {
        let new = (1..=nodes).filter(|index| !node::dir(self, *index).exists()).count() as u64;
        let state = &self.paths.state;
        fs::create_dir_all(state).with_context(|| format!("make {}", state.display()))?;
        let disk = nix::sys::statvfs::statvfs(state)
            .with_context(|| format!("ask for the free space of {}", state.display()))?;
        let free = disk.blocks_available() * disk.fragment_size();
        ensure!(
            free >= new * NODE_BYTES,
            "{} has {} GiB free, {new} new nodes take up to {} GiB: make room, or name a \
             directory on another disk with CURVE_E2E_DIR",
            state.display(),
            free >> 30,
            (new * NODE_BYTES) >> 30
        );
        Ok(())
    }

    fn control_plane_answers(&self) -> bool {
        control_plane::PROCESSES.iter().all(|name| process::is_alive(&self.paths, name))
            && command::succeeds(self.kubectl().args([
                "get",
                "--raw=/readyz",
                "--request-timeout=5s",
            ]))
    }

    pub fn wait_nodes_ready(&self, wanted: &[u8], step: &mut Step) -> Result<()> {
        wait_until("waiting for the nodes to be Ready", START_LIMIT, || {
            let ready = self.ready_nodes();
            let count = wanted.iter().filter(|index| ready.contains(&node::name(**index))).count();
            step.say(format!("{count} of {} nodes Ready", wanted.len()));
            Ok(if count == wanted.len() {
                Ok(())
            } else {
                Err(format!("Ready are {ready:?}; logs are in {}", self.paths.log_dir().display()))
            })
        })
    }

    fn ready_nodes(&self) -> Vec<String> {
        let filter = "{range .items[*]}{.metadata.name}{' '}\
                      {.status.conditions[?(@.type=='Ready')].status}{'\\n'}{end}";
        let text = command::output(
            self.kubectl().args(["get", "nodes", "-o"]).arg(format!("jsonpath={filter}")),
        );
        text.unwrap_or_default()
            .lines()
            .filter_map(|line| line.strip_suffix(" True"))
            .map(str::to_string)
            .collect()
    }

    /// Boots node `index`: as it was before its stop, or for the first time.
    pub fn start_node(&self, index: u8) -> Result<()> {
        node::stop(self, index)?;
        node::start(self, index).with_context(|| format!("start node{index}"))
    }

    /// Cuts the power of node `index`: every process dies at once, its network is gone.
    pub fn stop_node(&self, index: u8) -> Result<()> {
        self.check_index(index)?;
        node::stop(self, index).with_context(|| format!("stop node{index}"))
    }

    /// One node more, Ready when this returns.
    pub fn add_node(&self) -> Result<u8> {
        let mut record = Record::load(&self.paths)?.context("no cluster is running")?;
        let index = record.nodes + 1;
        ensure!(index <= MAX_NODES, "the cluster has {MAX_NODES} nodes already");
        self.check_disk(index)?;
        pki::ensure(self, index)?;
        self.start_node(index)?;
        record.nodes = index;
        record.save(&self.paths)?;
        self.wait_nodes_ready(&[index], &mut Step::quiet())?;
        Ok(index)
    }

    /// Unplugs or plugs in the cable of node `index`; its processes go on.
    pub fn connect_node(&self, index: u8, connected: bool) -> Result<()> {
        self.check_index(index)?;
        network::set_node_link(index, connected)
    }

    /// Where a path of node `name` (`node2`) lies on this machine: below /var, which is a node's
    /// own and survives its power cuts.
    pub fn node_path(&self, name: &str, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        let below_var = path.strip_prefix("/var").with_context(|| {
            format!("{} is not below /var: nodes share or lose it", path.display())
        })?;
        let index = (1..=MAX_NODES).find(|index| node::name(*index) == name);
        let index = index.with_context(|| format!("{name} is no node of this cluster"))?;
        self.check_index(index)?;
        Ok(node::dir(self, index).join("var").join(below_var))
    }

    pub fn node_count(&self) -> Result<u8> {
        Ok(Record::load(&self.paths)?.map_or(0, |record| record.nodes))
    }

    fn check_index(&self, index: u8) -> Result<()> {
        let nodes = self.node_count()?;
        if !(1..=nodes).contains(&index) {
            bail!("there is no node{index}: the cluster has node1 to node{nodes}");
        }
        Ok(())
    }

    /// Removes processes, namespaces, mounts, loop devices and cgroups; with `purge` also data.
    pub fn remove(&self, purge: bool) -> Result<()> {
        cleanup::processes_and_namespaces(self)?;
        if purge {
            remove_tree(&self.paths.state)?;
        }
        Ok(())
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
