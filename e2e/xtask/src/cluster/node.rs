//! One node: namespaces held open by a first process, then containerd, kube-proxy and kubelet.
//!
//! A node sees its own /var (on disk, survives a power cut) and its own /run (in memory, does
//! not), so default paths and hostPath volumes below them differ from node to node.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cgroup::Cgroups;
use super::network::{self, DNS_IP, POD_RANGE, node_ip, node_netns, pod_range};
use super::process::{self, Enter, Launch};
use super::{Cluster, cleanup, images, pki};
use crate::command::wait_until;
use crate::image::catalog::PAUSE;

const SOCKET: &str = "/run/containerd/containerd.sock";
const START_LIMIT: Duration = Duration::from_secs(60);

/// The node's tools, as it sees them, wherever the cache lies.
const TOOL_MODULES: &[&str] = &["kubernetes", "containerd", "runc-cni"];
const TOOLS_PATH: &str = "/run/tools/kubernetes:/run/tools/containerd:/run/tools/runc-cni";

/// Makes the node's view of the file system, says so, and holds it open for ever.
/// Mounts are shared inside the node, so what a privileged pod mounts below /var/lib/kubelet
/// reaches kubelet and other pods; nothing reaches this machine.
const HOLD: &str = r#"
set -e
mount --make-rprivate /
# Copies of other nodes' namespace mounts would keep those alive after their deletion.
umount -R -l /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /run/tools
for module in $MODULES; do
  mkdir "/run/tools/$module"
  mount --bind "$TOOLS/$module" "/run/tools/$module"
done
mount --bind "$VAR" /var
mount --make-rshared /
hostname "$NODE"
touch /run/ready
exec sleep infinity
"#;

pub fn name(index: u8) -> String {
    format!("node{index}")
}

pub fn dir(cluster: &Cluster, index: u8) -> PathBuf {
    cluster.paths.state.join(name(index))
}

fn process_name(index: u8, role: &str) -> String {
    format!("{}-{role}", name(index))
}

const ROLES: &[&str] = &["hold", "containerd", "kube-proxy", "kubelet"];

pub fn is_running(cluster: &Cluster, index: u8) -> bool {
    ROLES.iter().all(|role| process::is_alive(&cluster.paths, &process_name(index, role)))
}

/// The pid whose namespaces are the node.
pub fn holder(cluster: &Cluster, index: u8) -> Result<i32> {
    process::recorded(&cluster.paths, &process_name(index, "hold"))
        .map(|identity| identity.pid)
        .with_context(|| format!("{} is not running", name(index)))
}

/// A command line that runs `ctr` against the node's containerd.
pub fn ctr(cluster: &Cluster, index: u8) -> Result<std::process::Command> {
    let argv = process::enter_command(Enter::Node(holder(cluster, index)?));
    let mut ctr = std::process::Command::new(&argv[0]);
    ctr.args(&argv[1..]).args(["/run/tools/containerd/ctr", "-a", SOCKET, "-n", "k8s.io"]);
    Ok(ctr)
}

pub fn start(cluster: &Cluster, index: u8) -> Result<()> {
    write_files(cluster, index).context("write the node's configuration")?;
    network::create_node(index).context("make the node's network")?;
    let groups = cluster.cgroups.create(&name(index)).context("make the node's cgroups")?;
    let launch = |role: &str, enter: Enter<'_>, argv: Vec<String>| {
        let name = process_name(index, role);
        let spec = Launch { name: &name, cgroups: &groups, enter, path: TOOLS_PATH, argv };
        process::start(&cluster.paths, &spec)
    };
    let pid = launch("hold", Enter::Network(&node_netns(index)), hold(cluster, index))?.pid;
    wait_for(cluster, index, "hold", &format!("/proc/{pid}/root/run/ready"))?;
    let node = Enter::Node(pid);
    launch("containerd", node, words("containerd --config /var/lib/containerd/config.toml"))?;
    wait_for(cluster, index, "containerd", &format!("/proc/{pid}/root{SOCKET}"))?;
    images::load_at_start(cluster, index)?;
    let hostname = name(index);
    launch(
        "kube-proxy",
        node,
        words(&format!(
            "kube-proxy --kubeconfig=/var/lib/kube-proxy/kubeconfig \
             --hostname-override={hostname} --cluster-cidr={POD_RANGE} --proxy-mode=iptables \
             --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
             --conntrack-tcp-timeout-close-wait=0"
        )),
    )?;
    launch(
        "kubelet",
        node,
        words(&format!(
            "kubelet --config=/var/lib/kubelet/config.yaml \
             --kubeconfig=/var/lib/kubelet/kubeconfig --hostname-override={hostname} \
             --node-ip={} --node-labels=topology.kubernetes.io/zone=zone{index}",
            node_ip(index)
        )),
    )?;
    Ok(())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(String::from).collect()
}

