//! Proves that the cluster runs plain pods: names, services and pods across nodes.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Cluster;
use super::coredns::apply_text;
use crate::command::{self, wait_until};
use crate::progress::Step;

const MANIFEST: &str = include_str!("../../manifests/verify.yaml");
/// Stands for the namespace in the manifest. Each run has its own: deleting takes a while.
const PLACEHOLDER: &str = "curve-verify";
const LIMIT: Duration = Duration::from_secs(120);

pub fn plain_pods(cluster: &Cluster, step: &mut Step) -> Result<()> {
    step.say("starting two pods on two nodes");
    let namespace = format!("{PLACEHOLDER}-{}", std::process::id());
    apply_text(cluster, &MANIFEST.replace(PLACEHOLDER, &namespace))?;
    let result = talk(cluster, &namespace, step);
    let mut delete = cluster.kubectl();
    delete.args(["delete", "namespace", &namespace, "--wait=false"]);
    command::output(&mut delete)?;
    result
}

fn talk(cluster: &Cluster, namespace: &str, step: &mut Step) -> Result<()> {
    wait_until("waiting for two plain pods", LIMIT, || {
        let pods = cluster.get_json(&["-n", namespace, "pods"])?;
        let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let running = items.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        Ok(if running == 2 { Ok(()) } else { Err(format!("{running} of 2 are Running")) })
    })?;
    let pods = cluster.get_json(&["-n", namespace, "pods"])?;
    let field = |name: &str, pointer: &str| -> Result<String> {
        let items = pods["items"].as_array().context("pods without items")?;
        let pod = items.iter().find(|pod| pod["metadata"]["name"] == name);
        let value = pod.and_then(|pod| pod.pointer(pointer)).and_then(|value| value.as_str());
        Ok(value.with_context(|| format!("{name} has no {pointer}"))?.to_string())
    };
    let (server, client) = (field("server", "/spec/nodeName")?, field("client", "/spec/nodeName")?);
    ensure!(server != client, "both pods were put on {server}");
    let address = field("server", "/status/podIP")?;
    for (what, target) in [
        ("pod address", address.as_str()),
        ("service by short name", "server"),
        ("service by full name", &format!("server.{namespace}.svc.cluster.local")),
    ] {
        step.say(format!("{client} to {server} by {what}"));
        ask(cluster, namespace, target)
            .with_context(|| format!("reach {server} from {client} by {what}"))?;
    }
    step.say(format!("pods on {server} and {client} reach each other by address and name"));
    Ok(())
}

/// The service's rules reach kube-proxy a moment after the pod is Ready.
fn ask(cluster: &Cluster, namespace: &str, target: &str) -> Result<()> {
    wait_until("asking the server pod", LIMIT, || {
        let answer = command::output(cluster.kubectl().args([
            "-n",
            namespace,
            "exec",
            "client",
            "--",
            "socat",
            "-T5",
            "-u",
            &format!("TCP:{target}:8080,connect-timeout=3"),
            "-",
        ]));
        match answer {
            Ok(text) if text.trim() == "hello" => Ok(Ok(())),
            Ok(text) => bail!("the server answered {text:?}"),
            Err(error) => Ok(Err(format!("{error:#}"))),
        }
    })
}
