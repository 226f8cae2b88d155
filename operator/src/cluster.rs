//! Controller of `CurveCluster`: dereference -> validate -> build -> apply -> update_status.

pub mod apply;
pub mod build;
pub mod credentials;
pub mod dereference;
pub mod health;
pub mod names;
pub mod placement;
pub mod rollout;
pub mod status;
pub mod teardown;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use curve_client::CreatePool;
use curve_wire::proto::FailureDomain;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Client, Resource, ResourceExt};
use thiserror::Error;

use crate::api::{ApiError, ClusterApi, Target};
use crate::context::Context;
use crate::crd::{CurveCluster, CurveClusterStatus};
use build::{BuildInputs, ClusterObjects};
use credentials::Credentials;
use dereference::Observed;
use health::Engine;
use names::{ClusterKey, FINALIZER, LABEL_COMPONENT, LABEL_HOSTNAME, MDS_GRPC_PORT};
use placement::{Bindings, plan_placement};
use rollout::RolloutStep;
use status::{Look, Notice, StatusInputs};
use validate::{Kept, SetRole, ValidatedCluster, ValidatedSet, ValidatedStorage};

/// Time between two looks at a cluster in which nothing changes in Kubernetes.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The same while something is being waited for.
const LOOK_AGAIN_SOON: Duration = Duration::from_secs(3);
/// Name of the pool of a cluster for which nobody made one.
const DEFAULT_POOL: &str = "default";

