//! The cluster's DNS: a Deployment of the CoreDNS we built, at the address kubelet hands out.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Cluster;
use crate::command::{self, wait_until};
use crate::progress::Step;

pub const IMAGE: &str = "localhost/coredns:1";
const MANIFEST: &str = include_str!("../../manifests/coredns.yaml");
const READY_LIMIT: Duration = Duration::from_secs(180);

pub fn apply(cluster: &Cluster) -> Result<()> {
    apply_text(cluster, MANIFEST).context("deploy CoreDNS")
}

/// `kubectl apply` of a manifest held in memory.
pub fn apply_text(cluster: &Cluster, manifest: &str) -> Result<()> {
    let mut child = cluster
        .kubectl()
        .args(["apply", "--server-side", "--force-conflicts", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start kubectl")?;
    let mut stdin = child.stdin.take().context("take kubectl's stdin")?;
    stdin.write_all(manifest.as_bytes()).context("hand kubectl the manifest")?;
    drop(stdin);
    let output = child.wait_with_output().context("wait for kubectl")?;
    if !output.status.success() {
        bail!("kubectl apply:\n{}", command::tail(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(())
}

pub fn wait_ready(cluster: &Cluster, step: &mut Step) -> Result<()> {
    wait_until("waiting for CoreDNS", READY_LIMIT, || {
        step.say("waiting for CoreDNS");
        let ready = command::output(cluster.kubectl().args([
            "-n",
            "kube-system",
            "get",
            "deployment",
            "coredns",
            "-o",
            "jsonpath={.status.readyReplicas}",
        ]));
        Ok(match ready {
            Ok(text) if text == "1" => Ok(()),
            Ok(_) => Err("its pod is not Ready (kubectl -n kube-system get pods)".into()),
            Err(error) => Err(format!("{error:#}")),
        })
    })
}
