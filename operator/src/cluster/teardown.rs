//! Takes a deleted CurveCluster apart.
//!
//! Retain: processes stop (the garbage collector follows the owner references), connection
//! Secrets and the roles over them go; data, claims, volumes and keys stay. Destroy: when nothing
//! uses the cluster and every process has stopped, a Job on each node erases the directories, then
//! claims, volumes and keys go. `plan_teardown` decides, `carry_out` does; both are repeated until
//! done.

mod erase;

use std::collections::BTreeSet;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::dereference::Observed;
use super::names::{ClusterKey, FIELD_MANAGER};
use crate::crd::{CurveCluster, DeletionPolicy};

pub use erase::{EraseTarget, build_erase_job, erase_targets};

/// CSI driver whose volumes live on Curve clusters.
const BLOCK_DRIVER: &str = "block.csi.curve.io";

/// The API server refused a step of a deletion.
#[derive(Debug, Error)]
#[error("{step}")]
pub struct TeardownError {
    step: String,
    source: kube::Error,
}

/// What is there besides `Observed`, read for a deletion only.
#[derive(Debug, Default)]
pub struct Leftovers {
    pub claims: Vec<PersistentVolumeClaim>,
    pub jobs: Vec<Job>,
    /// Names of PersistentVolumes of users that lie on this cluster.
    pub users: Vec<String>,
}

/// One round of a deletion: what to do, then what to wait for. Nothing to wait for: it is done.
#[derive(Debug, Default, PartialEq)]
pub struct TeardownPlan {
    pub delete_stateful_sets: Vec<String>,
    pub delete_role_bindings: Vec<String>,
    pub delete_roles: Vec<String>,
    pub delete_connections: Vec<String>,
    pub erase: Vec<EraseTarget>,
    pub delete_claims: Vec<String>,
    pub delete_volumes: Vec<String>,
    pub delete_secrets: Vec<String>,
    pub delete_jobs: Vec<String>,
    pub waiting_for: Option<String>,
}

/// Reads what only a deletion looks at.
pub async fn read_leftovers(
    client: &Client,
    key: &ClusterKey,
    cluster_id: &str,
    operator_namespace: &str,
) -> Result<Leftovers, TeardownError> {
    let mine = ListParams::default().labels(&key.selector());
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
    let jobs: Api<Job> = Api::namespaced(client.clone(), operator_namespace);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volumes = volumes.list(&ListParams::default()).await.map_err(at("list volumes"))?;
    let handle = format!("1/{cluster_id}/");
    let on_this_cluster = volumes.items.iter().filter(|volume| {
        let source = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        source
            .is_some_and(|csi| csi.driver == BLOCK_DRIVER && csi.volume_handle.starts_with(&handle))
    });
    Ok(Leftovers {
        claims: claims.list(&mine).await.map_err(at("list claims"))?.items,
        jobs: jobs.list(&mine).await.map_err(at("list erase jobs"))?.items,
        users: on_this_cluster.map(ResourceExt::name_any).collect(),
    })
}

/// Decides one round.
pub fn plan_teardown(
    cluster: &CurveCluster,
    key: &ClusterKey,
    observed: &Observed,
    leftovers: &Leftovers,
) -> TeardownPlan {
    let mut plan = TeardownPlan::default();
    let destroy = cluster.spec.deletion_policy == DeletionPolicy::Destroy;
    if destroy && !leftovers.users.is_empty() {
        plan.waiting_for = Some(format!(
            "{} PersistentVolumes still lie on this cluster ({}): delete them, or set \
             deletionPolicy to Retain",
            leftovers.users.len(),
            leftovers.users.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        ));
        return plan;
    }
    plan.delete_stateful_sets = observed.stateful_sets.iter().map(ResourceExt::name_any).collect();
    plan.delete_role_bindings = observed.role_bindings.iter().map(ResourceExt::name_any).collect();
    plan.delete_roles = observed.roles.iter().map(ResourceExt::name_any).collect();
    plan.delete_connections = observed.connections.keys().cloned().collect();
    if !destroy {
        return plan;
    }
    if !plan.delete_stateful_sets.is_empty() || !observed.pods.is_empty() {
        plan.waiting_for = Some(format!("{} pods are stopping", observed.pods.len()));
        return plan;
    }
    plan.delete_claims = leftovers.claims.iter().map(ResourceExt::name_any).collect();
    let (open, failed) = plan_erasure(&mut plan, key, observed, leftovers);
    if !open.is_empty() || !plan.delete_claims.is_empty() || !failed.is_empty() {
        let mut parts = Vec::new();
        if !open.is_empty() {
            let nodes: Vec<String> = open.into_iter().collect();
            parts.push(format!("data is being erased on {}", nodes.join(", ")));
        }
        parts.extend(failed);
        if parts.is_empty() {
            parts.push("claims are being deleted".into());
        }
        plan.waiting_for = Some(parts.join("; "));
        return plan;
    }
    plan.delete_volumes = observed.volumes.iter().map(ResourceExt::name_any).collect();
    plan.delete_secrets = observed.secrets.keys().cloned().collect();
    plan.delete_jobs = leftovers.jobs.iter().map(ResourceExt::name_any).collect();
    plan
}

