//! StatefulSets of the MDS and of the chunkservers.
//!
//! Pods run as root because a directory of a node belongs to root and kubelet changes no owner
//! there (`fsGroup` does not apply to hostPath); in exchange they have no capability, a read-only
//! root file system, no way to gain privileges and the runtime's seccomp profile.
//!
//! The update strategy is OnDelete: the operator restarts pods one at a time and looks at the
//! health of the cluster in between, which no StatefulSet controller does.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};

use super::{AddressFamily, BuildInputs, owner};
use crate::cluster::names::{
    CHUNKSERVER_METRICS_PORT, CHUNKSERVER_PORT, LABEL_HOSTNAME, LABEL_ZONE, MDS_GRPC_PORT,
    MDS_METRICS_PORT, MDS_RAFT_PORT, claim_template,
};
use crate::cluster::placement::{Bindings, local_tolerations};
use crate::cluster::status::exact_quantity;
use crate::cluster::validate::{Kept, SetRole, ValidatedCluster, ValidatedSet, ValidatedStorage};
use crate::object::typed;

/// Requests where the spec names none: small enough for three nodes that share two cores.
const CPU_REQUEST: &str = "50m";
const MEMORY_REQUEST: &str = "128Mi";
/// A clean exit hands leadership over and writes a checkpoint.
const GRACE_SECONDS: u32 = 30;
const TLS_DIR: &str = "/etc/curve/tls";
const CLIENT_DIR: &str = "/etc/curve/client";
const DATA_DIR: &str = "/data";
const LOG_DIR: &str = "/log";
/// A probe starts a process, so not too often.
const PROBE_SECONDS: u32 = 5;

/// One ServiceAccount per component, without a token: no process of a cluster calls Kubernetes.
pub fn build_service_accounts(cluster: &ValidatedCluster) -> Vec<ServiceAccount> {
    let account = |component: &str| {
        typed(json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": format!("{}-{component}", cluster.name),
                "namespace": cluster.namespace,
                "labels": cluster.key().labels(),
                "ownerReferences": owner(cluster),
            },
            "automountServiceAccountToken": false,
        }))
    };
    vec![account("mds"), account("chunkserver")]
}

/// A StatefulSet per set, with as many replicas as have a place.
pub fn build_stateful_sets(
    cluster: &ValidatedCluster,
    inputs: &BuildInputs<'_>,
) -> Vec<StatefulSet> {
    let sets = cluster.sets().zip(inputs.bindings);
    sets.map(|(set, bound)| build_stateful_set(cluster, set, bound, inputs)).collect()
}

fn build_stateful_set(
    cluster: &ValidatedCluster,
    set: &ValidatedSet,
    bound: &Bindings,
    inputs: &BuildInputs<'_>,
) -> StatefulSet {
    let replicas = match &set.storage {
        ValidatedStorage::HostPath { .. } => bound.len() as u32,
        ValidatedStorage::Claim { .. } => set.count,
    };
    typed(json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": cluster.set_name(set),
            "namespace": cluster.namespace,
            "labels": cluster.set_labels(set),
            "ownerReferences": owner(cluster),
        },
        "spec": {
            "serviceName": cluster.set_name(set),
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "selector": {"matchLabels": cluster.set_selector(set)},
            "template": {
                "metadata": {
                    "labels": cluster.set_labels(set),
                    "annotations": {
                        "curve.io/authority": inputs.credentials.authority,
                        "kubectl.kubernetes.io/default-container": set.role.component(),
                    },
                },
                "spec": pod_spec(cluster, set, inputs.family),
            },
            "volumeClaimTemplates": claims(cluster, set),
        },
    }))
}

fn claims(cluster: &ValidatedCluster, set: &ValidatedSet) -> Vec<Value> {
    set.stores().map(|(kept, storage)| claim(cluster, set, kept, storage)).collect()
}

fn claim(
    cluster: &ValidatedCluster,
    set: &ValidatedSet,
    kept: Kept,
    storage: &ValidatedStorage,
) -> Value {
    // An empty class asks for an existing volume: the one whose claimRef names this claim.
    let class = match storage {
        ValidatedStorage::HostPath { .. } => Some(String::new()),
        ValidatedStorage::Claim { class, .. } => class.clone(),
    };
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim_template(&set.role, kept), "labels": cluster.set_labels(set)},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": exact_quantity(storage.size().0)}},
        },
    })
}

fn pod_spec(cluster: &ValidatedCluster, set: &ValidatedSet, family: AddressFamily) -> Value {
    let local = matches!(set.storage, ValidatedStorage::HostPath { .. });
    let mut tolerations = json!(set.tolerations);
    if let (true, Value::Array(tolerations)) = (local, &mut tolerations) {
        tolerations.extend(local_tolerations().map(|toleration| json!(toleration)));
    }
    json!({
        "serviceAccountName": format!("{}-{}", cluster.name, set.role.component()),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": if set.node_selector.is_empty() { Value::Null } else { json!(set.node_selector) },
        "tolerations": if tolerations == json!([]) { Value::Null } else { tolerations },
        "topologySpreadConstraints": if local { Value::Null } else { spread(cluster, set) },
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(cluster, set, family)],
        "volumes": pod_volumes(cluster, set),
    })
}

/// Pods whose storage can be made anywhere: evenly over nodes, and over zones where there are any.
fn spread(cluster: &ValidatedCluster, set: &ValidatedSet) -> Value {
    let constraint = |key: &str, otherwise: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": otherwise,
            "nodeTaintsPolicy": "Honor",
            "labelSelector": {"matchLabels": cluster.set_selector(set)},
        })
    };
    json!([constraint(LABEL_HOSTNAME, "DoNotSchedule"), constraint(LABEL_ZONE, "ScheduleAnyway")])
}

