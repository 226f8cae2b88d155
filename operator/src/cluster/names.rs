//! Names and labels of everything that belongs to a cluster, in one place, since the CSI driver,
//! the command line and a second run of the operator must arrive at the same ones.

use std::collections::BTreeMap;

use kube::{Resource, ResourceExt};
use thiserror::Error;

use super::validate::{Kept, SetRole, ValidatedCluster, ValidatedSet};

/// Field manager of server-side apply.
pub const FIELD_MANAGER: &str = "curve-operator";
/// Keeps a CurveCluster until what no owner reference reaches is gone.
pub const FINALIZER: &str = "curve.io/cluster";

pub const LABEL_CLUSTER: &str = "curve.io/cluster";
pub const LABEL_CLUSTER_NAMESPACE: &str = "curve.io/cluster-namespace";
pub const LABEL_NODE_SET: &str = "curve.io/node-set";
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// On a local volume: the node that it is bound to.
pub const ANNOTATION_NODE: &str = "curve.io/node";
/// Ends the name of a local volume that holds a log; see `ValidatedCluster::volume_name`.
const LOG_SUFFIX: &str = ".log";
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// Ports of the process contract.
pub const MDS_GRPC_PORT: u16 = 7100;
pub const MDS_RAFT_PORT: u16 = 7101;
pub const MDS_METRICS_PORT: u16 = 7109;
pub const CHUNKSERVER_PORT: u16 = 7200;
pub const CHUNKSERVER_METRICS_PORT: u16 = 7209;

/// Namespace and name of a CurveCluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterKey {
    pub namespace: String,
    pub name: String,
}

/// An object that somebody else made under a name that the cluster needs: it is neither read, nor
/// changed, nor deleted.
#[derive(Debug, Error)]
#[error(
    "{kind} {name} belongs to {owner}: rename one of the two; what belongs to this cluster has the \
     labels {labels}"
)]
pub struct Foreign {
    kind: String,
    name: String,
    owner: String,
    labels: String,
}

impl Foreign {
    /// Refuses `there` unless it belongs to the cluster whose objects have these `labels`.
    pub fn refuse<K>(there: &K, labels: &BTreeMap<String, String>) -> Result<(), Self>
    where
        K: Resource<DynamicType = ()>,
    {
        let (wanted, owner) = (owner(labels), owner(there.labels()));
        if owner == wanted {
            return Ok(());
        }
        let value = |label: Option<&String>| label.cloned().unwrap_or_default();
        let named = owner.iter().any(Option::is_some);
        let owner = owner.map(value).join("/");
        let [namespace, name] = wanted.map(value);
        Err(Self {
            kind: K::kind(&()).into_owned(),
            name: there.name_any(),
            owner: if named { format!("another cluster ({owner})") } else { "no cluster".into() },
            labels: format!("{LABEL_CLUSTER_NAMESPACE}={namespace},{LABEL_CLUSTER}={name}"),
        })
    }
}

/// Namespace and name of the cluster that an object with these labels belongs to.
fn owner(labels: &BTreeMap<String, String>) -> [Option<&String>; 2] {
    [LABEL_CLUSTER_NAMESPACE, LABEL_CLUSTER].map(|label| labels.get(label))
}

impl std::fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ClusterKey {
    pub fn ca_secret(&self) -> String {
        format!("{}-ca", self.name)
    }

    pub fn mds_secret(&self) -> String {
        format!("{}-mds-tls", self.name)
    }

    pub fn chunkserver_secret(&self) -> String {
        format!("{}-chunkserver-tls", self.name)
    }

    /// What a person or `kubectl exec` needs to use the command line.
    pub fn admin_secret(&self) -> String {
        format!("{}-admin", self.name)
    }

    /// In the operator's namespace; also the name of the Role over it.
    pub fn csi_secret(&self) -> String {
        format!("curve-{}-{}-csi", self.namespace, self.name)
    }

    /// In the operator's namespace.
    pub fn node_secret(&self, node: &str) -> String {
        format!("curve-{}-{}-node-{node}", self.namespace, self.name)
    }

    /// In the operator's namespace: the Role over the Secrets of all nodes.
    pub fn node_role(&self) -> String {
        format!("curve-{}-{}-node", self.namespace, self.name)
    }

