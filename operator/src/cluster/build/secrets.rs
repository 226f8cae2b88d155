//! Secrets: certificates of the processes, and connections for those who use the cluster.

use std::collections::BTreeMap;

use curve_wire::pki::Identity;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use serde_json::{from_value, json};

use super::owner;
use crate::cluster::credentials::{CLUSTER_KEY, Credentials, bytes, tls_data};
use crate::cluster::names::LABEL_COMPONENT;
use crate::cluster::validate::ValidatedCluster;

/// Secrets in the cluster's namespace.
///
/// The one of the MDS, like the authority, has no owner: with `deletionPolicy: Retain` the keys
/// must outlive the CurveCluster as the data does.
pub fn build_secrets(cluster: &ValidatedCluster, credentials: &Credentials) -> Vec<Secret> {
    let key = cluster.key();
    let mut mds = tls_data(&credentials.mds);
    mds.insert(CLUSTER_KEY.into(), bytes(&credentials.cluster_key));
    let mut admin = tls_data(&credentials.admin);
    admin.insert("client.toml".into(), bytes(&client_toml(cluster)));
    let owned = |name, data| {
        let mut secret = secret(cluster, &cluster.namespace, name, "credentials", data);
        secret.metadata.owner_references = from_value(owner(cluster)).ok();
        secret
    };
    vec![
        secret(cluster, &cluster.namespace, key.mds_secret(), "credentials", mds),
        owned(key.chunkserver_secret(), tls_data(&credentials.chunkserver)),
        owned(key.admin_secret(), admin),
    ]
}

/// Secrets in the operator's namespace with which the CSI controller and the agent of each node
/// reach the cluster. No owner: that cannot be in another namespace.
pub fn build_connections(
    cluster: &ValidatedCluster,
    credentials: &Credentials,
    cluster_id: &str,
    operator_namespace: &str,
) -> Vec<Secret> {
    let key = cluster.key();
    let connection = |name: String, identity: &Identity| {
        let mut data = tls_data(identity);
        data.insert("client.toml".into(), bytes(&client_toml(cluster)));
        data.insert("cluster-uuid".into(), bytes(cluster_id));
        secret(cluster, operator_namespace, name, "connection", data)
    };
    let agents = credentials.agents.iter();
    let agents = agents.map(|(node, identity)| connection(key.node_secret(node), identity));
    std::iter::once(connection(key.csi_secret(), &credentials.csi)).chain(agents).collect()
}

fn secret(
    cluster: &ValidatedCluster,
    namespace: &str,
    name: String,
    component: &str,
    data: BTreeMap<String, ByteString>,
) -> Secret {
    let mut labels = cluster.key().labels();
    labels.insert(LABEL_COMPONENT.into(), component.into());
    Secret {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.into()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".into()),
        data: Some(data),
        ..Secret::default()
    }
}

/// Configuration of a client; the certificates lie beside it.
fn client_toml(cluster: &ValidatedCluster) -> String {
    format!("mds = {}\ntls_dir = \".\"\n", json!(cluster.mds_endpoints()))
}
