//! Finding a cluster, and finding it again after the operator has rotated its certificates.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use curve_csi::clusters::{Clusters, Connection, ConnectionSource, SourceError};
use curve_csi::error::CsiError;
use curve_csi::handle::ClusterName;
use curve_csi::volumes::{Connector, VolumeError, VolumeService};
use curve_types::{ClusterId, VolumeId};
use curve_wire::pki::Identity;

use crate::doubles::{CLUSTER, MemoryMds};

const OLD_CERTIFICATE: &str = "old";

/// One connection, which a test replaces.
struct Rotated(Mutex<Connection>);

#[async_trait]
impl ConnectionSource for Rotated {
    async fn find(&self, name: &ClusterName) -> Result<Option<Connection>, SourceError> {
        let connection = self.0.lock().expect("not poisoned").clone();
        Ok((name.to_string() == connection.label).then_some(connection))
    }

    async fn all(&self) -> Result<Vec<Connection>, SourceError> {
        Ok(vec![self.0.lock().expect("not poisoned").clone()])
    }
}

/// The old certificate is accepted when connecting, and not when calling.
struct ByCertificate;

#[async_trait]
impl Connector for ByCertificate {
    async fn connect(&self, to: &Connection) -> Result<Arc<dyn VolumeService>, VolumeError> {
        let old = to.identity.cert_pem == OLD_CERTIFICATE;
        Ok(Arc::new(if old { MemoryMds::untrusting() } else { MemoryMds::default() }))
    }
}

fn rotated() -> (Arc<Rotated>, Clusters, ClusterId) {
    let id = ClusterId::random();
    let identity = Identity {
        ca_pem: String::new(),
        cert_pem: OLD_CERTIFICATE.to_owned(),
        key_pem: String::new(),
    };
    let mds = vec!["nowhere:1".to_owned()];
    let connection = Connection { label: CLUSTER.to_owned(), cluster: Some(id), mds, identity };
    let source = Arc::new(Rotated(Mutex::new(connection)));
    (source.clone(), Clusters::new(source, Arc::new(ByCertificate)), id)
}

async fn look_up(clusters: &Clusters, id: ClusterId) -> Result<(), CsiError> {
    let cluster = clusters.by_id(id).await?;
    let volume = VolumeId::random();
    let look = |service: Arc<dyn VolumeService>| async move { service.get(volume).await };
    clusters.call(&cluster, "look up", look).await.map(|_| ())
}

#[tokio::test]
async fn a_rotated_certificate_is_read_when_the_old_one_is_refused() {
    let (source, clusters, id) = rotated();
    let refused = look_up(&clusters, id).await.expect_err("old certificate");
    assert!(matches!(refused, CsiError::Volume { source: VolumeError::Untrusted(_), .. }));
    source.0.lock().expect("not poisoned").identity.cert_pem = "new".to_owned();
    for _ in 0..2 {
        let answered = look_up(&clusters, id).await.expect_err("no such volume");
        assert!(matches!(answered, CsiError::Volume { source: VolumeError::Missing(_), .. }));
    }
}

#[tokio::test]
async fn an_unknown_cluster_is_named_together_with_the_known_ones() {
    let (_, clusters, _) = rotated();
    let name = "curve/dmeo".parse().expect("a name");
    let error = clusters.by_name(&name).await.err().expect("unknown").to_string();
    assert!(error.contains("curve/dmeo") && error.contains(CLUSTER), "{error}");
    let other = ClusterId::random();
    let error = clusters.by_id(other).await.err().expect("unknown").to_string();
    assert!(error.contains(&other.to_string()) && error.contains(CLUSTER), "{error}");
}
