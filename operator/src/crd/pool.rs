//! `CurvePool`: a set of copysets with a replica count and a failure domain.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pool of a cluster in the same namespace. Its name is this object's name.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "curve.io",
    version = "v1alpha1",
    kind = "CurvePool",
    doc = "A pool of a Curve storage cluster.",
    namespaced,
    status = "CurvePoolStatus",
    derive = "PartialEq",
    category = "curve",
    printcolumn(name = "CLUSTER", type_ = "string", json_path = ".spec.cluster"),
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "REPLICAS", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "DOMAIN", type_ = "string", json_path = ".spec.failureDomain"),
    printcolumn(name = "CAPACITY", type_ = "string", json_path = ".status.capacity"),
    printcolumn(name = "USED", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "PROVISIONED", type_ = "string", json_path = ".status.provisioned"),
    printcolumn(name = "OVERCOMMIT", type_ = "integer", json_path = ".spec.overcommitPercent"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(
        "self.metadata.name.size() <= 40 && \
         self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')"
    ).message("metadata.name must be a DNS label of at most 40 characters"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "self.cluster == oldSelf.cluster && self.replicas == oldSelf.replicas && \
         self.failureDomain == oldSelf.failureDomain && \
         has(self.deviceClass) == has(oldSelf.deviceClass) && \
         (!has(self.deviceClass) || self.deviceClass == oldSelf.deviceClass)"
    ).message(
        "a pool is fixed at creation, but for overcommitPercent: make another one and move the \
         volumes"
    ),
)]
pub struct CurvePoolSpec {
    /// The CurveCluster, in the same namespace.
    #[schemars(length(min = 1, max = 30))]
    pub cluster: String,

    /// Copies of all data.
    #[serde(default = "CurvePoolSpec::default_replicas")]
    #[schemars(range(max = 7))]
    #[x_kube(validation = Rule::new("self >= 3").message(
        "replicas must be 3 or more: with two, the loss of one leaves no majority"
    ))]
    pub replicas: i32,

    /// What no two copies may share.
    #[serde(default)]
    pub failure_domain: FailureDomain,

    /// Only devices of this class; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub device_class: Option<String>,

    /// What volumes may have in all, in percent of the capacity: 100 is no overcommit. Volumes take
    /// up what is written to them; with more than 100, writes fail once the pool is full. Below
    /// what volumes have already, none is made or grown.
    #[serde(default = "CurvePoolSpec::default_overcommit_percent")]
    #[schemars(range(min = 100, max = 2000))]
    pub overcommit_percent: i32,
}

impl CurvePoolSpec {
    const fn default_replicas() -> i32 {
        3
    }

    const fn default_overcommit_percent() -> i32 {
        100
    }
}

/// What no two copies of the same data may share.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FailureDomain {
    /// A node.
    #[default]
    Host,
    /// A zone (`topology.kubernetes.io/zone`).
    Zone,
}

/// What the operator last saw.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CurvePoolStatus {
    /// Pending, Ready, Failed or Deleting.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Bytes that can be stored, replicas not counted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub capacity: String,
    /// Bytes that are stored, replicas not counted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub used: String,
    /// Sum of the sizes of all volumes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub provisioned: String,
    /// Raft groups that hold the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>")]
    pub copysets: Option<u32>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,
}
