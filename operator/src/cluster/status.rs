//! Sums up a reconciliation as the status of the CurveCluster, and the events that the change
//! from the last status deserves. Pure.

mod events;

use std::collections::BTreeMap;

use curve_wire::proto::{ClusterStatus, Health};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::health::{self, Engine};
use super::rollout::{self, RolloutStep};
use super::validate::{Invalid, ValidatedCluster};
use crate::condition::{ConditionState, set_condition, whole_seconds};
use crate::crd::{CopysetCounts, CurveClusterStatus, NodeSetStatus};

pub use events::{Notice, plan_events};

/// What the status is made of.
#[derive(Debug)]
pub struct StatusInputs<'a> {
    pub generation: Option<i64>,
    pub old: &'a CurveClusterStatus,
    pub stateful_sets: &'a [StatefulSet],
    pub pods: &'a [Pod],
    /// Sets that have no place for all their pods.
    pub shortages: &'a [String],
    pub engine: &'a Engine,
    pub rollout: &'a RolloutStep,
    pub now: Timestamp,
}

/// The status of a cluster whose spec is valid.
pub fn summarize(cluster: &ValidatedCluster, inputs: &StatusInputs<'_>) -> CurveClusterStatus {
    let node_sets = node_sets(cluster, inputs);
    let mut status = CurveClusterStatus {
        observed_generation: inputs.generation,
        disks: disks(cluster, inputs),
        node_sets,
        ..inputs.old.clone()
    };
    match inputs.engine {
        Ok(engine) => take_engine(&mut status, engine, inputs),
        Err(_) => status.health = "Unknown".into(),
    }
    let available = available(inputs);
    let progressing = progressing(cluster, inputs);
    status.phase = phase(&status, &available, &progressing, inputs).into();
    let degraded = degraded(&status, cluster, inputs);
    for (kind, state) in
        [("Available", available), ("Progressing", progressing), ("Degraded", degraded)]
    {
        set_condition(&mut status.conditions, kind, state, inputs.generation, inputs.now);
    }
    status
}

/// The status of a cluster whose spec cannot be carried out; what runs is left alone.
pub fn refuse(
    old: &CurveClusterStatus,
    invalid: &Invalid,
    generation: Option<i64>,
    now: Timestamp,
) -> CurveClusterStatus {
    let mut status = CurveClusterStatus {
        phase: "Failed".into(),
        observed_generation: generation,
        ..old.clone()
    };
    let state = ConditionState::no("InvalidSpec", invalid.to_string());
    set_condition(&mut status.conditions, "Progressing", state, generation, now);
    status
}

