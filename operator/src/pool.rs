//! Controller of `CurvePool`: makes the pool in the metadata service and reports on it.
//!
//! The objects of this controller live in the metadata service, not in Kubernetes, so build and
//! apply are one call; deciding is in `plan`.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use thiserror::Error;

use crate::api::{ApiError, Target};
use crate::cluster;
use crate::cluster::names::{ClusterKey, FIELD_MANAGER};
use crate::cluster::status::Notice;
use crate::context::Context;
use crate::crd::{CurveCluster, CurvePool, CurvePoolStatus};
use plan::{Outcome, pool_spec, summarize};

/// Keeps a CurvePool until its pool is gone from the metadata service.
const FINALIZER: &str = "curve.io/pool";
/// Time between two looks at a pool.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
const LOOK_AGAIN_SOON: Duration = Duration::from_secs(3);

/// A reconciliation that stopped half-way; it is tried again.
#[derive(Debug, Error)]
pub enum PoolError {
    #[error("read CurveCluster {name}")]
    ReadCluster { name: String, source: kube::Error },
    #[error("set the finalizer of CurvePool {name}")]
    Finalizer { name: String, source: kube::Error },
    #[error("write the status of CurvePool {name}")]
    Status { name: String, source: kube::Error },
}

/// Brings one pool closer to its spec.
pub async fn reconcile(pool: Arc<CurvePool>, context: Arc<Context>) -> Result<Action, PoolError> {
    let client = &context.client;
    let deleting = pool.metadata.deletion_timestamp.is_some();
    let has_finalizer = pool.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    if deleting && !has_finalizer {
        return Ok(Action::await_change());
    }
    if !deleting && !has_finalizer {
        set_finalizer(client, &pool, true).await?;
    }
    let cluster = find_cluster(client, &pool).await?;
    let outcome = match &cluster {
        None => Outcome::NoCluster,
        Some(cluster) if deleting => delete_pool(&pool, cluster, &context).await,
        Some(cluster) => create_pool(&pool, cluster, &context).await,
    };
    if deleting && matches!(outcome, Outcome::NoCluster | Outcome::Deleted) {
        set_finalizer(client, &pool, false).await?;
        return Ok(Action::await_change());
    }
    let old = pool.status.clone().unwrap_or_default();
    let generation = pool.metadata.generation;
    let status = summarize(&pool, &old, &outcome, generation, Timestamp::now());
    let settled = status.phase == "Ready";
    if status.phase != old.phase {
        context.publish(&pool.object_ref(&()), "Reconcile", &notice(&status)).await;
    }
    update_status(client, &pool, &status).await?;
    Ok(Action::requeue(if settled { LOOK_AGAIN } else { LOOK_AGAIN_SOON }))
}

fn notice(status: &CurvePoolStatus) -> Vec<Notice> {
    let message = status.conditions.first().map(|c| c.message.clone()).unwrap_or_default();
    match status.phase.as_str() {
        "Ready" => vec![Notice::normal("PoolReady", message)],
        "Failed" => vec![Notice::warning("PoolFailed", message)],
        "Deleting" => vec![Notice::warning("PoolDeleting", message)],
        _ => Vec::new(),
    }
}

async fn find_cluster(
    client: &Client,
    pool: &CurvePool,
) -> Result<Option<CurveCluster>, PoolError> {
    let namespace = pool.namespace().unwrap_or_default();
    let api: Api<CurveCluster> = Api::namespaced(client.clone(), &namespace);
    let name = &pool.spec.cluster;
    api.get_opt(name).await.map_err(|source| PoolError::ReadCluster { name: name.clone(), source })
}

async fn service_of(cluster: &CurveCluster, context: &Context) -> Result<Target, Outcome> {
    let target = cluster::find_target(cluster, context).await;
    target.map_err(|error| Outcome::Unreachable(curve_wire::with_causes(&error)))
}

async fn create_pool(pool: &CurvePool, cluster: &CurveCluster, context: &Context) -> Outcome {
    let target = match service_of(cluster, context).await {
        Ok(target) => target,
        Err(outcome) => return outcome,
    };
    match context.api.create_pool(&target, &pool_spec(pool)).await {
        Ok(()) => {}
        Err(ApiError::Unreachable(reason)) => return Outcome::Unreachable(reason),
        Err(ApiError::Refused(reason)) => return Outcome::Refused(reason),
    }
    match context.api.status(&target).await {
        Ok(status) => Outcome::Created(Box::new(status)),
        Err(error) => Outcome::Unreachable(error.to_string()),
    }
}

async fn delete_pool(pool: &CurvePool, cluster: &CurveCluster, context: &Context) -> Outcome {
    if cluster.metadata.deletion_timestamp.is_some() {
        // The pool goes, or stays, with its cluster.
        return Outcome::NoCluster;
    }
    let target = match service_of(cluster, context).await {
        Ok(target) => target,
        Err(outcome) => return outcome,
    };
    match context.api.delete_pool(&target, &pool.name_any()).await {
        Ok(()) => Outcome::Deleted,
        Err(ApiError::Unreachable(reason)) => Outcome::Unreachable(reason),
        Err(ApiError::Refused(reason)) => Outcome::Refused(reason),
    }
}

async fn set_finalizer(client: &Client, pool: &CurvePool, present: bool) -> Result<(), PoolError> {
    let name = pool.name_any();
    let finalizers: &[&str] = if present { &[FINALIZER] } else { &[] };
    let patch = json!({
        "apiVersion": CurvePool::api_version(&()),
        "kind": CurvePool::kind(&()),
        "metadata": {"name": name, "uid": pool.uid(), "finalizers": finalizers},
    });
    let manager = PatchParams::apply("curve-operator-finalizer").force();
    match api_of(client, pool).patch(&name, &manager, &Patch::Apply(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if !present && status.code == 404 => Ok(()),
        Err(source) => Err(PoolError::Finalizer { name, source }),
    }
}

async fn update_status(
    client: &Client,
    pool: &CurvePool,
    status: &CurvePoolStatus,
) -> Result<(), PoolError> {
    if pool.status.as_ref() == Some(status) {
        return Ok(());
    }
    let name = pool.name_any();
    let patch = json!({
        "apiVersion": CurvePool::api_version(&()),
        "kind": CurvePool::kind(&()),
        "metadata": {"name": name, "uid": pool.uid()},
        "status": status,
    });
    let manager = PatchParams::apply(FIELD_MANAGER).force();
    api_of(client, pool)
        .patch_status(&name, &manager, &Patch::Apply(patch))
        .await
        .map(drop)
        .map_err(|source| PoolError::Status { name, source })
}

fn api_of(client: &Client, pool: &CurvePool) -> Api<CurvePool> {
    Api::namespaced(client.clone(), &pool.namespace().unwrap_or_default())
}

/// Names a pool's cluster, for waking the pool up when its cluster changes.
pub fn cluster_of(pool: &CurvePool) -> ClusterKey {
    ClusterKey { namespace: pool.namespace().unwrap_or_default(), name: pool.spec.cluster.clone() }
}