    /// Directory below a `hostPath` that holds the data of this cluster on a node.
    pub fn host_directory(&self) -> String {
        format!("{}-{}", self.namespace, self.name)
    }

    /// Labels that find everything of this cluster, in any namespace.
    pub fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("app.kubernetes.io/name".into(), "curve".into()),
            ("app.kubernetes.io/instance".into(), self.name.clone()),
            ("app.kubernetes.io/managed-by".into(), "curve-operator".into()),
            (LABEL_CLUSTER.into(), self.name.clone()),
            (LABEL_CLUSTER_NAMESPACE.into(), self.namespace.clone()),
        ])
    }

    /// Whether an object is this cluster's. The operator labels what it makes at creation.
    pub fn owns(&self, object: &impl Resource) -> bool {
        owner(object.labels()) == [Some(&self.namespace), Some(&self.name)]
    }

    /// Label selector for everything of this cluster.
    pub fn selector(&self) -> String {
        format!("{LABEL_CLUSTER}={},{LABEL_CLUSTER_NAMESPACE}={}", self.name, self.namespace)
    }
}

impl ValidatedCluster {
    pub fn key(&self) -> ClusterKey {
        ClusterKey { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Name of a set's StatefulSet and of its Service.
    pub fn set_name(&self, set: &ValidatedSet) -> String {
        format!("{}-{}", self.name, set.role.suffix())
    }

    pub fn pod_name(&self, set: &ValidatedSet, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.set_name(set))
    }

    /// Stable DNS name of a pod.
    pub fn pod_host(&self, set: &ValidatedSet, ordinal: u32) -> String {
        let service = self.set_name(set);
        format!("{}.{service}.{}.svc", self.pod_name(set, ordinal), self.namespace)
    }

    /// `HOST:PORT` of every MDS.
    pub fn mds_endpoints(&self) -> Vec<String> {
        (0..self.mds.count)
            .map(|ordinal| format!("{}:{MDS_GRPC_PORT}", self.pod_host(&self.mds, ordinal)))
            .collect()
    }

    /// What the selector of a set's StatefulSet matches; immutable, so as little as possible.
    pub fn set_selector(&self, set: &ValidatedSet) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            (LABEL_CLUSTER.into(), self.name.clone()),
            (LABEL_COMPONENT.into(), set.role.component().into()),
        ]);
        if let SetRole::Chunkserver { node_set, .. } = &set.role {
            labels.insert(LABEL_NODE_SET.into(), node_set.clone());
        }
        labels
    }

    pub fn set_labels(&self, set: &ValidatedSet) -> BTreeMap<String, String> {
        let mut labels = self.key().labels();
        labels.extend(self.set_selector(set));
        labels
    }

    /// Cluster-scoped name of a local volume of a pod. Neither a namespace nor a pod that we make
    /// has a dot, so the name is unique.
    pub fn volume_name(&self, set: &ValidatedSet, kept: Kept, ordinal: u32) -> String {
        let name = format!("curve.{}.{}", self.namespace, self.pod_name(set, ordinal));
        match kept {
            Kept::Data => name,
            Kept::Log => name + LOG_SUFFIX,
        }
    }

    /// Directory of a pod's data or log on its node, below the `hostPath` of its set.
    pub fn host_path(&self, set: &ValidatedSet, ordinal: u32, base: &str) -> String {
        format!("{base}/{}/{}", self.key().host_directory(), self.pod_name(set, ordinal))
    }

    /// Name of the claim that the StatefulSet makes for a pod.
    pub fn claim_name(&self, set: &ValidatedSet, kept: Kept, ordinal: u32) -> String {
        format!("{}-{}", claim_template(&set.role, kept), self.pod_name(set, ordinal))
    }
}

/// Of a local volume that holds a log: the name of the one that holds the data.
pub fn data_volume_of(log_volume: &str) -> Option<&str> {
    log_volume.strip_suffix(LOG_SUFFIX)
}

/// Name of the volume in the pod, and first part of the claim's name.
pub fn claim_template(role: &SetRole, kept: Kept) -> &'static str {
    match (kept, role) {
        (Kept::Log, _) => "log",
        (Kept::Data, SetRole::Mds) => "data",
        (Kept::Data, SetRole::Chunkserver { .. }) => "device",
    }
}

/// 64-bit FNV-1a in hexadecimal: a short name for a long one, the same in every version.
pub fn short_hash(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}
