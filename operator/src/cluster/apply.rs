//! Makes the API server hold what the build step wants, by server-side apply. Decides nothing,
//! except that what is not the cluster's is left alone.

use std::collections::BTreeSet;
use std::fmt::Debug;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use thiserror::Error;

use super::build::ClusterObjects;
use super::dereference::Observed;
use super::names::{ClusterKey, FIELD_MANAGER, FINALIZER, Foreign};
use crate::crd::{CurveCluster, CurveClusterStatus};

/// The API server refused a change.
#[derive(Debug, Error)]
pub enum ApplyError {
    #[error("apply {kind} {name}")]
    Apply { kind: String, name: String, source: kube::Error },
    #[error("read {kind} {name}")]
    Read { kind: String, name: String, source: kube::Error },
    #[error(transparent)]
    Foreign(#[from] Foreign),
    #[error("free PersistentVolume {name} for its new claim")]
    Free { name: String, source: kube::Error },
    #[error("delete {kind} {name}")]
    Delete { kind: String, name: String, source: kube::Error },
    #[error("evict pod {name}")]
    Evict { name: String, source: kube::Error },
    #[error("write the status of {name}")]
    Status { name: String, source: kube::Error },
    #[error("set the finalizer of {name}")]
    Finalizer { name: String, source: kube::Error },
}

/// Applies all objects, or nothing if one of them is there and not the cluster's.
pub async fn apply(
    client: &Client,
    key: &ClusterKey,
    objects: ClusterObjects,
    observed: &Observed,
) -> Result<(), ApplyError> {
    let ClusterObjects {
        service_accounts,
        secrets,
        services,
        volumes,
        stateful_sets,
        disruption_budgets,
        connections,
        roles,
        role_bindings,
    } = objects;
    // An equal one is not sent again, since there is one per node.
    let changed = connections.into_iter().filter(|wanted| {
        let there = observed.connections.get(&wanted.name_any());
        there.is_none_or(|there| there.data != wanted.data)
    });
    let connections: Vec<Secret> = changed.collect();

    refuse_foreign(client, key, &service_accounts, []).await?;
    refuse_foreign(client, key, &secrets, observed.secrets.values()).await?;
    refuse_foreign(client, key, &services, []).await?;
    refuse_foreign_volumes(client, key, &volumes, &observed.volumes).await?;
    refuse_foreign(client, key, &disruption_budgets, []).await?;
    refuse_foreign(client, key, &stateful_sets, &observed.stateful_sets).await?;
    refuse_foreign(client, key, &connections, observed.connections.values()).await?;
    refuse_foreign(client, key, &roles, &observed.roles).await?;
    refuse_foreign(client, key, &role_bindings, &observed.role_bindings).await?;

    apply_namespaced(client, service_accounts).await?;
    apply_namespaced(client, secrets).await?;
    apply_namespaced(client, services).await?;
    apply_cluster_wide(client, volumes).await?;
    apply_namespaced(client, disruption_budgets).await?;
    apply_namespaced(client, stateful_sets).await?;
    apply_namespaced(client, connections).await?;
    apply_namespaced(client, roles).await?;
    apply_namespaced(client, role_bindings).await
}

/// Looks at what is there under the names of `wanted`, except for those `known` as the cluster's.
///
/// Names in a namespace of users may be taken by anybody; those in the operator's are made of two
/// names with a dash in between, so `a-b/c` and `a/b-c` meet. Whoever comes second is refused.
async fn refuse_foreign<'a, K>(
    client: &Client,
    key: &ClusterKey,
    wanted: &[K],
    known: impl IntoIterator<Item = &'a K>,
) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + DeserializeOwned + 'a,
{
    let known: BTreeSet<String> = known.into_iter().map(ResourceExt::name_any).collect();
    for object in wanted.iter().filter(|object| !known.contains(&object.name_any())) {
        let namespace = object.namespace().unwrap_or_default();
        let api = Api::<K>::namespaced(client.clone(), &namespace);
        refuse_one(&api, key, &object.name_any()).await?;
    }
    Ok(())
}

async fn refuse_foreign_volumes(
    client: &Client,
    key: &ClusterKey,
    wanted: &[PersistentVolume],
    known: &[PersistentVolume],
) -> Result<(), ApplyError> {
    let known: BTreeSet<String> = known.iter().map(ResourceExt::name_any).collect();
    let api = Api::<PersistentVolume>::all(client.clone());
    for volume in wanted.iter().filter(|volume| !known.contains(&volume.name_any())) {
        refuse_one(&api, key, &volume.name_any()).await?;
    }
    Ok(())
}

async fn refuse_one<K>(api: &Api<K>, key: &ClusterKey, name: &str) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let read = |source| {
        let kind = K::kind(&()).into_owned();
        ApplyError::Read { kind, name: name.into(), source }
    };
    match api.get_opt(name).await.map_err(read)? {
        Some(there) => Ok(Foreign::refuse(&there, &key.labels())?),
        None => Ok(()),
    }
}

