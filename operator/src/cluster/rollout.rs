//! Decides which pod to restart next after a change of the spec. Pure.
//!
//! One pod at a time, the next only when every pod is ready and the cluster is whole again. A pod
//! that cannot start (image missing, crash loop) is replaced at once: it serves nothing, and
//! waiting for it would make a mistake in the spec impossible to correct. A pod that was updated
//! and is not ready stops everything, however long that takes: the spec is the likely cause, and
//! what rebuilds its data elsewhere must not let the same spec take the next pod.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::health::{self, Engine};

/// Time between a pod's becoming ready and the next restart. Longer than the metadata service
/// takes to notice a silent chunkserver, so that its "whole" is not a view from before.
const SETTLE: SignedDuration = SignedDuration::from_secs(15);
/// A chunkserver that was silent for so long before its pod was made was dead before the spec
/// changed, say of its disk: more than the old pod takes to stop and the new one to be made.
const DEAD_BEFORE: SignedDuration = SignedDuration::from_secs(180);
/// What kubelet says of a container that only another spec can help.
const HOPELESS: [&str; 8] = [
    "ErrImagePull",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
];
const REVISION_LABEL: &str = "controller-revision-hash";

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolloutStep {
    /// Every pod runs the current spec.
    Done,
    /// The StatefulSet controller has not yet seen the current template.
    Settling,
    /// Evict this pod; its StatefulSet starts it anew.
    Restart { pod: String },
    /// Some pods are outdated, and nothing may be restarted yet.
    Wait { reason: String },
}

/// The next step for the pods of `sets`, which come in the order of update. `homeless` are the pods
/// whose node is away, which no spec is to blame for.
pub fn plan_rollout(
    sets: &[StatefulSet],
    pods: &[Pod],
    engine: &Engine,
    homeless: &BTreeSet<String>,
    now: Timestamp,
) -> RolloutStep {
    let views: Vec<PodView> = sets.iter().flat_map(|set| views(set, pods)).collect();
    if sets.iter().any(|set| !is_observed(set)) {
        return RolloutStep::Settling;
    }
    let mut outdated: Vec<&PodView> = views.iter().filter(|pod| !pod.updated).collect();
    if outdated.is_empty() {
        return RolloutStep::Done;
    }
    if let Some(pod) = outdated.iter().find(|pod| pod.stuck && !pod.terminating) {
        return RolloutStep::Restart { pod: pod.name.clone() };
    }
    let replaced = engine.as_ref().map(health::replaced).unwrap_or_default();
    let silences = engine.as_ref().map(health::down).unwrap_or_default();
    let was_dead = |pod: &PodView| {
        let silent = silences.get(&pod.name).map(|ms| SignedDuration::from_millis(*ms as i64));
        let age = pod.made.map(|made| now.duration_since(made));
        silent.zip(age).is_some_and(|(silent, age)| silent > age + DEAD_BEFORE)
    };
    let done_without = |pod: &PodView| {
        let blameless = !pod.updated || homeless.contains(&pod.name) || was_dead(pod);
        replaced.contains(&pod.name) && blameless
    };
    // Before the health of the cluster, which only tells the consequence.
    let missing: Vec<PodView> = sets.iter().flat_map(|set| missing(set, &views)).collect();
    let mut updated = views.iter().chain(&missing).filter(|pod| pod.updated);
    if let Some(pod) = updated.find(|pod| pod.ready_since.is_none() && !done_without(pod)) {
        return wait(format!("{} has the current spec and is not ready", pod.name));
    }
    let status = match engine {
        Ok(status) => status,
        Err(error) => return wait(format!("the metadata service does not answer: {error}")),
    };
    if let Some(reason) = health::reason_not_to_stop(status) {
        return wait(reason);
    }
    let mut needed = views.iter().filter(|pod| !done_without(pod));
    if let Some(reason) = needed.find_map(|pod| pod.unsettled(now)) {
        return wait(reason);
    }
    // The leader of the metadata service last: each restart of a leader costs an election.
    let leader = status.mds.iter().find(|mds| mds.leader).map(|mds| mds.name.as_str());
    outdated.sort_by_key(|pod| (pod.order, leader == Some(pod.name.as_str())));
    // One on a node that is away stops only when the node is back.
    match outdated.iter().find(|pod| !pod.terminating) {
        Some(pod) => RolloutStep::Restart { pod: pod.name.clone() },
        None => wait(format!("{} is stopping", outdated[0].name)),
    }
}

/// Names of pods of `set` that run its current revision.
pub fn updated_pods(set: &StatefulSet, pods: &[Pod]) -> usize {
    views(set, pods).iter().filter(|pod| pod.updated && !pod.terminating).count()
}

fn wait(reason: impl Into<String>) -> RolloutStep {
    RolloutStep::Wait { reason: reason.into() }
}

struct PodView {
    name: String,
    made: Option<Timestamp>,
    /// Name of the set for sorting: the metadata service before chunkservers.
    order: bool,
    updated: bool,
    terminating: bool,
    stuck: bool,
    ready_since: Option<Timestamp>,
}

impl PodView {
    fn unsettled(&self, now: Timestamp) -> Option<String> {
        match self.ready_since {
            _ if self.terminating => Some(format!("{} is stopping", self.name)),
            None => Some(format!("{} is not ready", self.name)),
            Some(since) if now.duration_since(since) < SETTLE => {
                Some(format!("{} has just become ready", self.name))
            }
            Some(_) => None,
        }
    }
}

/// Whether the StatefulSet controller has seen the current template.
fn is_observed(set: &StatefulSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation);
    observed.is_some() && observed >= set.metadata.generation
}

fn views(set: &StatefulSet, pods: &[Pod]) -> Vec<PodView> {
    let revision = set.status.as_ref().and_then(|status| status.update_revision.as_ref());
    let mine = pods.iter().filter(|pod| {
        pod.owner_references().iter().any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
    });
    let view = |pod: &Pod| PodView {
        name: pod.name_any(),
        made: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        order: is_node_set(set),
        updated: pod.labels().get(REVISION_LABEL) == revision,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        stuck: is_stuck(pod),
        ready_since: ready_since(pod),
    };
    let mut views: Vec<PodView> = mine.map(view).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

/// Pods that `set` should have and has not: the next to be made, by the current template.
fn missing(set: &StatefulSet, views: &[PodView]) -> Vec<PodView> {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
    let names = (0..wanted).map(|ordinal| format!("{}-{ordinal}", set.name_any()));
    let missing = names.filter(|name| views.iter().all(|pod| pod.name != *name));
    let view = |name| PodView {
        name,
        made: None,
        order: is_node_set(set),
        updated: true,
        terminating: false,
        stuck: false,
        ready_since: None,
    };
    missing.map(view).collect()
}

fn is_node_set(set: &StatefulSet) -> bool {
    set.labels().contains_key(super::names::LABEL_NODE_SET)
}

/// When the pod became ready, if it is.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0))
}

/// Whether a container waits for something that will not come by itself.
fn is_stuck(pod: &Pod) -> bool {
    let containers =
        pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    let unscheduled = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|c| c.type_ == "PodScheduled" && c.status == "False");
    unscheduled || waiting.into_iter().any(|reason| HOPELESS.contains(&reason))
}

#[cfg(test)]
mod tests;
