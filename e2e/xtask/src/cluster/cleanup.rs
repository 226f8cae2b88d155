//! Removes what a cluster leaves on the machine, whoever started it and however it ended.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::{Cluster, network};
use crate::command::{self, wait_until};
use crate::paths::Paths;

/// Processes in the middle of disk IO need a moment even after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// Everything but the data. Finds it by cgroup, namespace and path, so it needs no record.
pub fn processes_and_namespaces(cluster: &Cluster) -> Result<()> {
    let namespaces = network::namespaces();
    kill_all(cluster, None, &namespaces)?;
    for name in &namespaces {
        network::delete_netns(name)?;
    }
    network::delete_host_link()?;
    detach_orphaned_loops(&cluster.paths)?;
    unmount_below(&cluster.paths)?;
    cluster.cgroups.remove(None);
    let _ = fs::remove_dir_all(cluster.paths.state.join("run"));
    verify_nothing_left(cluster)
}

/// Kills until nobody is left: a shim may start a process while we walk the list.
pub fn kill_all(cluster: &Cluster, member: Option<&str>, namespaces: &[String]) -> Result<()> {
    let me = i32::try_from(std::process::id()).context("pid out of range")?;
    wait_until("ending the cluster's processes", KILL_LIMIT, || {
        let mut found = cluster.cgroups.processes(member);
        for name in namespaces {
            found.extend(network::processes_in(name));
        }
        found.remove(&me);
        if found.is_empty() {
            return Ok(Ok(()));
        }
        for pid in &found {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        Ok(Err(format!("still there: {found:?}")))
    })
}

#[derive(Debug, Deserialize)]
struct LoopList {
    loopdevices: Vec<LoopDevice>,
}

#[derive(Debug, Deserialize)]
struct LoopDevice {
    name: String,
    #[serde(rename = "maj:min")]
    number: Option<String>,
    #[serde(rename = "back-file")]
    back_file: Option<String>,
    #[serde(rename = "back-maj:min")]
    back_device: Option<String>,
}

/// Loop devices outlive the namespaces they were set up in. Ours are backed by a file of the
/// state directory, or by a file system that nobody has mounted any more: the FUSE mount of an
/// agent that is gone. Once that agent is dead, the kernel cannot even tell the file system.
pub fn detach_orphaned_loops(paths: &Paths) -> Result<()> {
    for device in orphaned_loops(paths)? {
        command::output(Command::new("losetup").args(["--detach", &device.name]))
            .with_context(|| format!("detach {} ({:?})", device.name, device.back_file))?;
    }
    Ok(())
}

fn orphaned_loops(paths: &Paths) -> Result<Vec<LoopDevice>> {
    let text = command::output(Command::new("losetup").args([
        "--list",
        "--json",
        "-O",
        "NAME,MAJ:MIN,BACK-FILE,BACK-MAJ:MIN",
    ]))?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let list: LoopList = serde_json::from_str(&text).context("parse losetup's list")?;
    let mounted = mounted_devices();
    let state = format!("{}/", paths.state.display());
    let ours = |device: &LoopDevice| is_orphaned(device, &state, &mounted);
    Ok(list.loopdevices.into_iter().filter(ours).collect())
}

fn is_orphaned(device: &LoopDevice, state: &str, mounted: &[String]) -> bool {
    let is_mounted = |number: &str| mounted.iter().any(|mounted| mounted == number);
    let file = device.back_file.as_deref().unwrap_or_default();
    match device.back_device.as_deref().map(str::trim) {
        _ if file.starts_with(state) => true,
        Some(backing) => backing.starts_with("0:") && !is_mounted(backing),
        None => {
            let number = device.number.as_deref().map(str::trim).unwrap_or_default();
            is_volume_id(file.trim_start_matches('/')) && !is_mounted(number)
        }
    }
}

/// Agents name the file that they serve by its volume: `8-4-4-4-12` hexadecimal digits.
fn is_volume_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts.iter().all(|part| part.chars().all(|c| c.is_ascii_hexdigit()))
}

/// `major:minor` of every file system mounted in any namespace of a living process.
fn mounted_devices() -> Vec<String> {
    let mut devices = Vec::new();
    let mut seen = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(namespace) = fs::read_link(path.join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        let Ok(text) = fs::read_to_string(path.join("mountinfo")) else { continue };
        devices.extend(text.lines().filter_map(|line| line.split(' ').nth(2)).map(String::from));
        seen.push(namespace);
    }
    devices
}

fn mounts_below(paths: &Paths) -> Vec<String> {
    let prefix = format!("{}/", paths.state.display());
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|target| target.starts_with(&prefix))
        .map(String::from)
        .collect()
}

fn unmount_below(paths: &Paths) -> Result<()> {
    // Later mounts lie on top of earlier ones.
    for target in mounts_below(paths).iter().rev() {
        command::output(Command::new("umount").args(["--lazy", target]))?;
    }
    Ok(())
}

/// Says what is still there, by name: a leak must not wait for the next start to be noticed.
fn verify_nothing_left(cluster: &Cluster) -> Result<()> {
    let mut left = Vec::new();
    left.extend(
        cluster.cgroups.leftovers(None).iter().map(|dir| format!("cgroup {}", dir.display())),
    );
    left.extend(network::namespaces().iter().map(|name| format!("network namespace {name}")));
    if network::host_link_exists() {
        left.push("the link into the cluster's network".into());
    }
    left.extend(mounts_below(&cluster.paths).iter().map(|target| format!("mount {target}")));
    left.extend(orphaned_loops(&cluster.paths)?.iter().map(|device| device.name.clone()));
    if !left.is_empty() {
        bail!("could not remove: {}", left.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loop_devices_that_nobody_can_use_any_more_are_orphans() {
        let volume = "/6dd57c44-c427-4f34-9b09-153c98c7f50d";
        let mounted = ["0:40".to_owned(), "7:3".to_owned()];
        let cases = [
            ("7:0", "/var/lib/curve-e2e/node1/disk", Some("254:0"), true),
            ("7:0", "/home/me/image", Some("254:0"), false),
            ("7:0", volume, Some("0:41"), true),
            ("7:0", volume, Some("0:40"), false),
            ("7:0", volume, None, true),
            ("7:3", volume, None, false),
            ("7:0", "/somebody-elses-image", None, false),
        ];
        for (number, file, backing, orphaned) in cases {
            let device = LoopDevice {
                name: "/dev/loop0".into(),
                number: Some(number.into()),
                back_file: Some(file.into()),
                back_device: backing.map(Into::into),
            };
            let found = is_orphaned(&device, "/var/lib/curve-e2e/", &mounted);
            assert_eq!(found, orphaned, "{device:?}");
        }
    }
}
