//! `CurveCluster`: one storage cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Storage;

/// One storage cluster: its metadata service and its chunkservers.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "curve.io",
    version = "v1alpha1",
    kind = "CurveCluster",
    doc = "A Curve storage cluster.",
    namespaced,
    status = "CurveClusterStatus",
    derive = "PartialEq",
    category = "curve",
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "HEALTH", type_ = "string", json_path = ".status.health"),
    printcolumn(name = "DISKS", type_ = "string", json_path = ".status.disks"),
    printcolumn(name = "CAPACITY", type_ = "string", json_path = ".status.capacity"),
    printcolumn(name = "USED", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "VERSION", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(
        "self.metadata.name.size() <= 30 && \
         self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
    ).message("metadata.name must be a DNS label that begins with a letter, of at most 30 characters"),
    validation = Rule::new(
        "self.spec.deletionPolicy != 'Destroy' || \
         (has(self.spec.destroyConfirmation) && self.spec.destroyConfirmation == self.metadata.name)"
    ).message(
        "deletionPolicy Destroy erases all data when this object is deleted: confirm it by \
         setting destroyConfirmation to the name of the cluster"
    ),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("oldSelf.nodeSets.all(o, self.nodeSets.exists(n, n.name == o.name))")
        .message("a node set cannot be removed: moving its data away first is not supported yet"),
    validation = Rule::new(
        "has(self.mds.storage) || self.nodeSets[0].name == oldSelf.nodeSets[0].name"
    ).message(
        "the first node set must stay the first: mds.storage is not set and follows its device"
    ),
)]
pub struct CurveClusterSpec {
    /// Image of all processes; the operator's own image where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,

    /// The metadata service.
    #[serde(default)]
    pub mds: Mds,

    /// Chunkservers, in sets that are alike.
    #[schemars(length(min = 1, max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"]
    ))]
    pub node_sets: Vec<NodeSet>,

    /// How the loss of a chunkserver is repaired.
    #[serde(default)]
    pub recovery: Recovery,

    /// When all blocks are read to find damage. Without it, what `curve scrub schedule` last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<Scrub>,

    /// What happens to the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// The name of this cluster, as the explicit word that `Destroy` needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 30))]
    pub destroy_confirmation: Option<String>,
}

/// A container image.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Repository without tag; the operator's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub repository: Option<String>,

    /// Tag; the operator's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub tag: Option<String>,

    /// When kubelet pulls the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(Always|IfNotPresent|Never)$"))]
    pub pull_policy: Option<String>,
}

/// The metadata service: topology, pools, placement, volumes, sessions.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.storage) == has(oldSelf.storage)")
    .message("mds.storage is fixed: the metadata lies there"))]
pub struct Mds {
    /// Members of its Raft group.
    #[serde(default = "Mds::default_replicas")]
    #[x_kube(
        validation = Rule::new("self == 1 || self == 3")
            .message("mds.replicas must be 3, or 1 where losing the node may stop the cluster"),
        validation = Rule::new("self == oldSelf").message("mds.replicas is fixed at creation"),
    )]
    pub replicas: i32,

    /// Where the metadata is kept; 1Gi of the same kind as the first node set's device if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// Compute resources of each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Which nodes may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

impl Mds {
    const fn default_replicas() -> i32 {
        3
    }
}

impl Default for Mds {
    fn default() -> Self {
        Self { replicas: Self::default_replicas(), storage: None, resources: None, placement: None }
    }
}

