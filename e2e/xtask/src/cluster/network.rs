//! Addresses, the switch between the nodes, and each node's cable.
//!
//! 10.77.0.0/24 joins control plane (.1), nodes (.11 and up) and this machine (.254);
//! node I owns the pods of 10.244.I.0/24; services are 10.96.0.0/16.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// One digit: node names, addresses and pod ranges stay readable.
pub const MAX_NODES: u8 = 9;
pub const CONTROL_PLANE_IP: &str = "10.77.0.1";
pub const CONTROL_PLANE_NETNS: &str = "curve-cp";
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
pub const DNS_IP: &str = "10.96.0.10";
pub const POD_RANGE: &str = "10.244.0.0/16";
/// This machine's end of the cable into the switch.
const HOST_LINK: &str = "curve0";
const HOST_ADDRESS: &str = "10.77.0.254/24";

pub fn node_ip(index: u8) -> String {
    format!("10.77.0.{}", 10 + index)
}

pub fn node_netns(index: u8) -> String {
    format!("curve-node{index}")
}

pub fn pod_range(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

fn ip(args: &str) -> Result<()> {
    command::output(Command::new("ip").args(args.split(' '))).map(drop)
}

/// Makes the control plane's network and this machine's way into it.
pub fn create_switch() -> Result<()> {
    let ns = CONTROL_PLANE_NETNS;
    create_netns(ns)?;
    ip(&format!("-n {ns} link add br0 type bridge"))?;
    ip(&format!("-n {ns} addr add {CONTROL_PLANE_IP}/24 dev br0"))?;
    ip(&format!("-n {ns} link set br0 up"))?;
    ip(&format!("link add {HOST_LINK} type veth peer name host0 netns {ns}"))?;
    ip(&format!("-n {ns} link set host0 master br0 up"))?;
    ip(&format!("addr add {HOST_ADDRESS} dev {HOST_LINK}"))?;
    ip(&format!("link set {HOST_LINK} up"))?;
    add_pod_routes(Some(ns), None)?;
    add_pod_routes(None, None)?;
    // This machine reaches services through the first node's kube-proxy.
    ip(&format!("route replace {SERVICE_RANGE} via {}", node_ip(1)))
}

/// Makes a node's network and plugs it in.
pub fn create_node(index: u8) -> Result<()> {
    let (ns, cp, address) = (node_netns(index), CONTROL_PLANE_NETNS, node_ip(index));
    create_netns(&ns)?;
    ip(&format!("-n {cp} link add node{index} type veth peer name eth0 netns {ns}"))?;
    ip(&format!("-n {cp} link set node{index} master br0 up"))?;
    ip(&format!("-n {ns} addr add {address}/24 dev eth0"))?;
    ip(&format!("-n {ns} link set eth0 up"))?;
    ip(&format!("-n {ns} route add default via {CONTROL_PLANE_IP}"))?;
    add_pod_routes(Some(&ns), Some(index))
}

fn create_netns(name: &str) -> Result<()> {
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up"))?;
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    command::output(
        Command::new("nsenter").arg(format!("--net=/run/netns/{name}")).args(["sh", "-c", forward]),
    )
    .with_context(|| format!("let {name} forward packets"))
    .map(drop)
}

/// Ways to the pods of every node there may ever be, so that adding one changes nobody else.
fn add_pod_routes(netns: Option<&str>, except: Option<u8>) -> Result<()> {
    let scope = netns.map_or(String::new(), |name| format!("-n {name} "));
    for index in (1..=MAX_NODES).filter(|index| Some(*index) != except) {
        ip(&format!("{scope}route replace {} via {}", pod_range(index), node_ip(index)))?;
    }
    Ok(())
}

pub fn set_node_link(index: u8, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    ip(&format!("-n {CONTROL_PLANE_NETNS} link set node{index} {state}"))
}

/// Names of the network namespaces that are ours.
pub fn namespaces() -> Vec<String> {
    let ours = |name: &String| {
        name == CONTROL_PLANE_NETNS || (1..=MAX_NODES).any(|index| *name == node_netns(index))
    };
    std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(ours)
        .collect()
}

pub fn processes_in(netns: &str) -> Vec<i32> {
    let text = command::output(Command::new("ip").args(["netns", "pids", netns]));
    text.unwrap_or_default().lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Deletes the namespace and with it every link in it. A link's peer goes along.
pub fn delete_netns(name: &str) -> Result<()> {
    if Path::new("/run/netns").join(name).exists() {
        ip(&format!("netns delete {name}"))?;
    }
    Ok(())
}

/// Explicitly, although it goes with the namespace: the kernel deletes a namespace some time
/// after its last user is gone, and the node may be started again before.
pub fn delete_node_link(index: u8) {
    let _ = ip(&format!("-n {CONTROL_PLANE_NETNS} link delete node{index}"));
}

pub fn delete_host_link() -> Result<()> {
    if host_link_exists() { ip(&format!("link delete {HOST_LINK}")) } else { Ok(()) }
}

pub fn host_link_exists() -> bool {
    Path::new("/sys/class/net").join(HOST_LINK).exists()
}
