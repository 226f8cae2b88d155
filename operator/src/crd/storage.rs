//! Where a process of Curve keeps its data.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Storage of one process: a directory of the node (`hostPath` with `size`), or a volume of
/// another storage class (`volumeClaimTemplate`). Fixed at creation.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.hostPath) != has(self.volumeClaimTemplate)")
        .message("exactly one of hostPath and volumeClaimTemplate must be set"),
    validation = Rule::new("has(self.hostPath) == has(self.size)")
        .message("size goes with hostPath; with volumeClaimTemplate write volumeClaimTemplate.size"),
    validation = Rule::new(
        "has(self.hostPath) == has(oldSelf.hostPath) && \
         (!has(self.hostPath) || self.hostPath == oldSelf.hostPath)"
    ).message("hostPath is fixed: the data lies there. Add a node set for another kind of storage"),
    validation = Rule::new(
        "(!has(self.size) || !has(oldSelf.size) || self.size == oldSelf.size) && \
         (!has(self.volumeClaimTemplate) || !has(oldSelf.volumeClaimTemplate) || \
          self.volumeClaimTemplate == oldSelf.volumeClaimTemplate)"
    ).message("the size of a device is fixed when it is formatted: raise count for more capacity"),
)]
pub struct Storage {
    /// Directory on the node that holds the data, in a subdirectory per pod. Made if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 256), regex(pattern = r"^(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+$"))]
    pub host_path: Option<String>,

    /// Bytes used below `hostPath`, preallocated: 512Mi or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    #[x_kube(validation = Rule::new("!quantity(self).isLessThan(quantity('512Mi'))")
        .message("size must be 512Mi or more"))]
    pub size: Option<String>,

    /// A PersistentVolumeClaim per pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_claim_template: Option<VolumeClaimTemplate>,
}

/// What each pod's PersistentVolumeClaim asks for.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeClaimTemplate {
    /// StorageClass to provision from; the default class if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// Bytes of the claim: 1Gi or more.
    #[schemars(length(max = 20), regex(pattern = r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    #[x_kube(validation = Rule::new("!quantity(self).isLessThan(quantity('1Gi'))")
        .message("size must be 1Gi or more"))]
    pub size: String,
}
