//! Sums up a reconciliation as the status of the CurveCluster, and the events that the change
//! from the last status deserves. Pure.

mod events;

use std::collections::BTreeMap;
use std::time::Duration;

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

/// What every status is made of, also that of a reconciliation that failed.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    pub generation: Option<i64>,
    pub old: &'a CurveClusterStatus,
    pub engine: &'a Engine,
    pub now: Timestamp,
}

/// What the status of a reconciliation that came through is made of.
#[derive(Debug)]
pub struct StatusInputs<'a> {
    pub look: Look<'a>,
    pub stateful_sets: &'a [StatefulSet],
    pub pods: &'a [Pod],
    /// Sets that have no place for all their pods.
    pub shortages: &'a [String],
    /// Sets whose placement rules out nodes with their data.
    pub misfits: &'a [String],
    /// Why the metadata service does not take `spec.scrub`.
    pub scrub_refused: Option<&'a str>,
    pub rollout: &'a RolloutStep,
}

/// The status of a cluster whose spec is valid.
pub fn summarize(cluster: &ValidatedCluster, inputs: &StatusInputs<'_>) -> CurveClusterStatus {
    let look = &inputs.look;
    let old = CurveClusterStatus {
        observed_generation: look.generation,
        node_sets: node_sets(cluster, inputs),
        ..look.old.clone()
    };
    let mut status = take_engine(old, look, Some(cluster.out_after));
    let progressing = progressing(cluster, inputs);
    status.phase = phase(&status, &progressing, inputs).into();
    set_condition(&mut status.conditions, "Progressing", progressing, look.generation, look.now);
    status
}

/// The status of a cluster whose spec cannot be carried out; what runs is left alone.
pub fn refuse(look: &Look<'_>, invalid: &Invalid) -> CurveClusterStatus {
    let old = CurveClusterStatus {
        phase: "Failed".into(),
        observed_generation: look.generation,
        ..look.old.clone()
    };
    let mut status = take_engine(old, look, None);
    let state = ConditionState::no("InvalidSpec", invalid.to_string());
    set_condition(&mut status.conditions, "Progressing", state, look.generation, look.now);
    status
}

/// The status when a reconciliation stopped half-way: what runs goes on running, and the reason is
/// there to be read.
pub fn interrupted(look: &Look<'_>, error: &str) -> CurveClusterStatus {
    let mut status = take_engine(look.old.clone(), look, None);
    status.phase = match status.phase.as_str() {
        "" | "Pending" => "Pending",
        "Ready" if is_available(&status) => "Ready",
        _ => "Progressing",
    }
    .into();
    let state = ConditionState::yes("ReconcileError", error);
    set_condition(&mut status.conditions, "Progressing", state, look.generation, look.now);
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

/// `status` with what the metadata service says now, or that it is silent, and with the conditions
/// that follow from that alone. `out_after` is absent where the spec may not be the running one.
fn take_engine(
    mut status: CurveClusterStatus,
    look: &Look<'_>,
    out_after: Option<Duration>,
) -> CurveClusterStatus {
    match look.engine {
        Ok(engine) => take_figures(&mut status, engine, look),
        Err(_) => status.health = "Unknown".into(),
    }
    if !status.node_sets.is_empty() {
        status.disks = disks(&status, look);
    }
    let degraded = degraded(&status, look, out_after);
    for (kind, state) in [("Available", available(look)), ("Degraded", degraded)] {
        set_condition(&mut status.conditions, kind, state, look.generation, look.now);
    }
    status
}

fn take_figures(status: &mut CurveClusterStatus, engine: &ClusterStatus, look: &Look<'_>) {
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
            let seen = look.old.down.get(&name).cloned();
            let silent = SignedDuration::from_millis(silent_ms.min(i64::MAX as u64) as i64);
            let since = look.now.checked_sub(silent).unwrap_or(look.now);
            (name, seen.unwrap_or(Time(whole_seconds(since))))
        })
        .collect();
}

/// Chunkservers that serve, of those that the node sets want. None is ever given up: a count only
/// grows.
fn disks(status: &CurveClusterStatus, look: &Look<'_>) -> String {
    let serving = look.engine.as_ref().map_or(0, |engine| health::up(engine).len());
    let wanted: i32 = status.node_sets.iter().map(|set| set.count).sum();
    format!("{serving}/{wanted}")
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

fn available(look: &Look<'_>) -> ConditionState {
    let engine = match look.engine {
        Ok(engine) => engine,
        Err(error) if look.old.cluster_id.is_empty() => {
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

fn is_available(status: &CurveClusterStatus) -> bool {
    reasons(&status.conditions).get("Available").is_some_and(|condition| condition.status == "True")
}

fn progressing(cluster: &ValidatedCluster, inputs: &StatusInputs<'_>) -> ConditionState {
    if !inputs.shortages.is_empty() {
        return ConditionState::yes("NotEnoughNodes", inputs.shortages.join("; "));
    }
    if !inputs.misfits.is_empty() {
        return ConditionState::yes("PlacementMisfit", inputs.misfits.join("; "));
    }
    if let Some(why) = inputs.scrub_refused {
        return ConditionState::yes("ScrubRefused", format!("spec.scrub: {why}"));
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
    let registered = inputs.look.engine.as_ref().map(health::registered).unwrap_or_default();
    let wanted = wanted_chunkservers(cluster);
    let missing: Vec<&str> =
        wanted.iter().filter(|name| !registered.contains(*name)).map(String::as_str).collect();
    match (inputs.look.engine, missing.len()) {
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
    look: &Look<'_>,
    out_after: Option<Duration>,
) -> ConditionState {
    let Ok(engine) = look.engine else {
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
    let fill = engine.pools.iter().map(|pool| pool.fill()).max().unwrap_or_default();
    let reason = match () {
        () if counts.unavailable > 0 => "CopysetsUnavailable",
        () if missing => "ChunkserversDown",
        () if counts.degraded > 0 => "CopysetsDegraded",
        () if fill == Health::Error => "PoolNearlyFull",
        () if fill == Health::Warn => "PoolFillingUp",
        () => "Warning",
    };
    ConditionState::yes(reason, describe_damage(status, engine, out_after))
}

/// What is wrong, with numbers, and what a person can do.
fn describe_damage(
    status: &CurveClusterStatus,
    engine: &ClusterStatus,
    out_after: Option<Duration>,
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
            let patience = out_after
                .map_or("recovery.outAfter".into(), |time| format!("{} s", time.as_secs()));
            parts.push(format!(
                "after {patience} without it they are made anew on other hosts that have room: add \
                 one or bring it back"
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
    progressing: &ConditionState,
    inputs: &StatusInputs<'_>,
) -> &'static str {
    if is_available(status) && !progressing.is_true() {
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