fn hold(cluster: &Cluster, index: u8) -> Vec<String> {
    let tools = dir(cluster, index).join("tools");
    let var = dir(cluster, index).join("var");
    [
        "env",
        &format!("NODE={}", name(index)),
        &format!("VAR={}", var.display()),
        &format!("TOOLS={}", tools.display()),
        &format!("MODULES={}", TOOL_MODULES.join(" ")),
        "unshare",
        "--mount",
        "--uts",
        "sh",
        "-c",
        HOLD,
    ]
    .map(String::from)
    .to_vec()
}

fn wait_for(cluster: &Cluster, index: u8, role: &str, path: &str) -> Result<()> {
    let name = process_name(index, role);
    wait_until(&format!("starting {name}"), START_LIMIT, || {
        if !process::is_alive(&cluster.paths, &name) {
            bail!("{name} ended; {}", process::log_tail(&cluster.paths, &name));
        }
        Ok(if Path::new(path).exists() { Ok(()) } else { Err("it is not ready".into()) })
    })
}

/// Ends every process of the node at once and takes its network away.
pub fn stop(cluster: &Cluster, index: u8) -> Result<()> {
    let (member, netns) = (name(index), node_netns(index));
    cleanup::kill_all(cluster, Some(&member), std::slice::from_ref(&netns))?;
    network::delete_node_link(index);
    network::delete_netns(&netns)?;
    cleanup::detach_orphaned_loops(&cluster.paths)?;
    cluster.cgroups.remove(Some(&member));
    Ok(())
}

fn write_files(cluster: &Cluster, index: u8) -> Result<()> {
    let dir = dir(cluster, index);
    let var = dir.join("var");
    for sub in ["cache", "lib/cni/net.d", "lib/curve", "log", "tmp"] {
        make_dir(&var.join(sub))?;
    }
    make_dir(&dir.join("tools"))?;
    link(Path::new("/run"), &var.join("run"))?;
    for module in TOOL_MODULES {
        link(cluster.tools.dir(module), &dir.join("tools").join(module))?;
    }
    let lib = var.join("lib");
    let member = name(index);
    credentials(cluster, &lib.join("kubelet"), &member)?;
    credentials(cluster, &lib.join("kube-proxy"), "kube-proxy")?;
    write(&lib.join("kubelet/resolv.conf"), "")?;
    write(&lib.join("kubelet/config.yaml"), &kubelet_config(index))?;
    write(&lib.join("containerd/config.toml"), &containerd_config())?;
    write(&lib.join("cni/net.d/10-bridge.conflist"), &cni_config(index))
}

/// `DIR/kubeconfig` with the certificate and key it names, at the path the node sees.
fn credentials(cluster: &Cluster, dir: &Path, who: &str) -> Result<()> {
    let source = pki::dir(cluster);
    make_dir(dir)?;
    for (from, to) in [
        ("ca.crt".to_string(), "ca.crt".to_string()),
        (format!("{who}.crt"), format!("{who}.crt")),
        (format!("{who}.key"), format!("{who}.key")),
    ] {
        fs::copy(source.join(&from), dir.join(to)).with_context(|| format!("copy {from}"))?;
    }
    let seen = Path::new("/var/lib").join(dir.file_name().context("directory without a name")?);
    write(&dir.join("kubeconfig"), &pki::kubeconfig(&seen, who))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    make_dir(path.parent().context("file without a parent")?)?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn link(target: &Path, at: &Path) -> Result<()> {
    let _ = fs::remove_file(at);
    std::os::unix::fs::symlink(target, at).with_context(|| format!("link {}", at.display()))
}

fn kubelet_config(index: u8) -> String {
    let (address, member) = (node_ip(index), name(index));
    let cgroup_root = Cgroups::kubelet_root(&member);
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: /var/lib/kubelet/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: /var/lib/kubelet/{member}.crt
tlsPrivateKeyFile: /var/lib/kubelet/{member}.key
containerRuntimeEndpoint: unix://{SOCKET}
cgroupDriver: cgroupfs
cgroupRoot: {cgroup_root}
failCgroupV1: false
failSwapOn: false
clusterDNS: [{DNS_IP}]
clusterDomain: cluster.local
resolvConf: /var/lib/kubelet/resolv.conf
volumePluginDir: /var/lib/kubelet/volumeplugins
serializeImagePulls: false
# Images are loaded by hand and cannot be pulled again.
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}}
# Short, with the controller manager's grace period, so that a lost node is noticed in seconds.
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 16
logging: {{verbosity: 1}}
"
    )
}

fn containerd_config() -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE scores may only be raised; pods must start all the same.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/run/tools/runc-cni"]
    conf_dir = "/var/lib/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "/run/tools/runc-cni/runc"
      SystemdCgroup = false
"#
    )
}

/// Pod addresses are routed everywhere in the cluster, so nothing is masqueraded and a server
/// sees its client's own address.
fn cni_config(index: u8) -> String {
    let range = pod_range(index);
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
    "ipMasq": false, "hairpinMode": true,
    "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{range}"}}]],
             "dataDir": "/run/cni-ipam"}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
]}}
"#
    )
}
