//! The Curve processes of the local cluster's `demo` cluster: their status, and their violent end.
//! Pods run under this machine's kernel, so a test can kill what runs in them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{kubectl, wait};

/// Where `examples/cluster.yaml` puts the cluster.
pub const NAMESPACE: &str = "curve";
pub const CLUSTER: &str = "demo";

/// `curve status -o json`, from the first MDS pod that answers.
pub fn status() -> Result<Value> {
    let mut last = None;
    for ordinal in 0..3 {
        let pod = format!("{CLUSTER}-mds-{ordinal}");
        match kubectl::run(&["-n", NAMESPACE, "exec", &pod, "--", "curve", "status", "-o", "json"])
        {
            Ok(text) => return serde_json::from_str(&text).context("parse curve status"),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no MDS pod")?)
}

/// Waits until every copyset has all its replicas and nothing is wrong.
pub fn wait_healthy(timeout: Duration) -> Result<Value> {
    wait::until("a healthy cluster", timeout, || {
        let status = status().map_err(|error| format!("{error:#}"))?;
        if status["health"] == "ok" {
            Ok(status)
        } else {
            Err(format!("{} {}", status["health"], status["messages"]))
        }
    })
}

/// Name of the chunkserver that leads most copysets.
pub fn busiest_leader() -> Result<String> {
    let status = status()?;
    let devices = status["devices"].as_array().context("devices in curve status")?;
    devices
        .iter()
        .max_by_key(|device| device["leaders"].as_u64())
        .and_then(|device| Some(device["name"].as_str()?.to_owned()))
        .context("a chunkserver in curve status")
}

/// Kills with SIGKILL every process of `program`, by its file name, whose arguments hold all of
/// `words`; returns how many.
pub fn kill_processes(program: &str, words: &[&str]) -> Result<usize> {
    kill_where(program, |_, args| words.iter().all(|word| args.contains(&word.as_bytes())))
}

/// Kills with SIGKILL the processes of `program` in the pod of that name; returns how many.
pub fn kill_in_pod(program: &str, pod: &str) -> Result<usize> {
    let name = format!("HOSTNAME={pod}");
    kill_where(program, |process, _| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == name.as_bytes())
    })
}

/// Kills the processes of `program` that `chosen` picks by their directory in /proc and their
/// arguments.
fn kill_where(program: &str, chosen: impl Fn(&Path, &[&[u8]]) -> bool) -> Result<usize> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let process = Path::new("/proc").join(&name);
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let path = args.first().copied().unwrap_or_default();
        if path.rsplit(|byte| *byte == b'/').next() == Some(program.as_bytes())
            && chosen(&process, &args)
            && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
        {
            killed += 1;
        }
    }
    Ok(killed)
}

/// Kills the chunkserver of that name, wherever it runs.
pub fn kill_chunkserver(name: &str) -> Result<()> {
    let killed = kill_processes("curve", &["chunkserver", name])?;
    ensure!(killed == 1, "killed {killed} processes of chunkserver {name}, expected 1");
    Ok(())
}

/// Waits until the chunkserver of that name is reported up or down.
pub fn wait_device(name: &str, up: bool, timeout: Duration) -> Result<()> {
    wait::until(&format!("chunkserver {name} up={up}"), timeout, || {
        let status = status().map_err(|error| format!("{error:#}"))?;
        let device = status["devices"].as_array().and_then(|devices| {
            devices.iter().rev().find(|device| device["name"] == name && device["out"] != true)
        });
        match device {
            Some(device) if device["up"] == up => Ok(()),
            Some(device) => Err(device.to_string()),
            None => Err(format!("no such device in {}", status["devices"])),
        }
    })
}

/// Waits for a heartbeat of that chunkserver from after `since`: right after its death it still
/// counts as up.
pub fn wait_heard_since(name: &str, since: Instant, timeout: Duration) -> Result<()> {
    wait::until(&format!("a heartbeat of chunkserver {name}"), timeout, || {
        let limit = since.elapsed().as_millis() as u64;
        let status = status().map_err(|error| format!("{error:#}"))?;
        let devices = status["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let heard = |device: &&Value| device["silent_ms"].as_u64().is_some_and(|ms| ms < limit);
        let device = devices.iter().find(|device| device["name"] == name);
        device.filter(heard).map(|_| ()).ok_or_else(|| format!("{device:?}"))
    })
}

/// The node a pod runs on.
pub fn node_of(namespace: &str, pod: &str) -> Result<String> {
    let node = kubectl::field(namespace, &format!("pod/{pod}"), "{.spec.nodeName}")?;
    if node.is_empty() {
        bail!("pod {namespace}/{pod} is not scheduled");
    }
    Ok(node)
}
