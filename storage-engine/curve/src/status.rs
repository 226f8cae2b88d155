//! `curve status`.

use std::time::Duration;

use anyhow::Result;
use curve_types::ByteSize;
use curve_wire::proto::{self, Health};
use serde_json::{Value, json};

use crate::cluster::ClusterArgs;
use crate::lifetime;
use crate::output::{self, OutputArgs, id_text};
use crate::pool::{domain_name, pool_json};

/// Somebody waits at the terminal.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve status -o json | jq .health")]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: Args) -> Result<()> {
    args.cluster.path()?;
    lifetime::run_command(async move {
        let status = args.cluster.connect()?.with_deadline(DEADLINE).status().await?;
        output::print(args.output.output, || status_json(&status), || status_text(&status))
    })
}

/// As programs read it.
pub fn health_name(health: i32) -> &'static str {
    match Health::try_from(health) {
        Ok(Health::Ok) => "ok",
        Ok(Health::Warn) => "warn",
        Ok(Health::Error) => "error",
        Ok(Health::Unknown) | Err(_) => "unknown",
    }
}

fn status_text(status: &proto::ClusterStatus) -> String {
    let mut lines = Vec::new();
    let health = health_name(status.health).to_uppercase();
    let mut head = format!("cluster {}  {}  HEALTH_{health}", status.cluster_name, status.version);
    if !status.messages.is_empty() {
        head += &format!(": {}", status.messages.join("; "));
    }
    lines.push(head);
    let up = status.mds.iter().filter(|mds| mds.up).count();
    let leader = status.mds.iter().find(|mds| mds.leader).map_or("none", |mds| &mds.name);
    lines.push(format!("mds        {up}/{}  leader {leader}", status.mds.len()));
    let up = status.devices.iter().filter(|device| device.up).count();
    let (whole, degraded, unavailable) =
        (status.copysets_whole, status.copysets_degraded, status.copysets_unavailable);
    lines.push(format!(
        "block      {up}/{} up   {} copysets: {whole} whole, {degraded} degraded, {unavailable} \
         unavailable",
        status.devices.len(),
        whole + degraded + unavailable
    ));
    for pool in &status.pools {
        lines.push(pool_line(pool));
    }
    let attached = status.attached_volumes;
    let plural = if attached == 1 { "" } else { "s" };
    lines.push(format!("clients    {attached} attached volume{plural}"));
    lines.join("\n") + "\n"
}

fn pool_line(status: &proto::PoolStatus) -> String {
    let pool = status.pool.clone().unwrap_or_default();
    let percent = |bytes: u64| (bytes * 100).checked_div(status.logical_capacity).unwrap_or(0);
    format!(
        "pool       {}  replicas {} by {}   {} logical  {} used ({} %)  {} in volumes ({} %, at \
         most {} %)",
        pool.name,
        pool.replicas,
        domain_name(pool.failure_domain),
        ByteSize(status.logical_capacity),
        ByteSize(status.used),
        percent(status.used),
        ByteSize(status.provisioned),
        percent(status.provisioned),
        pool.overcommit_percent,
    )
}

fn status_json(status: &proto::ClusterStatus) -> Value {
    let mds = status.mds.iter().map(|mds| {
        json!({
            "name": mds.name,
            "device_id": id_text(&mds.device_id),
            "up": mds.up,
            "leader": mds.leader,
        })
    });
    json!({
        "cluster": status.cluster_name,
        "cluster_id": id_text(&status.cluster_id),
        "version": status.version,
        "health": health_name(status.health),
        "messages": status.messages,
        "mds": mds.collect::<Vec<_>>(),
        "devices": status.devices.iter().map(device_json).collect::<Vec<_>>(),
        "pools": status.pools.iter().map(pool_json).collect::<Vec<_>>(),
        "copysets_whole": status.copysets_whole,
        "copysets_degraded": status.copysets_degraded,
        "copysets_unavailable": status.copysets_unavailable,
        "attached_volumes": status.attached_volumes,
        "paused_schedulers": status.paused_schedulers,
    })
}

fn device_json(device: &proto::DeviceStatus) -> Value {
    json!({
        "name": device.name,
        "device_id": id_text(&device.device_id),
        "host": device.host,
        "zone": device.zone,
        "device_class": device.device_class,
        "address": device.address,
        "up": device.up,
        "silent_ms": device.silent_ms,
        "out": device.out,
        "capacity": device.capacity,
        "used": device.used,
        "replicas": device.replicas,
        "leaders": device.leaders,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_what_is_wrong_first() {
        let status = proto::ClusterStatus {
            cluster_name: "demo".into(),
            version: "0.1.0".into(),
            health: Health::Warn.into(),
            messages: vec!["1 of 3 chunkservers down".into()],
            mds: vec![proto::MdsStatus {
                name: "mds-0".into(),
                up: true,
                leader: true,
                ..Default::default()
            }],
            pools: vec![proto::PoolStatus {
                pool: Some(proto::Pool {
                    name: "fast".into(),
                    replicas: 3,
                    overcommit_percent: 200,
                    ..Default::default()
                }),
                logical_capacity: 10 << 30,
                provisioned: 15 << 30,
                used: 8 << 30,
                ..Default::default()
            }],
            copysets_degraded: 8,
            attached_volumes: 1,
            ..Default::default()
        };
        let text = status_text(&status);
        assert!(text.starts_with("cluster demo  0.1.0  HEALTH_WARN: 1 of 3 chunkservers down\n"));
        assert!(text.contains("mds        1/1  leader mds-0\n"), "{text}");
        assert!(text.contains("8 copysets: 0 whole, 8 degraded, 0 unavailable\n"), "{text}");
        let pool = "10 GiB logical  8 GiB used (80 %)  15 GiB in volumes (150 %, at most 200 %)\n";
        assert!(text.contains(pool), "{text}");
        assert!(text.ends_with("clients    1 attached volume\n"), "{text}");
        assert_eq!(status_json(&status)["health"], "warn");
    }
}
