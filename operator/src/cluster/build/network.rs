//! Services, and the budgets that hold back node drains.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::{Disruptions, owner};
use crate::cluster::names::{
    CHUNKSERVER_METRICS_PORT, CHUNKSERVER_PORT, LABEL_CLUSTER, LABEL_COMPONENT, MDS_GRPC_PORT,
    MDS_METRICS_PORT, MDS_RAFT_PORT,
};
use crate::cluster::validate::{SetRole, ValidatedCluster};
use crate::object::typed;

/// A headless Service per set. It gives each pod its name, also before the pod is ready: members
/// of a Raft group must find each other in order to become ready.
pub fn build_services(cluster: &ValidatedCluster) -> Vec<Service> {
    let service = |set| {
        typed(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": cluster.set_name(set),
                "namespace": cluster.namespace,
                "labels": cluster.set_labels(set),
                "ownerReferences": owner(cluster),
            },
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": cluster.set_selector(set),
                "ports": service_ports(&set.role),
            },
        }))
    };
    cluster.sets().map(service).collect()
}

fn service_ports(role: &SetRole) -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
    match role {
        SetRole::Mds => json!([
            port("grpc", MDS_GRPC_PORT),
            port("raft", MDS_RAFT_PORT),
            port("metrics", MDS_METRICS_PORT),
        ]),
        SetRole::Chunkserver { .. } => {
            json!([port("data", CHUNKSERVER_PORT), port("metrics", CHUNKSERVER_METRICS_PORT)])
        }
    }
}

/// One budget for the MDS and one over the chunkservers of all node sets, since any two of those
/// may hold replicas of the same data. Pods that are not ready may always be evicted: they serve
/// nothing, and keeping them would only block the drain.
pub fn build_disruption_budgets(
    cluster: &ValidatedCluster,
    disruptions: Disruptions,
) -> Vec<PodDisruptionBudget> {
    let budget = |component: &str, max_unavailable: u32| {
        typed(json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {
                "name": format!("{}-{component}", cluster.name),
                "namespace": cluster.namespace,
                "labels": cluster.key().labels(),
                "ownerReferences": owner(cluster),
            },
            "spec": {
                "maxUnavailable": max_unavailable,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": {
                    LABEL_CLUSTER: cluster.name,
                    LABEL_COMPONENT: component,
                }},
            },
        }))
    };
    vec![budget("mds", disruptions.mds), budget("chunkserver", disruptions.chunkservers)]
}