fn container(cluster: &ValidatedCluster, set: &ValidatedSet, family: AddressFamily) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
    ];
    let stores = set.stores().map(|(kept, _)| {
        let path = match kept {
            Kept::Data => DATA_DIR,
            Kept::Log => LOG_DIR,
        };
        json!({"name": claim_template(&set.role, kept), "mountPath": path})
    });
    let others = [
        json!({"name": "tls", "mountPath": TLS_DIR, "readOnly": true}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    let mut mounts: Vec<Value> = stores.chain(others).collect();
    let (args, ports) = match &set.role {
        SetRole::Mds => {
            env.push(json!({"name": "CURVE_CONFIG", "value": format!("{CLIENT_DIR}/client.toml")}));
            mounts.push(json!({"name": "client", "mountPath": CLIENT_DIR, "readOnly": true}));
            let ports =
                [("grpc", MDS_GRPC_PORT), ("raft", MDS_RAFT_PORT), ("metrics", MDS_METRICS_PORT)];
            (mds_args(cluster, set, family), ports.to_vec())
        }
        SetRole::Chunkserver { device_class, .. } => {
            // Kubernetes copies the zone of the node to this label when it binds the pod.
            env.push(field("ZONE", &format!("metadata.labels['{LABEL_ZONE}']")));
            let ports = [("data", CHUNKSERVER_PORT), ("metrics", CHUNKSERVER_METRICS_PORT)];
            (chunkserver_args(cluster, set, device_class.as_deref(), family), ports.to_vec())
        }
    };
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"}))
        .collect();
    let requests = json!({"requests": {"cpu": CPU_REQUEST, "memory": MEMORY_REQUEST}});
    json!({
        "name": set.role.component(),
        "image": cluster.image,
        "imagePullPolicy": cluster.pull_policy,
        "command": ["/usr/bin/curve"],
        "args": args,
        "env": env,
        "ports": ports,
        "resources": set.resources.as_ref().map_or(requests, |resources| json!(resources)),
        "readinessProbe": {
            "exec": {"command": health_command(&set.role)},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": PROBE_SECONDS,
            "failureThreshold": 2,
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    })
}

fn health_command(role: &SetRole) -> Vec<String> {
    let command = ["/usr/bin/curve", "health", role.component(), "--tls-dir", TLS_DIR];
    command.map(String::from).to_vec()
}

fn mds_args(cluster: &ValidatedCluster, set: &ValidatedSet, family: AddressFamily) -> Vec<String> {
    let flags = [
        ("--name", "$(POD_NAME)".into()),
        ("--cluster-name", cluster.name.clone()),
        ("--data-dir", DATA_DIR.into()),
        ("--device-size", set.storage.device_size().0.to_string()),
        ("--listen-grpc", family.listen(MDS_GRPC_PORT)),
        ("--listen-raft", family.listen(MDS_RAFT_PORT)),
        ("--listen-metrics", family.listen(MDS_METRICS_PORT)),
        ("--tls-dir", TLS_DIR.into()),
        ("--out-after-secs", cluster.out_after.as_secs().to_string()),
    ];
    let peers = (0..set.count).map(|ordinal| {
        let (name, host) = (cluster.pod_name(set, ordinal), cluster.pod_host(set, ordinal));
        ("--peer", format!("{name},{host}:{MDS_GRPC_PORT},{host}:{MDS_RAFT_PORT}"))
    });
    words("mds", flags.into_iter().chain(peers))
}

fn chunkserver_args(
    cluster: &ValidatedCluster,
    set: &ValidatedSet,
    device_class: Option<&str>,
    family: AddressFamily,
) -> Vec<String> {
    let flags = [
        ("--name", "$(POD_NAME)".to_owned()),
        ("--host", "$(NODE_NAME)".into()),
        ("--zone", "$(ZONE)".into()),
        ("--device", format!("{DATA_DIR}/device")),
        ("--device-size", set.storage.device_size().0.to_string()),
        ("--listen", family.listen(CHUNKSERVER_PORT)),
        ("--advertise", family.with_port("$(POD_IP)", CHUNKSERVER_PORT)),
        ("--listen-metrics", family.listen(CHUNKSERVER_METRICS_PORT)),
        ("--mds", cluster.mds_endpoints().join(",")),
        ("--tls-dir", TLS_DIR.into()),
    ];
    let class = device_class.map(|class| ("--device-class", class.to_owned()));
    let log = set.log.iter().flat_map(|log| {
        let size = log.device_size().0.to_string();
        [("--log-device", format!("{LOG_DIR}/log")), ("--log-device-size", size)]
    });
    words("chunkserver", flags.into_iter().chain(class).chain(log))
}

/// A role and its flags as the words of a command line.
fn words(role: &str, flags: impl Iterator<Item = (&'static str, String)>) -> Vec<String> {
    let flags = flags.flat_map(|(flag, value)| [flag.to_owned(), value]);
    std::iter::once(role.to_owned()).chain(flags).collect()
}

fn pod_volumes(cluster: &ValidatedCluster, set: &ValidatedSet) -> Vec<Value> {
    let key = cluster.key();
    let secret = |name: &str, secret: String| json!({"name": name, "secret": {"secretName": secret, "defaultMode": 0o400}});
    let mut volumes = vec![json!({"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}})];
    match set.role {
        SetRole::Mds => {
            volumes.push(secret("tls", key.mds_secret()));
            volumes.push(secret("client", key.admin_secret()));
        }
        SetRole::Chunkserver { .. } => volumes.push(secret("tls", key.chunkserver_secret())),
    }
    volumes
}
