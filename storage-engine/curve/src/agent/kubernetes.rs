//! Connections from Secrets that the operator writes into the agent's namespace, one per cluster
//! and node: `curve-NAMESPACE-NAME-node-NODE`. A Role that the operator keeps lets the agent get
//! those, and no other Secret.

use anyhow::{Context, Result};
use async_trait::async_trait;
use curve_attach::agent::{ClusterName, Connection, ConnectionSource, SourceError};
use curve_client::ClientConfig;
use curve_wire::pki::{CA_FILE, CERT_FILE, Identity, KEY_FILE};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

const CLIENT_TOML: &str = "client.toml";
const CLUSTER_UUID: &str = "cluster-uuid";

pub struct Secrets {
    api: Api<Secret>,
    namespace: String,
    node: String,
}

impl Secrets {
    pub async fn connect(namespace: &str, node: &str) -> Result<Self> {
        let client = kube::Client::try_default().await;
        let client = client
            .context("reach the Kubernetes API: outside of a pod, pass --connection-dir instead")?;
        let (namespace, node) = (namespace.to_owned(), node.to_owned());
        Ok(Self { api: Api::namespaced(client, &namespace), namespace, node })
    }
}

#[async_trait]
impl ConnectionSource for Secrets {
    async fn find(&self, cluster: &ClusterName) -> Result<Option<Connection>, SourceError> {
        let name = format!("curve-{}-{}-node-{}", cluster.namespace, cluster.name, self.node);
        match self.api.get_opt(&name).await {
            Ok(Some(secret)) => load(cluster, &secret).map(Some),
            Ok(None) => Ok(None),
            // No Role names it: there is no such cluster, or it has not started.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(error) => Err(SourceError::Fetch {
                cluster: cluster.clone(),
                place: format!("Secret {}/{name}", self.namespace),
                source: Box::new(error),
            }),
        }
    }
}

fn load(cluster: &ClusterName, secret: &Secret) -> Result<Connection, SourceError> {
    let error = |what| SourceError::Content { cluster: cluster.clone(), what };
    let text = |key: &'static str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        let value = value.ok_or_else(|| error(key))?;
        String::from_utf8(value.0.clone()).map_err(|_| error(key))
    };
    let config: ClientConfig =
        toml::from_str(&text(CLIENT_TOML)?).map_err(|_| error(CLIENT_TOML))?;
    let id = text(CLUSTER_UUID)?.trim().parse().map_err(|_| error(CLUSTER_UUID))?;
    let identity =
        Identity { ca_pem: text(CA_FILE)?, cert_pem: text(CERT_FILE)?, key_pem: text(KEY_FILE)? };
    Ok(Connection { cluster: Some(id), mds: config.mds, identity })
}

#[cfg(test)]
mod tests {
    use curve_types::ClusterId;
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_secret_of_the_operator_is_a_connection_and_what_it_lacks_is_named() {
        let cluster: ClusterName = "curve/demo".parse().expect("name");
        let id = ClusterId::random();
        let entries = [
            (CLIENT_TOML, "mds = [\"a:7100\", \"b:7100\"]\ntls_dir = \".\"".to_owned()),
            (CA_FILE, "ca".to_owned()),
            (CERT_FILE, "cert".to_owned()),
            (KEY_FILE, "key".to_owned()),
            (CLUSTER_UUID, format!("{id}\n")),
        ];
        let data = entries.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
        let mut secret = Secret { data: Some(data.into_iter().collect()), ..Default::default() };
        let connection = load(&cluster, &secret).expect("complete");
        assert_eq!((connection.cluster, connection.mds.len()), (Some(id), 2));
        secret.data.as_mut().expect("data").remove(KEY_FILE);
        let error = load(&cluster, &secret).expect_err("no key").to_string();
        assert!(error.contains(KEY_FILE) && error.contains("curve/demo"), "{error}");
    }
}
