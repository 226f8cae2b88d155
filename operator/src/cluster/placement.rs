//! Decides which node a pod with local storage belongs to. Pure.
//!
//! A binding is for good: the data lies there. So a pod is bound only to a node that is ready
//! now, nodes that should exist but are not ready are waited for rather than doubled up on, and
//! bindings made before are never changed. One exception: an MDS can start anew anywhere, since it
//! copies everything from its peers, so it does not have to wait for a node that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::names::{LABEL_HOSTNAME, LABEL_ZONE};
use super::validate::{SetRole, ValidatedSet};

/// Distinct nodes that must be used before two chunkservers of a set may share one: with fewer, a
/// pool of three replicas by host could not be formed.
const DISTINCT_NODES_MIN: u32 = curve_types::REPLICAS_MIN;

/// Node names in a message; a condition must stay readable on a cluster of a thousand nodes.
const NAMES_SHOWN: usize = 8;

/// Ordinal of a pod -> name of its node.
pub type Bindings = BTreeMap<u32, String>;

/// The result of planning one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPlacement {
    /// Old and new bindings, ordinals `0..n` without a gap.
    pub bindings: Bindings,
    /// Why `n` is less than wanted.
    pub shortage: Option<String>,
}

/// Binds every ordinal of `set` that is not yet bound, as far as `nodes` allow.
pub fn plan_placement(set: &ValidatedSet, bound: &Bindings, nodes: &[Node]) -> SetPlacement {
    let candidates: Vec<Candidate> = nodes.iter().filter_map(|n| candidate(set, n)).collect();
    let per_node_max = per_node_max(set, candidates.len());
    let mut bindings = bound.clone();
    for ordinal in 0..set.count {
        if bindings.contains_key(&ordinal) {
            continue;
        }
        let Some(node) = best_node(&candidates, &bindings, per_node_max) else { break };
        bindings.insert(ordinal, node);
    }
    let placed = (0..set.count).take_while(|ordinal| bindings.contains_key(ordinal)).count() as u32;
    let shortage = (placed < set.count).then(|| explain(set, placed, &candidates, nodes));
    bindings.retain(|ordinal, _| *ordinal < placed);
    SetPlacement { bindings, shortage }
}

/// The first pod of `set` whose node has not been ready for `patience`, or was deleted, while a
/// node without one is ready.
pub fn stranded(
    set: &ValidatedSet,
    bound: &Bindings,
    nodes: &[Node],
    patience: Duration,
    now: Timestamp,
) -> Option<u32> {
    let is_gone = |name: &String| {
        let node = nodes.iter().find(|node| node.metadata.name.as_ref() == Some(name));
        node.is_none_or(|node| !is_ready(node) && unready_for(node, now) >= patience)
    };
    let (ordinal, _) = bound.iter().find(|(_, node)| is_gone(node))?;
    let candidates: Vec<Candidate> = nodes.iter().filter_map(|n| candidate(set, n)).collect();
    best_node(&candidates, bound, per_node_max(set, candidates.len())).map(|_| *ordinal)
}

/// Whether the node is not ready, or no longer there.
pub fn is_away(name: &str, nodes: &[Node]) -> bool {
    let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name));
    !node.is_some_and(is_ready)
}

/// Since when the node's readiness is what it is; nothing if it never said.
fn unready_for(node: &Node, now: Timestamp) -> Duration {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let since =
        conditions.filter(|c| c.type_ == "Ready").filter_map(|c| c.last_transition_time.as_ref());
    let longest = since.map(|time| now.duration_since(time.0).unsigned_abs()).max();
    longest.unwrap_or_default()
}

struct Candidate {
    name: String,
    zone: String,
    ready: bool,
}

/// A node that matches, whether ready or not.
fn candidate(set: &ValidatedSet, node: &Node) -> Option<Candidate> {
    let labels = node.labels();
    let usable = obstacles(set, node).is_empty()
        && node.spec.as_ref().is_none_or(|spec| spec.unschedulable != Some(true))
        && node.metadata.deletion_timestamp.is_none()
        && labels.contains_key(LABEL_HOSTNAME);
    usable.then(|| Candidate {
        name: node.metadata.name.clone().unwrap_or_default(),
        zone: labels.get(LABEL_ZONE).cloned().unwrap_or_default(),
        ready: is_ready(node),
    })
}

/// Why the placement of `set` rules out `node`: labels that it lacks, taints that it has.
fn obstacles(set: &ValidatedSet, node: &Node) -> Vec<String> {
    let lacking = set.node_selector.iter().filter(|(key, value)| {
        let there = node.labels().get(*key);
        there != Some(*value)
    });
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let repelling = taints.filter(|taint| !repels_not(taint, &set.tolerations));
    let repelling = repelling.map(|taint| {
        let value = taint.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
        format!("taint {}{value}:{}", taint.key, taint.effect)
    });
    lacking.map(|(key, value)| format!("no label {key}={value}")).chain(repelling).collect()
}