/// Adds the erase Jobs that are missing; gives the nodes where erasing is not over, and sentences
/// about Jobs that failed.
fn plan_erasure(
    plan: &mut TeardownPlan,
    key: &ClusterKey,
    observed: &Observed,
    leftovers: &Leftovers,
) -> (BTreeSet<String>, Vec<String>) {
    let (mut open, mut failed) = (BTreeSet::new(), Vec::new());
    let known: BTreeSet<String> = observed.nodes.iter().map(ResourceExt::name_any).collect();
    for target in erase_targets(key, &observed.volumes) {
        if !known.contains(&target.node) {
            // A node that left the cluster took its disks along.
            continue;
        }
        let job = leftovers.jobs.iter().find(|job| job.name_any() == target.job_name(key));
        let status = job.and_then(|job| job.status.as_ref());
        if job.is_none() {
            open.insert(target.node.clone());
            plan.erase.push(target);
        } else if status.and_then(|status| status.succeeded).unwrap_or(0) > 0 {
            // Erased.
        } else if status.and_then(|status| status.failed).unwrap_or(0) > erase::ATTEMPTS {
            let name = target.job_name(key);
            failed.push(format!("Job {name} could not erase on {}: see its pods", target.node));
        } else {
            open.insert(target.node);
        }
    }
    (open, failed)
}

/// Does what a plan says.
pub async fn carry_out(
    client: &Client,
    key: &ClusterKey,
    plan: &TeardownPlan,
    operator_namespace: &str,
    image: &str,
) -> Result<(), TeardownError> {
    let TeardownPlan {
        delete_stateful_sets,
        delete_role_bindings,
        delete_roles,
        delete_connections,
        erase,
        delete_claims,
        delete_volumes,
        delete_secrets,
        delete_jobs,
        waiting_for: _,
    } = plan;
    delete_all::<StatefulSet>(client, &key.namespace, delete_stateful_sets).await?;
    delete_all::<RoleBinding>(client, operator_namespace, delete_role_bindings).await?;
    delete_all::<Role>(client, operator_namespace, delete_roles).await?;
    delete_all::<Secret>(client, operator_namespace, delete_connections).await?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), operator_namespace);
    for target in erase {
        let job = build_erase_job(key, target, operator_namespace, image);
        let manager = PatchParams::apply(FIELD_MANAGER).force();
        let name = job.name_any();
        jobs.patch(&name, &manager, &Patch::Apply(&job))
            .await
            .map_err(at(format!("create erase Job {name}")))?;
    }
    delete_all::<PersistentVolumeClaim>(client, &key.namespace, delete_claims).await?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for name in delete_volumes {
        delete_one(&volumes, name).await?;
    }
    delete_all::<Secret>(client, &key.namespace, delete_secrets).await?;
    delete_all::<Job>(client, operator_namespace, delete_jobs).await
}

async fn delete_all<K>(
    client: &Client,
    namespace: &str,
    names: &[String],
) -> Result<(), TeardownError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    for name in names {
        delete_one(&api, name).await?;
    }
    Ok(())
}

async fn delete_one<K>(api: &Api<K>, name: &str) -> Result<(), TeardownError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => {
            Err(TeardownError { step: format!("delete {} {name}", K::kind(&())), source })
        }
    }
}

fn at(step: impl Into<String>) -> impl FnOnce(kube::Error) -> TeardownError {
    let step = step.into();
    move |source| TeardownError { step, source }
}

#[cfg(test)]
mod tests;
