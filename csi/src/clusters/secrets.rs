//! Connections from Secrets that the operator writes into the driver's own namespace, one per
//! CurveCluster: `curve-NAMESPACE-NAME-csi`. The driver may get each of them, by a Role that the
//! operator keeps, and list CurveClusters, but not list Secrets.

use std::collections::BTreeMap;

use async_trait::async_trait;
use curve_wire::pki::{CA_FILE, CERT_FILE, Identity, KEY_FILE};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, ResourceExt};

use super::{Connection, ConnectionSource, SourceError, parse_client_toml};
use crate::handle::ClusterName;

const CLIENT_TOML: &str = "client.toml";
const CLUSTER_UUID: &str = "cluster-uuid";

/// Reads through the API each time it is asked; `Clusters` keeps what it has read.
pub struct Secrets {
    secrets: Api<Secret>,
    clusters: Api<DynamicObject>,
    namespace: String,
}

impl Secrets {
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        let kind = GroupVersionKind::gvk("curve.io", "v1alpha1", "CurveCluster");
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            clusters: Api::all_with(client, &ApiResource::from_gvk(&kind)),
            namespace: namespace.to_owned(),
        }
    }
}

#[async_trait]
impl ConnectionSource for Secrets {
    async fn find(&self, name: &ClusterName) -> Result<Option<Connection>, SourceError> {
        let secret = format!("curve-{}-{}-csi", name.namespace, name.name);
        match self.secrets.get_opt(&secret).await {
            Ok(found) => found.map(|found| load(name, &found)).transpose(),
            // No Role names it: there is no such cluster, or it has not started.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(source) => {
                let place = format!("Secret {}/{secret}", self.namespace);
                Err(SourceError::Kubernetes { place, source: Box::new(source) })
            }
        }
    }

    async fn all(&self) -> Result<Vec<Connection>, SourceError> {
        let listed = self.clusters.list_metadata(&ListParams::default()).await;
        let listed = listed.map_err(|source| SourceError::Kubernetes {
            place: "the list of CurveClusters".to_owned(),
            source: Box::new(source),
        })?;
        let mut connections = Vec::new();
        for cluster in listed {
            let namespace = cluster.namespace().unwrap_or_default();
            connections
                .extend(self.find(&ClusterName { namespace, name: cluster.name_any() }).await?);
        }
        Ok(connections)
    }
}

fn load(cluster: &ClusterName, secret: &Secret) -> Result<Connection, SourceError> {
    let label = cluster.to_string();
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
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

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
        Secret { data: Some(data.into_iter().collect()), ..Default::default() }
    }

    fn name(text: &str) -> ClusterName {
        text.parse().expect("a name")
    }

    #[test]
    fn a_secret_of_the_operator_is_a_connection() {
        let id = ClusterId::random();
        let connection = load(&name("storage/demo"), &secret(&id.to_string())).expect("complete");
        assert_eq!((connection.label.as_str(), connection.cluster), ("storage/demo", Some(id)));
        assert_eq!(connection.mds, ["demo-mds-0.demo-mds.curve.svc:7100"]);
    }

    #[test]
    fn what_a_secret_lacks_is_named() {
        let demo = name("storage/demo");
        let error = load(&demo, &secret("seven")).expect_err("no uuid").to_string();
        assert!(error.contains("seven") && error.contains("storage/demo"), "{error}");
        let mut incomplete = secret("seven");
        incomplete.data.as_mut().expect("data").remove(KEY_FILE);
        assert!(load(&demo, &incomplete).expect_err("no key").to_string().contains(KEY_FILE));
    }

    /// What the API server answers a driver that may read the Secret of storage/demo and no other.
    fn answer(path: &str) -> (u16, Value) {
        let cluster = |name: &str| json!({"metadata": {"namespace": "storage", "name": name}});
        let failure = |code: u16, reason: &str| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "as told", "reason": reason, "code": code,
            });
            (code, status)
        };
        match path {
            "/apis/curve.io/v1alpha1/curveclusters" => {
                (200, json!({"metadata": {}, "items": [cluster("demo"), cluster("starting")]}))
            }
            "/api/v1/namespaces/curve-system/secrets/curve-storage-demo-csi" => {
                (200, json!(secret(&ClusterId::random().to_string())))
            }
            "/api/v1/namespaces/curve-system/secrets/curve-storage-broken-csi" => {
                failure(500, "InternalError")
            }
            _ => failure(403, "Forbidden"),
        }
    }

    #[tokio::test]
    async fn a_cluster_whose_secret_may_not_be_read_is_none() {
        let api = tower::service_fn(|request: Request<Body>| async move {
            let (code, body) = answer(request.uri().path());
            let body = Body::from(serde_json::to_vec(&body).expect("JSON"));
            let response = Response::builder().status(code).body(body).expect("a response");
            Ok::<_, std::convert::Infallible>(response)
        });
        let secrets = Secrets::new(kube::Client::new(api, "default"), "curve-system");
        let found = secrets.all().await.expect("listed");
        let labels: Vec<&str> = found.iter().map(|connection| &*connection.label).collect();
        assert_eq!(labels, ["storage/demo"]);
        assert!(secrets.find(&name("storage/dmeo")).await.expect("asked").is_none());
        let error = secrets.find(&name("storage/broken")).await.expect_err("500").to_string();
        assert_eq!(error, "read Secret curve-system/curve-storage-broken-csi");
    }
}