/// Chunkservers that are alike: one device each.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.count >= oldSelf.count").message(
        "count cannot shrink: moving data away from a chunkserver first is not supported yet"
    ),
    validation = Rule::new(
        "has(self.deviceClass) == has(oldSelf.deviceClass) && \
         (!has(self.deviceClass) || self.deviceClass == oldSelf.deviceClass)"
    ).message("deviceClass is fixed: pools have placed data by it"),
    validation = Rule::new("has(self.logDevice) == has(oldSelf.logDevice)")
        .message("logDevice is fixed: a device is formatted for it"),
    validation = Rule::new(
        "!has(self.logDevice) || has(self.logDevice.hostPath) == has(self.device.hostPath)"
    ).message("logDevice must be of the same kind as device: hostPath or volumeClaimTemplate"),
    validation = Rule::new(
        "!has(self.logDevice) || !has(self.logDevice.hostPath) || \
         self.logDevice.hostPath != self.device.hostPath"
    ).message("logDevice.hostPath must be on another disk than device.hostPath"),
)]
pub struct NodeSet {
    /// Part of the pods' names: CLUSTER-NAME-ORDINAL. No dash, so that no two clusters can ever
    /// arrive at the same name.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z][a-z0-9]*$"))]
    #[x_kube(validation = Rule::new("self != 'mds'")
        .message("\"mds\" is taken by the metadata service"))]
    pub name: String,

    /// Number of chunkservers. They spread over nodes and zones.
    #[schemars(range(min = 1, max = 1000))]
    pub count: i32,

    /// What pools select by, for example `ssd` or `hdd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub device_class: Option<String>,

    /// Where each chunkserver keeps its data.
    pub device: Storage,

    /// Where each keeps its log instead, on a faster disk; of the same kind as `device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_device: Option<Storage>,

    /// Which nodes may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,

    /// Compute resources of each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Which nodes pods may run on.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placement {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that are tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
}

/// How the loss of a chunkserver is repaired.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recovery {
    /// Time after which the replicas of a silent chunkserver are made anew on others.
    #[serde(default = "Recovery::default_out_after")]
    #[schemars(length(max = 10), regex(pattern = r"^[1-9][0-9]*[smh]$"))]
    #[x_kube(validation = Rule::new(
        "duration(self) >= duration('10s') && duration(self) <= duration('168h')"
    ).message("recovery.outAfter must lie between 10s and 168h"))]
    pub out_after: String,
}

impl Recovery {
    fn default_out_after() -> String {
        "10m".into()
    }
}

impl Default for Recovery {
    fn default() -> Self {
        Self { out_after: Self::default_out_after() }
    }
}

/// When all blocks are read to find damage.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scrub {
    /// When windows begin: a cron expression of minute, hour, day, month and weekday, in UTC.
    #[schemars(length(max = 100), regex(pattern = r"^[0-9*,/-]+( [0-9*,/-]+){4}$"))]
    pub schedule: String,

    /// How long a window is.
    #[serde(default = "Scrub::default_window")]
    #[schemars(length(max = 10), regex(pattern = r"^[1-9][0-9]*[smh]$"))]
    #[x_kube(validation = Rule::new(
        "duration(self) >= duration('1m') && duration(self) <= duration('168h')"
    ).message("scrub.window must lie between 1m and 168h"))]
    pub window: String,
}

impl Scrub {
    fn default_window() -> String {
        "5h".into()
    }
}

/// What happens to the data when a cluster is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Data, keys and claims stay; a cluster of the same name gets them back.
    #[default]
    Retain,
    /// Everything is erased.
    Destroy,
}

/// What the operator last saw.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CurveClusterStatus {
    /// Pending, Progressing, Ready, Failed or Deleting.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// OK, Warn, Error or Unknown, as the metadata service judges.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub health: String,
    /// Chunkservers that serve, of those wanted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub disks: String,
    /// Bytes of all devices for data, replicas included.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub capacity: String,
    /// Part of the capacity that holds data.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub used: String,
    /// Version of the metadata service that leads.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// UUID of the cluster; part of every volume handle.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster_id: String,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Available, Progressing, Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,
    /// Copysets by state, once a pool has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copysets: Option<CopysetCounts>,
    /// Chunkservers that are down, with the time they were first seen so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub down: BTreeMap<String, Time>,
    /// Per node set, what runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_sets: Vec<NodeSetStatus>,
}

/// Copysets by state.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct CopysetCounts {
    /// All replicas there.
    #[schemars(with = "i32")]
    pub whole: u32,
    /// A quorum, but fewer replicas than wanted.
    #[schemars(with = "i32")]
    pub degraded: u32,
    /// No quorum.
    #[schemars(with = "i32")]
    pub unavailable: u32,
}

/// What runs of a node set.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeSetStatus {
    /// Name of the node set.
    pub name: String,
    /// Chunkservers wanted.
    pub count: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that run the current spec and image.
    pub updated: i32,
}
