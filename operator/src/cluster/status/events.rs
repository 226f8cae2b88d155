//! Events from the difference of two statuses: each change is told once, also when the operator
//! restarts in between.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{clock_time, reasons};
use crate::crd::{CopysetCounts, CurveClusterStatus};

/// Something a person should hear about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Notice {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

/// Condition reasons that are worth a warning when they come up.
const ALARMS: [(&str, &str); 9] = [
    ("Progressing", "ReconcileError"),
    ("Progressing", "NotEnoughNodes"),
    ("Progressing", "PlacementMisfit"),
    ("Progressing", "WaitingForHealth"),
    ("Progressing", "InvalidSpec"),
    ("Available", "MdsUnreachable"),
    ("Available", "CopysetsUnavailable"),
    ("Degraded", "PoolFillingUp"),
    ("Degraded", "PoolNearlyFull"),
];

/// The events that lead from `old` to `new`.
pub fn plan_events(old: &CurveClusterStatus, new: &CurveClusterStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    let degraded = reasons(&new.conditions).get("Degraded").map(|c| c.message.clone());
    for (name, since) in new.down.iter().filter(|(name, _)| !old.down.contains_key(*name)) {
        let detail = degraded.clone().unwrap_or_default();
        let message = format!(
            "chunkserver {name} is down since {}{}",
            clock_time(since.0),
            detail
                .strip_prefix(&format!("chunkserver {name} is down since {}", clock_time(since.0)))
                .map_or_else(|| format!("; {detail}"), ToOwned::to_owned)
        );
        notices.push(Notice::warning("ChunkserverDown", message));
    }
    for name in old.down.keys().filter(|name| !new.down.contains_key(*name)) {
        notices.push(Notice::normal("ChunkserverUp", format!("chunkserver {name} is back")));
    }
    notices.extend(copyset_change(old, new));
    notices.extend(alarms(old, new));
    if new.phase == "Ready" && old.phase != "Ready" {
        let message = format!("{} chunkservers serve, {} in all", new.disks, new.capacity);
        notices.push(Notice::normal("Ready", message));
    }
    notices
}

fn copyset_change(old: &CurveClusterStatus, new: &CurveClusterStatus) -> Option<Notice> {
    let damaged = |counts: &CopysetCounts| counts.degraded + counts.unavailable;
    let (before, after) = (old.copysets.unwrap_or_default(), new.copysets?);
    let all = after.whole + damaged(&after);
    if damaged(&before) == 0 && damaged(&after) > 0 {
        let CopysetCounts { degraded, unavailable, .. } = after;
        return Some(Notice::warning(
            "CopysetsDegraded",
            format!(
                "{degraded} of {all} copysets have fewer replicas than wanted, {unavailable} have \
                 no quorum"
            ),
        ));
    }
    if damaged(&before) > 0 && damaged(&after) == 0 {
        let gone: Vec<&str> = new.down.keys().map(String::as_str).collect();
        let rebuilt = match gone.is_empty() {
            true => String::new(),
            false => format!("; what {} held was rebuilt on others", gone.join(", ")),
        };
        let message = format!("all {all} copysets are whole again{rebuilt}");
        return Some(Notice::normal("CopysetsWhole", message));
    }
    None
}

fn alarms(old: &CurveClusterStatus, new: &CurveClusterStatus) -> Vec<Notice> {
    let (before, after) = (reasons(&old.conditions), reasons(&new.conditions));
    let has = |condition: Option<&&Condition>, reason: &str| {
        condition.is_some_and(|condition| condition.reason == reason)
    };
    ALARMS
        .iter()
        .filter(|(kind, reason)| has(after.get(kind), reason) && !has(before.get(kind), reason))
        .map(|(kind, reason)| Notice::warning(reason, after[kind].message.clone()))
        .collect()
}