/// The status when a reconciliation stopped half-way: what runs goes on running, and the reason is
/// there to be read.
pub fn interrupted(
    old: &CurveClusterStatus,
    error: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> CurveClusterStatus {
    let mut status = old.clone();
    if status.phase.is_empty() {
        status.phase = "Pending".into();
    }
    let state = ConditionState::yes("ReconcileError", error);
    set_condition(&mut status.conditions, "Progressing", state, generation, now);
    status
}

/// The status of a cluster that is being deleted.
pub fn deleting(
    old: &CurveClusterStatus,
    waiting_for: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> CurveClusterStatus {
    let mut status = CurveClusterStatus {
        phase: "Deleting".into(),
        observed_generation: generation,
        ..old.clone()
    };
    let state = ConditionState::yes("Deleting", waiting_for);
    set_condition(&mut status.conditions, "Progressing", state, generation, now);
    status
}

fn take_engine(status: &mut CurveClusterStatus, engine: &ClusterStatus, inputs: &StatusInputs<'_>) {
    status.health = match engine.health() {
        Health::Ok => "OK",
        Health::Warn => "Warn",
        Health::Error => "Error",
        Health::Unknown => "Unknown",
    }
    .into();
    status.version = engine.version.clone();
    if let Ok(id) = uuid::Uuid::from_slice(&engine.cluster_id) {
        status.cluster_id = id.to_string();
    }
    let in_use = || engine.devices.iter().filter(|device| !device.out);
    let capacity: u64 = in_use().map(|device| device.capacity).sum();
    let used: u64 = in_use().map(|device| device.used).sum();
    status.capacity = quantity(capacity);
    status.used = match capacity {
        0 => String::new(),
        _ => format!("{}%", used.saturating_mul(100).div_ceil(capacity)),
    };
    let counts = health::copysets(engine);
    status.copysets = (counts != CopysetCounts::default()).then_some(counts);
    status.down = health::down(engine)
        .into_iter()
        .map(|(name, silent_ms)| {
            // The time first seen stays: a device that was silent when the metadata service
            // restarted would otherwise seem to have failed just then.
            let seen = inputs.old.down.get(&name).cloned();
            let silent = SignedDuration::from_millis(silent_ms.min(i64::MAX as u64) as i64);
            let since = inputs.now.checked_sub(silent).unwrap_or(inputs.now);
            (name, seen.unwrap_or(Time(whole_seconds(since))))
        })
        .collect();
}

fn disks(cluster: &ValidatedCluster, inputs: &StatusInputs<'_>) -> String {
    let wanted = wanted_chunkservers(cluster);
    let serving = match inputs.engine {
        Ok(engine) => {
            let up = health::up(engine);
            wanted.iter().filter(|name| up.contains(*name)).count()
        }
        Err(_) => 0,
    };
    format!("{serving}/{}", wanted.len())
}

fn wanted_chunkservers(cluster: &ValidatedCluster) -> Vec<String> {
    let sets = cluster.node_sets.iter();
    sets.flat_map(|set| (0..set.count).map(|ordinal| cluster.pod_name(set, ordinal))).collect()
}

fn node_sets(cluster: &ValidatedCluster, inputs: &StatusInputs<'_>) -> Vec<NodeSetStatus> {
    let describe = |set| {
        let name = cluster.set_name(set);
        let live = inputs.stateful_sets.iter().find(|live| live.name_any() == name);
        NodeSetStatus {
            name: set.role.suffix().to_owned(),
            count: set.count as i32,
            ready: live.and_then(|s| s.status.as_ref()?.ready_replicas).unwrap_or(0),
            updated: live.map_or(0, |live| rollout::updated_pods(live, inputs.pods) as i32),
        }
    };
    cluster.node_sets.iter().map(describe).collect()
}

fn available(inputs: &StatusInputs<'_>) -> ConditionState {
    let engine = match inputs.engine {
        Ok(engine) => engine,
        Err(error) if inputs.old.cluster_id.is_empty() => {
            return ConditionState::no("Starting", format!("no metadata service yet: {error}"));
        }
        Err(error) => {
            let message = format!("the metadata service does not answer: {error}");
            return ConditionState::no("MdsUnreachable", message);
        }
    };
    let CopysetCounts { whole, degraded, unavailable } = health::copysets(engine);
    let all = whole + degraded + unavailable;
    if unavailable > 0 {
        let message = format!("{unavailable} of {all} copysets have no quorum");
        return ConditionState::no("CopysetsUnavailable", message);
    }
    if all == 0 {
        let up = health::up(engine).len();
        let message = format!("no pool holds data yet; {up} chunkservers are up");
        return ConditionState::no("NoPoolYet", message);
    }
    ConditionState::yes("Serving", format!("{all} copysets serve"))
}

fn progressing(cluster: &ValidatedCluster, inputs: &StatusInputs<'_>) -> ConditionState {
    if !inputs.shortages.is_empty() {
        return ConditionState::yes("NotEnoughNodes", inputs.shortages.join("; "));
    }
    match inputs.rollout {
        RolloutStep::Done => {}
        RolloutStep::Settling => {
            return ConditionState::yes("Applying", "the StatefulSets are being updated");
        }
        RolloutStep::Restart { pod } => {
            return ConditionState::yes("RollingUpdate", format!("restarting {pod}"));
        }
        RolloutStep::Wait { reason } => {
            return ConditionState::yes("WaitingForHealth", format!("update waits: {reason}"));
        }
    }
    let registered = inputs.engine.as_ref().map(health::registered).unwrap_or_default();
    let wanted = wanted_chunkservers(cluster);
    let missing: Vec<&str> =
        wanted.iter().filter(|name| !registered.contains(*name)).map(String::as_str).collect();
    match (inputs.engine, missing.len()) {
        (Err(_), _) => ConditionState::yes("Starting", "the metadata service is not up"),
        (Ok(_), 0) => ConditionState::no("UpToDate", "everything runs as the spec says"),
        (Ok(_), n) => ConditionState::yes(
            "Creating",
            format!(
                "{n} of {} chunkservers are still to join: {}",
                wanted.len(),
                missing.join(", ")
            ),
        ),
    }
}

fn degraded(
    status: &CurveClusterStatus,
    cluster: &ValidatedCluster,
    inputs: &StatusInputs<'_>,
) -> ConditionState {
    let Ok(engine) = inputs.engine else {
        return ConditionState::unknown("MdsUnreachable", "the metadata service does not answer");
    };
    let counts = health::copysets(engine);
    let replaced = health::replaced(engine);
    let missing = status.down.keys().any(|name| !replaced.contains(name));
    if status.health == "OK" && !missing && counts.degraded + counts.unavailable == 0 {
        let message = format!(
            "{} copysets are whole, {} chunkservers are up",
            counts.whole,
            health::up(engine).len()
        );
        return ConditionState::no("Healthy", message);
    }
    let reason = match () {
        () if counts.unavailable > 0 => "CopysetsUnavailable",
        () if missing => "ChunkserversDown",
        () if counts.degraded > 0 => "CopysetsDegraded",
        () => "Warning",
    };
    ConditionState::yes(reason, describe_damage(status, engine, cluster))
}

/// What is wrong, with numbers, and what a person can do.
fn describe_damage(
    status: &CurveClusterStatus,
    engine: &ClusterStatus,
    cluster: &ValidatedCluster,
) -> String {
    let mut parts: Vec<String> = Vec::new();
    let replaced = health::replaced(engine);
    for (name, since) in status.down.iter().filter(|(name, _)| !replaced.contains(*name)) {
        parts.push(format!("chunkserver {name} is down since {}", clock_time(since.0)));
    }
    let CopysetCounts { whole, degraded, unavailable } = health::copysets(engine);
    let all = whole + degraded + unavailable;
    if unavailable > 0 {
        parts.push(format!("{unavailable} of {all} copysets have no quorum"));
    }
    if degraded > 0 {
        parts.push(format!("{degraded} of {all} copysets have fewer replicas than wanted"));
        if !status.down.is_empty() {
            parts.push(format!(
                "after {} s without it they are made anew on other hosts that have room: add one \
                 or bring it back",
                cluster.out_after.as_secs()
            ));
        }
    }
    parts.extend(engine.messages.iter().cloned());
    parts.join("; ")
}

/// Hours and minutes, UTC; events and conditions are read on the day they happen.
fn clock_time(time: Timestamp) -> String {
    time.strftime("%H:%M:%S UTC").to_string()
}

fn phase(
    status: &CurveClusterStatus,
    available: &ConditionState,
    progressing: &ConditionState,
    inputs: &StatusInputs<'_>,
) -> &'static str {
    if available.is_true() && !progressing.is_true() {
        "Ready"
    } else if status.cluster_id.is_empty() && !inputs.shortages.is_empty() {
        "Pending"
    } else {
        "Progressing"
    }
}

/// Bytes as people write them in a spec.
pub fn quantity(bytes: u64) -> String {
    curve_types::ByteSize(bytes).to_string().replace(' ', "").replace("iB", "i")
}

/// The same without loss, for objects: with a unit only where it divides.
pub fn exact_quantity(bytes: u64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20)];
    let fitting = units.iter().find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    fitting.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// The conditions by type, for comparing.
fn reasons(conditions: &[Condition]) -> BTreeMap<&str, &Condition> {
    conditions.iter().map(|condition| (condition.type_.as_str(), condition)).collect()
}

#[cfg(test)]
mod tests;