/// Which pods of `set` would find no node at all, since its placement rules out the one that has
/// their data.
pub fn misfits(set: &ValidatedSet, bound: &Bindings, nodes: &[Node]) -> Option<String> {
    let pods = bound.iter().filter_map(|(ordinal, name)| {
        let node = nodes.iter().find(|node| node.metadata.name.as_ref() == Some(name))?;
        let obstacles = obstacles(set, node).join(", ");
        let pod = format!("{}-{ordinal} on {name} ({obstacles})", set.role.suffix());
        (!obstacles.is_empty()).then_some(pod)
    });
    let pods: Vec<String> = pods.collect();
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    let set = set.role.suffix();
    (!pods.is_empty())
        .then(|| format!("the placement of {set} rules out nodes with its data: {}", list(&pods)))
}

/// What a pod with local storage tolerates besides what the spec says: it cannot go elsewhere, so
/// evicting it from a node that comes back only costs time.
pub fn local_tolerations() -> [Toleration; 2] {
    ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(|key| Toleration {
        key: Some(key.into()),
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    })
}

/// `set` with the placement that its StatefulSet has now, if that is another one.
pub fn with_old_placement(set: &ValidatedSet, live: &StatefulSet) -> Option<ValidatedSet> {
    let pod = live.spec.as_ref()?.template.spec.as_ref()?;
    let of_the_spec = |tolerations: &[Toleration]| -> Vec<Toleration> {
        let local = local_tolerations();
        tolerations.iter().filter(|toleration| !local.contains(toleration)).cloned().collect()
    };
    let old = ValidatedSet {
        node_selector: pod.node_selector.clone().unwrap_or_default(),
        tolerations: of_the_spec(pod.tolerations.as_deref().unwrap_or_default()),
        ..set.clone()
    };
    let same =
        old.node_selector == set.node_selector && old.tolerations == of_the_spec(&set.tolerations);
    (!same).then_some(old)
}

/// Whether kubelet reports the node as ready.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether a pod with these tolerations may stay on a node with this taint. Taints that Kubernetes
/// itself sets while a node is unready do not count: readiness is looked at separately.
fn repels_not(taint: &Taint, tolerations: &[Toleration]) -> bool {
    if taint.effect == "PreferNoSchedule" || taint.key.starts_with("node.kubernetes.io/") {
        return true;
    }
    tolerations.iter().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or("");
        let exists = toleration.operator.as_deref() == Some("Exists");
        let effect = toleration.effect.as_deref().unwrap_or("");
        (key == taint.key || (key.is_empty() && exists))
            && (effect.is_empty() || effect == taint.effect)
            && (exists || toleration.value == taint.value)
    })
}

/// How many pods of the set a node may take, so that they are spread evenly over all candidates.
fn per_node_max(set: &ValidatedSet, candidates: usize) -> u32 {
    let candidates = candidates as u32;
    if set.role == SetRole::Mds || candidates < DISTINCT_NODES_MIN.min(set.count) {
        return 1;
    }
    set.count.div_ceil(candidates.max(1))
}

/// The least loaded node of the least loaded zone that is ready and not full.
fn best_node(candidates: &[Candidate], bindings: &Bindings, per_node_max: u32) -> Option<String> {
    let load = |name: &str| bindings.values().filter(|node| *node == name).count() as u32;
    let zone_load = |zone: &str| {
        candidates.iter().filter(|c| c.zone == zone).map(|c| load(&c.name)).sum::<u32>()
    };
    let open = candidates.iter().filter(|c| c.ready && load(&c.name) < per_node_max);
    let best = open.min_by_key(|c| (load(&c.name), zone_load(&c.zone), c.name.clone()))?;
    Some(best.name.clone())
}

fn explain(set: &ValidatedSet, placed: u32, candidates: &[Candidate], nodes: &[Node]) -> String {
    let waiting: Vec<&str> =
        candidates.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    let usable = candidates.len() - waiting.len();
    let matching: BTreeSet<&str> = candidates.iter().map(|c| c.name.as_str()).collect();
    let others: Vec<&str> = nodes
        .iter()
        .filter_map(|node| node.metadata.name.as_deref())
        .filter(|name| !matching.contains(name))
        .collect();
    let needed = match set.role {
        SetRole::Mds => set.count,
        SetRole::Chunkserver { .. } => set.count.min(DISTINCT_NODES_MIN),
    };
    let mut text = format!(
        "{placed} of {} pods of {} are placed: {} nodes can be used, {needed} different ones are \
         needed",
        set.count,
        set.role.suffix(),
        usable,
    );
    if !waiting.is_empty() {
        text += &format!("; waiting for {} (not ready; cordon to do without)", list(&waiting));
    }
    if !others.is_empty() {
        text += &format!("; not usable (cordoned, tainted or not selected): {}", list(&others));
    }
    text
}

/// The first few names, and how many more.
fn list(names: &[&str]) -> String {
    let shown = &names[..names.len().min(NAMES_SHOWN)];
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests;
