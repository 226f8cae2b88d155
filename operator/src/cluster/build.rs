//! Builds the Kubernetes objects of a ValidatedCluster. Pure: never talks to the API server.

mod access;
mod network;
mod secrets;
mod volumes;
mod workload;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolume, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::{Value, json};

use super::credentials::Credentials;
use super::placement::Bindings;
use super::validate::ValidatedCluster;

pub use access::build_access;
pub use network::{build_disruption_budgets, build_services};
pub use secrets::{build_connections, build_secrets};
pub use volumes::build_volumes;
pub use workload::{build_service_accounts, build_stateful_sets};

/// Everything the operator applies for one cluster, in no particular order. `apply` destructures
/// this without `..`: what is added here cannot be forgotten there.
#[derive(Debug, Default)]
pub struct ClusterObjects {
    pub service_accounts: Vec<ServiceAccount>,
    pub secrets: Vec<Secret>,
    pub services: Vec<Service>,
    pub volumes: Vec<PersistentVolume>,
    pub stateful_sets: Vec<StatefulSet>,
    pub disruption_budgets: Vec<PodDisruptionBudget>,
    /// For the operator's namespace, like the roles over them.
    pub connections: Vec<Secret>,
    pub roles: Vec<Role>,
    pub role_bindings: Vec<RoleBinding>,
}

/// What the objects depend on besides the cluster.
#[derive(Debug)]
pub struct BuildInputs<'a> {
    pub credentials: &'a Credentials,
    /// Per set, in the order of `ValidatedCluster::sets`: bindings of local storage.
    pub bindings: &'a [Bindings],
    /// Hostname label per node, for node affinity.
    pub hostnames: &'a BTreeMap<String, String>,
    /// Pods that a drain may take away at a time.
    pub disruptions: Disruptions,
    /// UUID of the cluster, once its MDS has said so.
    pub cluster_id: Option<&'a str>,
    pub operator_namespace: &'a str,
    pub family: AddressFamily,
}

/// How many pods a voluntary disruption may make unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disruptions {
    pub mds: u32,
    pub chunkservers: u32,
}

/// Address family of pods, for listening and for writing `ADDRESS:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    V4,
    V6,
}

impl AddressFamily {
    /// The family of the address at which a pod finds the API server.
    pub fn of_address(address: &str) -> Self {
        if address.contains(':') { Self::V6 } else { Self::V4 }
    }

    /// `ADDRESS:PORT` of all interfaces.
    fn listen(self, port: u16) -> String {
        match self {
            Self::V4 => format!("0.0.0.0:{port}"),
            Self::V6 => format!("[::]:{port}"),
        }
    }

    /// `ADDRESS:PORT` for an address that kubelet fills in.
    fn with_port(self, address: &str, port: u16) -> String {
        match self {
            Self::V4 => format!("{address}:{port}"),
            Self::V6 => format!("[{address}]:{port}"),
        }
    }
}

/// Builds all objects.
pub fn build(cluster: &ValidatedCluster, inputs: &BuildInputs<'_>) -> ClusterObjects {
    let connections = inputs.cluster_id.map_or_else(Vec::new, |id| {
        build_connections(cluster, inputs.credentials, id, inputs.operator_namespace)
    });
    let (roles, role_bindings) =
        build_access(&cluster.key(), &connections, inputs.operator_namespace);
    ClusterObjects {
        service_accounts: build_service_accounts(cluster),
        secrets: build_secrets(cluster, inputs.credentials),
        services: build_services(cluster),
        volumes: build_volumes(cluster, inputs.bindings, inputs.hostnames),
        stateful_sets: build_stateful_sets(cluster, inputs),
        disruption_budgets: build_disruption_budgets(cluster, inputs.disruptions),
        connections,
        roles,
        role_bindings,
    }
}

/// Makes the garbage collector remove an object with its CurveCluster.
fn owner(cluster: &ValidatedCluster) -> Value {
    json!([{
        "apiVersion": "curve.io/v1alpha1",
        "kind": "CurveCluster",
        "name": cluster.name,
        "uid": cluster.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

#[cfg(test)]
mod tests;
