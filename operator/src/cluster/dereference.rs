//! Reads what a reconciliation looks at besides the CurveCluster itself. Decides nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use thiserror::Error;

use super::names::{ANNOTATION_NODE, ClusterKey};
use crate::crd::CurvePool;

/// Everything that was there when the reconciliation began.
#[derive(Debug, Default)]
pub struct Observed {
    pub nodes: Vec<Node>,
    /// Local volumes of this cluster.
    pub volumes: Vec<PersistentVolume>,
    pub stateful_sets: Vec<StatefulSet>,
    pub pods: Vec<Pod>,
    /// CurvePools that refer to this cluster.
    pub pools: Vec<CurvePool>,
    /// This cluster's Secrets with keys in its namespace, by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Connection Secrets of this cluster in the operator's namespace, by name.
    pub connections: BTreeMap<String, Secret>,
    /// Who may read the connections.
    pub roles: Vec<Role>,
    pub role_bindings: Vec<RoleBinding>,
}

/// The API server did not answer a read.
#[derive(Debug, Error)]
#[error("read {what}")]
pub struct DereferenceError {
    what: &'static str,
    source: kube::Error,
}

/// Reads everything that belongs to the cluster `key`.
pub async fn dereference(
    client: &Client,
    key: &ClusterKey,
    operator_namespace: &str,
) -> Result<Observed, DereferenceError> {
    let namespace = key.namespace.as_str();
    let mine = ListParams::default().labels(&key.selector());
    let all = ListParams::default();
    let named = [key.ca_secret(), key.mds_secret(), key.chunkserver_secret(), key.admin_secret()];
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut own_secrets = BTreeMap::new();
    for name in named {
        let secret = secrets.get_opt(&name).await.map_err(at("a Secret of the cluster"))?;
        // One of somebody else is as good as none here; it is refused before anything is applied.
        let own = secret.filter(|secret| key.owns(secret));
        own_secrets.extend(own.map(|secret| (name, secret)));
    }
    let connections = Api::<Secret>::namespaced(client.clone(), operator_namespace);
    let roles = Api::namespaced(client.clone(), operator_namespace);
    let role_bindings = Api::namespaced(client.clone(), operator_namespace);
    let pools = list(Api::<CurvePool>::namespaced(client.clone(), namespace), &all, "CurvePools");
    Ok(Observed {
        nodes: list(Api::all(client.clone()), &all, "Nodes").await?,
        volumes: list(Api::all(client.clone()), &mine, "PersistentVolumes").await?,
        stateful_sets: stateful_sets(client, key).await?,
        pods: list(Api::namespaced(client.clone(), namespace), &mine, "Pods").await?,
        pools: pools.await?.into_iter().filter(|pool| pool.spec.cluster == key.name).collect(),
        secrets: own_secrets,
        connections: list(connections, &mine, "connection Secrets")
            .await?
            .into_iter()
            .map(|secret| (secret.name_any(), secret))
            .collect(),
        roles: list(roles, &mine, "Roles").await?,
        role_bindings: list(role_bindings, &mine, "RoleBindings").await?,
    })
}

/// The StatefulSets of a cluster as they are now.
pub async fn stateful_sets(
    client: &Client,
    key: &ClusterKey,
) -> Result<Vec<StatefulSet>, DereferenceError> {
    let mine = ListParams::default().labels(&key.selector());
    list(Api::namespaced(client.clone(), &key.namespace), &mine, "StatefulSets").await
}

async fn list<K>(
    api: Api<K>,
    params: &ListParams,
    what: &'static str,
) -> Result<Vec<K>, DereferenceError>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    Ok(api.list(params).await.map_err(at(what))?.items)
}

fn at(what: &'static str) -> impl Fn(kube::Error) -> DereferenceError {
    move |source| DereferenceError { what, source }
}

impl Observed {
    /// Which node each existing local volume is bound to, by the volume's name.
    pub fn bound_nodes(&self) -> BTreeMap<String, String> {
        self.volumes
            .iter()
            .filter_map(|volume| {
                let node = volume.annotations().get(ANNOTATION_NODE)?;
                Some((volume.name_any(), node.clone()))
            })
            .collect()
    }

    /// The directory of each existing local volume, by the volume's name.
    pub fn volume_paths(&self) -> BTreeMap<String, Option<String>> {
        let path = |volume: &PersistentVolume| {
            Some(volume.spec.as_ref()?.host_path.as_ref()?.path.clone())
        };
        self.volumes.iter().map(|volume| (volume.name_any(), path(volume))).collect()
    }
}