/// A reconciliation that stopped half-way; it is tried again.
#[derive(Debug, Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Dereference(#[from] dereference::DereferenceError),
    #[error(transparent)]
    Credentials(#[from] credentials::CredentialsError),
    #[error(transparent)]
    Apply(#[from] apply::ApplyError),
    #[error(transparent)]
    Teardown(#[from] teardown::TeardownError),
}

/// The metadata service of a cluster cannot be asked.
#[derive(Debug, Error)]
pub enum FindTargetError {
    #[error("its cluster has not started yet")]
    NotYet,
    #[error("its cluster cannot be carried out")]
    Invalid(#[from] validate::Invalid),
    #[error(transparent)]
    Dereference(#[from] dereference::DereferenceError),
    #[error(transparent)]
    Credentials(#[from] credentials::CredentialsError),
}

/// Brings one cluster closer to its spec.
pub async fn reconcile(
    cluster: Arc<CurveCluster>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let key =
        ClusterKey { namespace: cluster.namespace().unwrap_or_default(), name: cluster.name_any() };
    let client = &context.client;
    let observed = dereference::dereference(client, &key, &context.settings.namespace).await?;
    if cluster.metadata.deletion_timestamp.is_some() {
        return tear_down(&cluster, &key, &observed, &context).await;
    }
    let old = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let validated = validate::validate(&cluster, &context.settings.image).and_then(|validated| {
        validate::validate_inheritance(&validated, &observed.volume_paths())?;
        Ok(validated)
    });
    let validated = match validated {
        Ok(validated) => validated,
        Err(invalid) => {
            let engine = ask_known_engine(&cluster, &key, &observed, &context).await;
            let look = Look { generation, old: &old, engine: &engine, now: Timestamp::now() };
            let status = status::refuse(&look, &invalid);
            publish_changes(&cluster, &old, &status, &context).await?;
            return Ok(Action::requeue(LOOK_AGAIN));
        }
    };
    if !cluster.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        apply::set_finalizer(client, &cluster, true).await?;
    }
    let result = converge(&cluster, &validated, &observed, &old, &context).await;
    if let Err(error) = &result {
        let engine = ask_known_engine(&cluster, &key, &observed, &context).await;
        let look = Look { generation, old: &old, engine: &engine, now: Timestamp::now() };
        let status = status::interrupted(&look, &curve_wire::with_causes(error));
        publish_changes(&cluster, &old, &status, &context).await?;
    }
    result
}

async fn converge(
    cluster: &CurveCluster,
    validated: &ValidatedCluster,
    observed: &Observed,
    old: &CurveClusterStatus,
    context: &Context,
) -> Result<Action, ReconcileError> {
    let (validated, misfits) = fit_placement(validated, observed);
    let validated = &validated;
    let key = validated.key();
    let client = &context.client;
    let authority = credentials::ensure_authority(
        client,
        &key.namespace,
        &key.ca_secret(),
        observed.secrets.get(&key.ca_secret()),
        key.labels(),
    )
    .await?;
    let credentials = credentials::gather_credentials(&key, &authority, observed)?;
    let target = mds_target(&validated.uid, &credentials, &observed.pods);
    let mut engine = ask_engine(context.api.as_ref(), &target).await;
    if ensure_default_pool(context.api.as_ref(), &target, &engine, observed).await {
        engine = ask_engine(context.api.as_ref(), &target).await;
    }
    let scrub_refused =
        ensure_scrub_windows(context.api.as_ref(), &target, &engine, validated).await;
    let mut shortages = Vec::new();
    if let Some(ordinal) = stranded_mds(validated, observed, &engine) {
        // Nothing is applied meanwhile: that would bring the volume back where it was.
        replace_mds(cluster, validated, observed, ordinal, context).await?;
    } else {
        let bindings;
        (bindings, shortages) = place(validated, observed);
        let objects =
            build_objects(validated, observed, old, &credentials, &engine, &bindings, context);
        apply::free_released_volumes(client, &observed.volumes).await?;
        apply::apply(client, &key, objects, observed).await?;
    }
    let sets = read_back(client, &key, validated).await?;
    let now = Timestamp::now();
    let homeless = homeless_pods(validated, observed);
    let mut rollout = rollout::plan_rollout(&sets, &observed.pods, &engine, &homeless, now);
    if let RolloutStep::Restart { pod } = &rollout {
        rollout = restart(client, cluster, &key, pod, context).await?;
    }
    let inputs = StatusInputs {
        look: Look { generation: cluster.metadata.generation, old, engine: &engine, now },
        stateful_sets: &sets,
        pods: &observed.pods,
        shortages: &shortages,
        misfits: &misfits,
        scrub_refused: scrub_refused.as_deref(),
        rollout: &rollout,
    };
    let status = status::summarize(validated, &inputs);
    publish_changes(cluster, old, &status, context).await?;
    let settled = status.phase == "Ready" && status.health == "OK";
    Ok(Action::requeue(if settled { LOOK_AGAIN } else { LOOK_AGAIN_SOON }))
}

/// The node of an MDS is gone for good, its peers can do without it, and another node is free.
fn stranded_mds(validated: &ValidatedCluster, observed: &Observed, engine: &Engine) -> Option<u32> {
    let engine = engine.as_ref().ok()?;
    let set = &validated.mds;
    if !matches!(set.storage, ValidatedStorage::HostPath { .. }) {
        return None;
    }
    let bound = bound_of(validated, set, &observed.bound_nodes());
    let (patience, now) = (validated.out_after, Timestamp::now());
    let ordinal = placement::stranded(set, &bound, &observed.nodes, patience, now)?;
    let name = validated.pod_name(set, ordinal);
    // All others must be up: the quorum must not depend on the one that starts from nothing.
    let only_this_is_down = engine.mds.iter().all(|mds| mds.up != (mds.name == name));
    (engine.mds.len() as u32 == set.count && only_this_is_down).then_some(ordinal)
}

/// Gives up the data of an MDS: the pod starts anew, empty, on a node that `place` chooses once
/// its old volume is gone.
async fn replace_mds(
    cluster: &CurveCluster,
    validated: &ValidatedCluster,
    observed: &Observed,
    ordinal: u32,
    context: &Context,
) -> Result<(), ReconcileError> {
    let set = &validated.mds;
    let pod = validated.pod_name(set, ordinal);
    let volume = validated.volume_name(set, Kept::Data, ordinal);
    let there = observed.volumes.iter().find(|there| there.name_any() == volume);
    if there.is_some_and(|there| there.metadata.deletion_timestamp.is_none()) {
        let node = observed.bound_nodes().remove(&volume).unwrap_or_default();
        let message = format!("{node} is gone: {pod} starts anew on another node");
        let notice = Notice::normal("MdsReplaced", message);
        context.publish(&cluster.object_ref(&()), "Reconcile", &[notice]).await;
    }
    let claim = validated.claim_name(set, Kept::Data, ordinal);
    Ok(apply::abandon(&context.client, &validated.namespace, &pod, &claim, &volume).await?)
}

fn bound_of(
    validated: &ValidatedCluster,
    set: &ValidatedSet,
    bound_nodes: &BTreeMap<String, String>,
) -> Bindings {
    let bound = (0..set.count).filter_map(|ordinal| {
        let node = bound_nodes.get(&validated.volume_name(set, Kept::Data, ordinal))?;
        Some((ordinal, node.clone()))
    });
    bound.collect()
}

/// The cluster without the changes of placement that would leave a pod without any node, because
/// they rule out the one that has its data; and what is ruled out.
fn fit_placement(
    validated: &ValidatedCluster,
    observed: &Observed,
) -> (ValidatedCluster, Vec<String>) {
    let bound_nodes = observed.bound_nodes();
    let mut misfits = Vec::new();
    let mut fit = |set: &ValidatedSet| {
        let name = validated.set_name(set);
        let live = observed.stateful_sets.iter().find(|live| live.name_any() == name);
        let old = live.and_then(|live| placement::with_old_placement(set, live));
        let bound = bound_of(validated, set, &bound_nodes);
        // A label or taint that a node gets under an unchanged placement is no change of ours.
        match (old, placement::misfits(set, &bound, &observed.nodes)) {
            (Some(old), Some(misfit)) => {
                misfits.push(misfit);
                old
            }
            _ => set.clone(),
        }
    };
    let mds = fit(&validated.mds);
    let node_sets = validated.node_sets.iter().map(fit).collect();
    (ValidatedCluster { mds, node_sets, ..validated.clone() }, misfits)
}

/// Pods that are on a node that is away, or bound to one.
fn homeless_pods(validated: &ValidatedCluster, observed: &Observed) -> BTreeSet<String> {
    let bound_nodes = observed.bound_nodes();
    let bound = validated.sets().flat_map(|set| {
        let mut bound = bound_of(validated, set, &bound_nodes);
        bound.retain(|_, node| placement::is_away(node, &observed.nodes));
        bound.into_keys().map(|ordinal| validated.pod_name(set, ordinal))
    });
    // Storage of other kinds may bind a pod too, unknown to us.
    let on_node = observed.pods.iter().filter(|pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        node.is_some_and(|node| placement::is_away(node, &observed.nodes))
    });
    bound.chain(on_node.map(ResourceExt::name_any)).collect()
}

/// Binds pods with local storage to nodes; per set its bindings, and what is missing.
fn place(validated: &ValidatedCluster, observed: &Observed) -> (Vec<Bindings>, Vec<String>) {
    let bound_nodes = observed.bound_nodes();
    let mut shortages = Vec::new();
    let bindings = validated.sets().map(|set| {
        if !matches!(set.storage, ValidatedStorage::HostPath { .. }) {
            return Bindings::new();
        }
        let bound = bound_of(validated, set, &bound_nodes);
        let placement = plan_placement(set, &bound, &observed.nodes);
        shortages.extend(placement.shortage);
        placement.bindings
    });
    (bindings.collect(), shortages)
}

fn build_objects(
    validated: &ValidatedCluster,
    observed: &Observed,
    old: &CurveClusterStatus,
    credentials: &Credentials,
    engine: &Engine,
    bindings: &[Bindings],
    context: &Context,
) -> ClusterObjects {
    let hostname =
        |node: &Node| Some((node.name_any(), node.labels().get(LABEL_HOSTNAME)?.clone()));
    let cluster_id = match engine {
        Ok(status) => uuid::Uuid::from_slice(&status.cluster_id).ok().map(|id| id.to_string()),
        Err(_) => None,
    };
    let known = Some(&old.cluster_id).filter(|id| !id.is_empty());
    let inputs = BuildInputs {
        credentials,
        bindings,
        hostnames: &observed.nodes.iter().filter_map(hostname).collect(),
        disruptions: health::plan_disruptions(engine, known.is_some()),
        cluster_id: cluster_id.as_ref().or(known).map(String::as_str),
        operator_namespace: &context.settings.namespace,
        family: context.settings.family,
    };
    build::build(validated, &inputs)
}

/// The StatefulSets as they are after `apply`: the rollout must not judge by an older template.
async fn read_back(
    client: &Client,
    key: &ClusterKey,
    validated: &ValidatedCluster,
) -> Result<Vec<StatefulSet>, ReconcileError> {
    let observed = dereference::stateful_sets(client, key).await?;
    let wanted = validated.sets().map(|set| validated.set_name(set));
    Ok(wanted
        .filter_map(|name| observed.iter().find(|set| set.name_any() == name).cloned())
        .collect())
}

/// Addresses of the metadata service's pods: they work from anywhere that reaches pods, also
/// while cluster DNS does not.
fn mds_target(uid: &str, credentials: &Credentials, pods: &[Pod]) -> Target {
    let mds = pods.iter().filter(|pod| {
        pod.labels().get(LABEL_COMPONENT).is_some_and(|label| label == SetRole::Mds.component())
    });
    let address = |pod: &Pod| {
        let ip: std::net::IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        Some(std::net::SocketAddr::new(ip, MDS_GRPC_PORT).to_string())
    };
    Target {
        key: format!("{uid} {}", credentials.authority),
        endpoints: mds.filter_map(address).collect(),
        identity: credentials.operator.clone(),
    }
}

/// Where the metadata service of `cluster` is, for other controllers.
pub async fn find_target(
    cluster: &CurveCluster,
    context: &Context,
) -> Result<Target, FindTargetError> {
    let key = validate::validate(cluster, &context.settings.image)?.key();
    let observed =
        dereference::dereference(&context.client, &key, &context.settings.namespace).await?;
    known_target(cluster, &key, &observed)
}

/// Where the metadata service is, whatever the spec says now.
fn known_target(
    cluster: &CurveCluster,
    key: &ClusterKey,
    observed: &Observed,
) -> Result<Target, FindTargetError> {
    let name = key.ca_secret();
    let secret = observed.secrets.get(&name).ok_or(FindTargetError::NotYet)?;
    let authority = credentials::read_authority(&name, secret)?;
    let credentials = credentials::gather_credentials(key, &authority, observed)?;
    let uid = cluster.uid().unwrap_or_default();
    let target = mds_target(&uid, &credentials, &observed.pods);
    if target.endpoints.is_empty() { Err(FindTargetError::NotYet) } else { Ok(target) }
}

/// Asks the metadata service of a cluster that cannot be reconciled: its health must not seem to
/// stand still meanwhile.
async fn ask_known_engine(
    cluster: &CurveCluster,
    key: &ClusterKey,
    observed: &Observed,
    context: &Context,
) -> Engine {
    match known_target(cluster, key, observed) {
        Ok(target) => ask_engine(context.api.as_ref(), &target).await,
        Err(error) => Err(curve_wire::with_causes(&error)),
    }
}

async fn ask_engine(api: &dyn ClusterApi, target: &Target) -> Engine {
    if target.endpoints.is_empty() {
        return Err("no mds pod has an address yet".into());
    }
    api.status(target).await.map_err(|error| error.to_string())
}

/// A cluster for which nobody made a pool gets one. Whether one was made just now.
async fn ensure_default_pool(
    api: &dyn ClusterApi,
    target: &Target,
    engine: &Engine,
    observed: &Observed,
) -> bool {
    let Ok(status) = engine else { return false };
    if !status.pools.is_empty() || !observed.pools.is_empty() {
        return false;
    }
    let pool = CreatePool {
        name: DEFAULT_POOL.into(),
        replicas: curve_types::REPLICAS_MIN,
        failure_domain: FailureDomain::Host,
        device_class: String::new(),
        overcommit_percent: None,
    };
    let made = api.create_pool(target, &pool).await;
    if let Err(error) = &made {
        tracing::warn!(%error, "cannot create the default pool yet");
    }
    made.is_ok()
}

/// Sets when scrubs run, if the spec says so. Returns why the metadata service refused.
async fn ensure_scrub_windows(
    api: &dyn ClusterApi,
    target: &Target,
    engine: &Engine,
    validated: &ValidatedCluster,
) -> Option<String> {
    let (status, wanted) = (engine.as_ref().ok()?, validated.scrub.as_ref()?);
    let window_secs = wanted.window.as_secs();
    if status.scrub_schedule == wanted.schedule && status.scrub_window_secs == window_secs {
        return None;
    }
    match api.set_scrub_schedule(target, &wanted.schedule, window_secs).await {
        Ok(()) => None,
        Err(ApiError::Refused(why)) => Some(why),
        Err(error) => {
            tracing::warn!(%error, "cannot set the schedule of scrubs yet");
            None
        }
    }
}

/// Stops one outdated pod, if its disruption budget allows.
async fn restart(
    client: &Client,
    cluster: &CurveCluster,
    key: &ClusterKey,
    pod: &str,
    context: &Context,
) -> Result<RolloutStep, ReconcileError> {
    if !apply::evict(client, &key.namespace, pod).await? {
        let reason = format!("the disruption budget does not let {pod} stop");
        return Ok(RolloutStep::Wait { reason });
    }
    let notice = Notice::normal("RollingUpdate", format!("restarting {pod} with the current spec"));
    context.publish(&cluster.object_ref(&()), "Reconcile", &[notice]).await;
    Ok(RolloutStep::Restart { pod: pod.to_owned() })
}

async fn publish_changes(
    cluster: &CurveCluster,
    old: &CurveClusterStatus,
    new: &CurveClusterStatus,
    context: &Context,
) -> Result<(), ReconcileError> {
    apply::update_status(&context.client, cluster, new).await?;
    let notices = status::plan_events(old, new);
    context.publish(&cluster.object_ref(&()), "Reconcile", &notices).await;
    Ok(())
}

async fn tear_down(
    cluster: &CurveCluster,
    key: &ClusterKey,
    observed: &Observed,
    context: &Context,
) -> Result<Action, ReconcileError> {
    if !cluster.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Action::await_change());
    }
    let (client, namespace) = (&context.client, context.settings.namespace.as_str());
    let old = cluster.status.clone().unwrap_or_default();
    let leftovers = teardown::read_leftovers(client, key, &old.cluster_id, namespace).await?;
    let plan = teardown::plan_teardown(cluster, key, observed, &leftovers);
    teardown::carry_out(client, key, &plan, namespace, &context.settings.image).await?;
    if let Some(waiting_for) = &plan.waiting_for {
        let generation = cluster.metadata.generation;
        let status = status::deleting(&old, waiting_for, generation, Timestamp::now());
        publish_changes(cluster, &old, &status, context).await?;
        return Ok(Action::requeue(LOOK_AGAIN_SOON));
    }
    apply::set_finalizer(client, cluster, false).await?;
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests;
