//! The API that users write: `curve.io/v1alpha1`.
//!
//! Types, schema and CEL rules only. A rule is here when the API server alone can decide it; what
//! needs the state of the cluster is decided by the controllers and told in a condition.

mod cluster;
mod pool;
mod storage;

pub use cluster::{
    CopysetCounts, CurveCluster, CurveClusterSpec, CurveClusterStatus, DeletionPolicy, Image, Mds,
    NodeSet, NodeSetStatus, Placement, Recovery, Scrub,
};
pub use pool::{CurvePool, CurvePoolSpec, CurvePoolStatus, FailureDomain};
pub use storage::{Storage, VolumeClaimTemplate};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// Longest cluster name. With a node set's name and an ordinal it becomes a pod name, and a
/// StatefulSet's name plus a revision hash must fit a label value of 63 characters.
pub const CLUSTER_NAME_MAX: usize = 30;

/// Every CRD of Curve with the name of its file under `crds/`.
pub fn definitions() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![
        ("curve.io_curveclusters.yaml", CurveCluster::crd()),
        ("curve.io_curvepools.yaml", CurvePool::crd()),
    ]
}
