//! Local volumes: a directory of a node as a PersistentVolume that only one pod's claim can take.
//!
//! It is of type `hostPath`, which may make its directory, with the node affinity of a `local`
//! volume, which may not. The scheduler honours the affinity of either.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;

use crate::cluster::names::{ANNOTATION_NODE, LABEL_HOSTNAME};
use crate::cluster::placement::Bindings;
use crate::cluster::status::exact_quantity;
use crate::cluster::validate::{Kept, ValidatedCluster, ValidatedSet, ValidatedStorage};
use crate::object::typed;

/// A volume for every bound ordinal of every set with local storage.
pub fn build_volumes(
    cluster: &ValidatedCluster,
    bindings: &[Bindings],
    hostnames: &BTreeMap<String, String>,
) -> Vec<PersistentVolume> {
    let mut volumes = Vec::new();
    for (set, bound) in cluster.sets().zip(bindings) {
        for (ordinal, node) in bound {
            // The label of a node that is gone for now is not known; by convention it is its name.
            let place = Place { node, hostname: hostnames.get(node).unwrap_or(node) };
            // The log first: see `validate_inheritance`.
            let stores = set.stores().rev();
            let build = |store| build_volume(cluster, set, *ordinal, store, place);
            volumes.extend(stores.filter_map(build));
        }
    }
    volumes
}

#[derive(Clone, Copy)]
struct Place<'a> {
    node: &'a str,
    hostname: &'a str,
}

/// None if the storage is not local.
fn build_volume(
    cluster: &ValidatedCluster,
    set: &ValidatedSet,
    ordinal: u32,
    (kept, storage): (Kept, &ValidatedStorage),
    Place { node, hostname }: Place<'_>,
) -> Option<PersistentVolume> {
    let ValidatedStorage::HostPath { path, size } = storage else { return None };
    let directory = cluster.host_path(set, ordinal, path);
    Some(typed(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": cluster.volume_name(set, kept, ordinal),
            "labels": cluster.set_labels(set),
            "annotations": {ANNOTATION_NODE: node},
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": exact_quantity(size.0)},
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": directory, "type": "DirectoryOrCreate"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": cluster.namespace,
                "name": cluster.claim_name(set, kept, ordinal),
            },
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": LABEL_HOSTNAME, "operator": "In", "values": [hostname]},
            ]}]}},
        },
    })))
}