async fn apply_namespaced<K>(client: &Client, objects: Vec<K>) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    for object in objects {
        let namespace = object.namespace().unwrap_or_default();
        apply_one(&Api::<K>::namespaced(client.clone(), &namespace), &object).await?;
    }
    Ok(())
}

async fn apply_cluster_wide<K>(client: &Client, objects: Vec<K>) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    for object in objects {
        apply_one(&Api::<K>::all(client.clone()), &object).await?;
    }
    Ok(())
}

async fn apply_one<K>(api: &Api<K>, object: &K) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = object.name_any();
    let manager = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(&name, &manager, &Patch::Apply(object)).await {
        Ok(_) => Ok(()),
        Err(source) => Err(ApplyError::Apply { kind: K::kind(&()).into_owned(), name, source }),
    }
}

/// Makes local volumes whose claim was deleted ready for the claim of the same name that comes
/// next: this is how a cluster that is created again finds its data.
pub async fn free_released_volumes(
    client: &Client,
    volumes: &[PersistentVolume],
) -> Result<(), ApplyError> {
    let api = Api::<PersistentVolume>::all(client.clone());
    for volume in volumes {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase != Some("Released") {
            continue;
        }
        let name = volume.name_any();
        // The claim's identity, not its name: whoever recreates the claim shall have the volume.
        let patch = json!({
            "metadata": {"resourceVersion": volume.resource_version()},
            "spec": {"claimRef": {"uid": null, "resourceVersion": null}},
        });
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(|source| ApplyError::Free { name, source })?;
    }
    Ok(())
}

/// Asks for a pod to be stopped. Whether the disruption budget allowed it.
pub async fn evict(client: &Client, namespace: &str, name: &str) -> Result<bool, ApplyError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.evict(name, &EvictParams::default()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(false),
        Err(source) => Err(ApplyError::Evict { name: name.into(), source }),
    }
}

/// Gives up a pod with its claim and local volume, wherever they are: its StatefulSet makes it
/// anew. A claim and a volume go once nothing uses them any more, so this is repeated until then.
pub async fn abandon(
    client: &Client,
    namespace: &str,
    pod: &str,
    claim: &str,
    volume: &str,
) -> Result<(), ApplyError> {
    let background = DeleteParams::background();
    delete(
        &Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace),
        claim,
        &background,
    )
    .await?;
    delete(&Api::<PersistentVolume>::all(client.clone()), volume, &background).await?;
    // The node's kubelet will not confirm it.
    let now = DeleteParams::background().grace_period(0);
    delete(&Api::<Pod>::namespaced(client.clone(), namespace), pod, &now).await
}

async fn delete<K>(api: &Api<K>, name: &str, params: &DeleteParams) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match api.delete(name, params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => {
            Err(ApplyError::Delete { kind: K::kind(&()).into_owned(), name: name.into(), source })
        }
    }
}

/// Writes the status if it differs from what is there.
pub async fn update_status(
    client: &Client,
    cluster: &CurveCluster,
    status: &CurveClusterStatus,
) -> Result<(), ApplyError> {
    if cluster.status.as_ref() == Some(status) {
        return Ok(());
    }
    let name = cluster.name_any();
    let patch = json!({
        "apiVersion": CurveCluster::api_version(&()),
        "kind": CurveCluster::kind(&()),
        "metadata": {"name": name, "uid": cluster.uid()},
        "status": status,
    });
    api_of(client, cluster)
        .patch_status(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(patch))
        .await
        .map(drop)
        .map_err(|source| ApplyError::Status { name, source })
}

/// Sets or removes the finalizer. It has a field manager of its own, so that neither touches
/// what another controller or a person has set.
pub async fn set_finalizer(
    client: &Client,
    cluster: &CurveCluster,
    present: bool,
) -> Result<(), ApplyError> {
    let name = cluster.name_any();
    let finalizers: &[&str] = if present { &[FINALIZER] } else { &[] };
    let patch = json!({
        "apiVersion": CurveCluster::api_version(&()),
        "kind": CurveCluster::kind(&()),
        // With its uid the patch can never bring a deleted object back.
        "metadata": {"name": name, "uid": cluster.uid(), "finalizers": finalizers},
    });
    let manager = PatchParams::apply("curve-operator-finalizer").force();
    match api_of(client, cluster).patch(&name, &manager, &Patch::Apply(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if !present && status.code == 404 => Ok(()),
        Err(source) => Err(ApplyError::Finalizer { name, source }),
    }
}

fn api_of(client: &Client, cluster: &CurveCluster) -> Api<CurveCluster> {
    Api::namespaced(client.clone(), &cluster.namespace().unwrap_or_default())
}
