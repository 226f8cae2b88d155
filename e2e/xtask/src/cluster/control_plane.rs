//! etcd, API server, controller manager and scheduler, in the control plane's network.

use std::time::Duration;

use anyhow::{Context, Result};

use super::network::{CONTROL_PLANE_IP, CONTROL_PLANE_NETNS, POD_RANGE, SERVICE_RANGE};
use super::process::{self, Enter, Launch};
use super::{Cluster, pki};
use crate::command::{self, wait_until};
use crate::progress::Step;

const CGROUP: &str = "control-plane";
pub const PROCESSES: &[&str] =
    &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

const READY_LIMIT: Duration = Duration::from_secs(180);

pub fn start(cluster: &Cluster, step: &mut Step) -> Result<()> {
    let groups = cluster.cgroups.create(CGROUP).context("make the control plane's cgroups")?;
    let launch = |name: &str, argv: Vec<String>| {
        process::start(
            &cluster.paths,
            &Launch {
                name,
                cgroups: &groups,
                enter: Enter::Network(CONTROL_PLANE_NETNS),
                path: "/usr/bin",
                argv,
            },
        )
    };
    launch("etcd", etcd(cluster))?;
    launch("kube-apiserver", apiserver(cluster))?;
    wait_until("waiting for the API server", READY_LIMIT, || {
        step.say("waiting for the API server");
        if !process::is_alive(&cluster.paths, "kube-apiserver") {
            anyhow::bail!(
                "kube-apiserver ended; {}",
                process::log_tail(&cluster.paths, "kube-apiserver")
            );
        }
        let mut ready = cluster.kubectl();
        ready.args(["get", "--raw=/readyz", "--request-timeout=5s"]);
        Ok(if command::succeeds(&mut ready) { Ok(()) } else { Err("it is not ready".into()) })
    })?;
    launch("kube-controller-manager", controller_manager(cluster))?;
    launch("kube-scheduler", scheduler(cluster))?;
    Ok(())
}

fn binary(cluster: &Cluster, name: &str) -> String {
    cluster.tools.dir("kubernetes").join(name).display().to_string()
}

/// It loses its last writes when the machine crashes, not when a process does: fine for tests,
/// and it keeps the disk free for what is being tested.
fn etcd(cluster: &Cluster) -> Vec<String> {
    vec![
        cluster.tools.dir("etcd").join("server").display().to_string(),
        format!("--data-dir={}", cluster.paths.state.join("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn apiserver(cluster: &Cluster) -> Vec<String> {
    let pki = pki::dir(cluster).display().to_string();
    let mut argv = vec![binary(cluster, "kube-apiserver")];
    argv.extend([
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--bind-address={CONTROL_PLANE_IP}"),
        format!("--advertise-address={CONTROL_PLANE_IP}"),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--tls-cert-file={pki}/apiserver.crt"),
        format!("--tls-private-key-file={pki}/apiserver.key"),
        format!("--service-account-key-file={pki}/sa.pub"),
        format!("--service-account-signing-key-file={pki}/sa.key"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--kubelet-certificate-authority={pki}/ca.crt"),
        format!("--kubelet-client-certificate={pki}/kubelet-client.crt"),
        format!("--kubelet-client-key={pki}/kubelet-client.key"),
        // Node names are not in any DNS.
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--requestheader-client-ca-file={pki}/ca.crt"),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        format!("--proxy-client-cert-file={pki}/front-proxy.crt"),
        format!("--proxy-client-key-file={pki}/front-proxy.key"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
    ]);
    argv
}

fn controller_manager(cluster: &Cluster) -> Vec<String> {
    let pki = pki::dir(cluster).display().to_string();
    vec![
        binary(cluster, "kube-controller-manager"),
        format!("--kubeconfig={pki}/controller-manager.kubeconfig"),
        format!("--service-account-private-key-file={pki}/sa.key"),
        format!("--root-ca-file={pki}/ca.crt"),
        format!("--cluster-signing-cert-file={pki}/ca.crt"),
        format!("--cluster-signing-key-file={pki}/ca.key"),
        "--use-service-account-credentials".into(),
        // Each node's pod range is fixed by its number.
        "--allocate-node-cidrs=false".into(),
        format!("--cluster-cidr={POD_RANGE}"),
        // Node-loss tests should not wait for a minute.
        "--node-monitor-grace-period=20s".into(),
        "--leader-elect=false".into(),
    ]
}

fn scheduler(cluster: &Cluster) -> Vec<String> {
    let pki = pki::dir(cluster).display().to_string();
    vec![
        binary(cluster, "kube-scheduler"),
        format!("--kubeconfig={pki}/scheduler.kubeconfig"),
        "--leader-elect=false".into(),
    ]
}
