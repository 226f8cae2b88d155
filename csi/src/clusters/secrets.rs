//! Connections from Secrets that the operator writes into the driver's own namespace, one per
//! CurveCluster: `curve-NAMESPACE-NAME-csi`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use curve_wire::pki::{CA_FILE, CERT_FILE, Identity, KEY_FILE};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;

use super::{Connection, ConnectionSource, SourceError, parse_client_toml};
use crate::handle::ClusterName;

const PREFIX: &str = "curve-";
const SUFFIX: &str = "-csi";
const CLIENT_TOML: &str = "client.toml";
const CLUSTER_UUID: &str = "cluster-uuid";

/// Reads through the API each time it is asked; `Clusters` keeps what it has read.
pub struct Secrets {
    api: Api<Secret>,
    namespace: String,
}

impl Secrets {
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), namespace: namespace.to_owned() }
    }

    fn error(&self, step: &'static str) -> impl Fn(kube::Error) -> SourceError {
        let namespace = self.namespace.clone();
        move |source| SourceError::Kubernetes {
            step,
            namespace: namespace.clone(),
            source: Box::new(source),
        }
    }
}

#[async_trait]
impl ConnectionSource for Secrets {
    async fn find(&self, name: &ClusterName) -> Result<Option<Connection>, SourceError> {
        let secret = format!("{PREFIX}{}-{}{SUFFIX}", name.namespace, name.name);
        let found = self.api.get_opt(&secret).await;
        found.map_err(self.error("read a cluster's Secret"))?.map(|found| load(&found)).transpose()
    }

    async fn all(&self) -> Result<Vec<Connection>, SourceError> {
        let listed = self.api.list(&ListParams::default()).await;
        let listed = listed.map_err(self.error("list the clusters' Secrets"))?;
        let ours = |secret: &&Secret| {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            name.starts_with(PREFIX)
                && name.ends_with(SUFFIX)
                && secret.data.as_ref().is_some_and(|data| data.contains_key(CLIENT_TOML))
        };
        listed.items.iter().filter(ours).map(load).collect()
    }
}

fn load(secret: &Secret) -> Result<Connection, SourceError> {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let label = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    let label = label.unwrap_or(name).to_owned();
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let read = |key: &'static str| {
        let value: &ByteString =
            data.get(key).ok_or_else(|| SourceError::Key { label: label.clone(), key })?;
        String::from_utf8(value.0.clone()).map_err(|_| SourceError::Value {
            label: label.clone(),
            key,
            value: "not text".to_owned(),
        })
    };
    let mds = parse_client_toml(&label, &read(CLIENT_TOML)?)?;
    let identity =
        Identity { ca_pem: read(CA_FILE)?, cert_pem: read(CERT_FILE)?, key_pem: read(KEY_FILE)? };
    let uuid = read(CLUSTER_UUID)?;
    let cluster = uuid.trim().parse().map_err(|_| SourceError::Value {
        label: label.clone(),
        key: CLUSTER_UUID,
        value: uuid.clone(),
    })?;
    Ok(Connection { label, cluster: Some(cluster), mds, identity })
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve_types::ClusterId;

    fn secret(uuid: &str) -> Secret {
        let entries = [
            (CLIENT_TOML, "mds = [\"demo-mds-0.demo-mds.curve.svc:7100\"]\ntls_dir = \".\""),
            (CA_FILE, "ca"),
            (CERT_FILE, "cert"),
            (KEY_FILE, "key"),
            (CLUSTER_UUID, uuid),
        ];
        let data =
            entries.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
        let mut secret = Secret { data: Some(data.into_iter().collect()), ..Default::default() };
        secret.metadata.name = Some("curve-storage-demo-csi".to_owned());
        secret
    }

    #[test]
    fn a_secret_of_the_operator_is_a_connection() {
        let id = ClusterId::random();
        let connection = load(&secret(&id.to_string())).expect("complete");
        assert_eq!((connection.label.as_str(), connection.cluster), ("storage-demo", Some(id)));
        assert_eq!(connection.mds, ["demo-mds-0.demo-mds.curve.svc:7100"]);
    }

    #[test]
    fn what_a_secret_lacks_is_named() {
        let error = load(&secret("seven")).expect_err("no uuid").to_string();
        assert!(error.contains("seven") && error.contains("storage-demo"), "{error}");
        let mut incomplete = secret("seven");
        incomplete.data.as_mut().expect("data").remove(KEY_FILE);
        assert!(load(&incomplete).expect_err("no key").to_string().contains(KEY_FILE));
    }
}
