//! Erases the directories of a cluster on one node: a Job in the operator's namespace, since a
//! namespace of users may forbid hostPath volumes in pods. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use serde_json::json;

use crate::cluster::names::{ANNOTATION_NODE, ClusterKey, LABEL_COMPONENT, short_hash};
use crate::object::typed;

/// Retries of a Job before a person must look.
pub const ATTEMPTS: i32 = 4;

/// Data of a cluster on one node: the directory `NAMESPACE-NAME` below `base`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EraseTarget {
    pub node: String,
    pub base: String,
}

impl EraseTarget {
    pub fn job_name(&self, key: &ClusterKey) -> String {
        format!("curve-erase-{}", short_hash(&format!("{key} {} {}", self.node, self.base)))
    }
}

/// Where the local volumes of a cluster keep their data. A volume whose path is not one that this
/// operator makes is left alone.
pub fn erase_targets(key: &ClusterKey, volumes: &[PersistentVolume]) -> BTreeSet<EraseTarget> {
    let directory = format!("/{}/", key.host_directory());
    volumes
        .iter()
        .filter_map(|volume| {
            let node = volume.annotations().get(ANNOTATION_NODE)?.clone();
            let path = volume.spec.as_ref()?.host_path.as_ref()?.path.as_str();
            let (base, pod) = path.rsplit_once(&directory)?;
            let plain = base.starts_with('/') && !pod.is_empty() && !pod.contains('/');
            plain.then(|| EraseTarget { node, base: base.to_owned() })
        })
        .collect()
}

/// The Job that erases `target`.
pub fn build_erase_job(
    key: &ClusterKey,
    target: &EraseTarget,
    operator_namespace: &str,
    image: &str,
) -> Job {
    let mut labels = key.labels();
    labels.insert(LABEL_COMPONENT.into(), "erase".into());
    typed(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": target.job_name(key),
            "namespace": operator_namespace,
            "labels": labels,
        },
        "spec": {
            "backoffLimit": ATTEMPTS,
            "template": {
                "metadata": {"labels": {LABEL_COMPONENT: "erase"}},
                "spec": {
                    "nodeName": target.node,
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "tolerations": [{"operator": "Exists"}],
                    "securityContext": {
                        "runAsUser": 0,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "erase",
                        "image": image,
                        "command": ["/usr/bin/curve-operator"],
                        "args": ["erase", format!("/host/{}", key.host_directory())],
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
                    }],
                    "volumes": [{
                        "name": "host",
                        "hostPath": {"path": target.base, "type": "DirectoryOrCreate"},
                    }],
                },
            },
        },
    }))
}
