//! From a cluster's name or id to a connected `VolumeService`: looks the connection up where the
//! operator left it, keeps the service, and looks again when the cluster no longer answers it.

pub mod directory;
pub mod secrets;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use curve_client::{ClientConfig, ConfigError};
use curve_types::ClusterId;
use curve_wire::pki::Identity;
use thiserror::Error;

use crate::error::CsiError;
use crate::handle::ClusterName;
use crate::volumes::{Connector, VolumeError, VolumeService};

/// Where a cluster's MDS listens, and as whom to speak to it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Names the connection to people: `NAMESPACE/NAME` or what the source calls it.
    pub label: String,
    /// As recorded beside the connection; the MDS is asked where it is not.
    pub cluster: Option<ClusterId>,
    /// `HOST:PORT` of every MDS.
    pub mds: Vec<String>,
    pub identity: Identity,
}

impl Connection {
    /// Whether the other one would lead to the same place with the same certificate.
    fn same(&self, other: &Self) -> bool {
        let pems = |identity: &Identity| {
            [identity.ca_pem.clone(), identity.cert_pem.clone(), identity.key_pem.clone()]
        };
        self.mds == other.mds && pems(&self.identity) == pems(&other.identity)
    }
}

/// Why connections could not be read.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("use the connection {label}")]
    Config { label: String, source: Box<ConfigError> },
    #[error("parse client.toml of {label}")]
    ClientToml { label: String, source: toml::de::Error },
    #[error("{label} has no {key}")]
    Key { label: String, key: &'static str },
    #[error("{key} of {label} is not what it should be: {value:?}")]
    Value { label: String, key: &'static str, value: String },
    #[error("read {place}")]
    Kubernetes { place: String, source: Box<kube::Error> },
}

/// Where connections come from.
#[async_trait]
pub trait ConnectionSource: Send + Sync {
    /// The connection of one cluster, `None` if there is none of that name.
    async fn find(&self, name: &ClusterName) -> Result<Option<Connection>, SourceError>;
    /// All connections.
    async fn all(&self) -> Result<Vec<Connection>, SourceError>;
}

/// A connected cluster.
#[derive(Clone)]
pub struct Cluster {
    pub id: ClusterId,
    connection: Arc<Connection>,
    service: Arc<dyn VolumeService>,
}

impl Cluster {
    /// How people know it.
    pub fn label(&self) -> &str {
        &self.connection.label
    }
}

/// All clusters that this driver can reach.
pub struct Clusters {
    source: Arc<dyn ConnectionSource>,
    connector: Arc<dyn Connector>,
    /// By label. Never trusted to be complete or current.
    connected: Mutex<HashMap<String, Cluster>>,
}

impl Clusters {
    pub fn new(source: Arc<dyn ConnectionSource>, connector: Arc<dyn Connector>) -> Self {
        Self { source, connector, connected: Mutex::default() }
    }

    /// The cluster that a StorageClass names.
    pub async fn by_name(&self, name: &ClusterName) -> Result<Cluster, CsiError> {
        match self.source.find(name).await? {
            Some(connection) => self.connect(connection).await,
            None => {
                let known = self.known().await?;
                let reason =
                    format!("cluster {name} does not exist or has not started; known are {known}");
                Err(CsiError::invalid("parameters", reason))
            }
        }
    }

    /// The cluster that a volume handle names.
    pub async fn by_id(&self, id: ClusterId) -> Result<Cluster, CsiError> {
        let connected = self.connected.lock().expect("not poisoned").clone();
        if let Some(cluster) = connected.into_values().find(|cluster| cluster.id == id) {
            return Ok(cluster);
        }
        let mut unreachable = None;
        for connection in self.source.all().await? {
            if connection.cluster.is_some_and(|recorded| recorded != id) {
                continue;
            }
            match self.connect(connection).await {
                Ok(cluster) if cluster.id == id => return Ok(cluster),
                Ok(_) => {}
                Err(error) => unreachable = Some(error),
            }
        }
        let known = self.known().await?;
        Err(unreachable
            .unwrap_or_else(|| CsiError::UnknownCluster { cluster: id.to_string(), known }))
    }

    /// Every cluster, ordered by id so that paging over them is stable.
    pub async fn all(&self) -> Result<Vec<Cluster>, CsiError> {
        let mut clusters = Vec::new();
        for connection in self.source.all().await? {
            clusters.push(self.connect(connection).await?);
        }
        clusters.sort_by_key(|cluster| cluster.id);
        clusters.dedup_by_key(|cluster| cluster.id);
        Ok(clusters)
    }

    /// Whether connections can be read at all.
    pub async fn probe(&self) -> Result<(), CsiError> {
        self.source.all().await?;
        Ok(())
    }

    /// Runs a call on the cluster. Where it fails for want of a valid certificate or of an address
    /// that answers, and the operator has meanwhile written another connection, tries that once.
    pub async fn call<T, F, Fut>(
        &self,
        cluster: &Cluster,
        step: &'static str,
        call: F,
    ) -> Result<T, CsiError>
    where
        F: Fn(Arc<dyn VolumeService>) -> Fut,
        Fut: Future<Output = Result<T, VolumeError>>,
    {
        let error = match call(cluster.service.clone()).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !matches!(error, VolumeError::Untrusted(_) | VolumeError::Unavailable(_)) {
            return Err(CsiError::Volume { step, source: error });
        }
        let found = self.source.all().await?.into_iter();
        let current = found.into_iter().find(|connection| connection.label == cluster.label());
        match current {
            Some(connection) if !connection.same(&cluster.connection) => {
                tracing::info!(cluster = cluster.label(), %error, "the connection has changed");
                let again = self.connect(connection).await?;
                call(again.service).await.map_err(CsiError::volume(step))
            }
            _ => Err(CsiError::Volume { step, source: error }),
        }
    }

    async fn connect(&self, connection: Connection) -> Result<Cluster, CsiError> {
        let known = self.connected.lock().expect("not poisoned").get(&connection.label).cloned();
        if let Some(cluster) = known.filter(|cluster| cluster.connection.same(&connection)) {
            return Ok(cluster);
        }
        let step = "open a connection";
        let service = self.connector.connect(&connection).await.map_err(CsiError::volume(step))?;
        let id = match connection.cluster {
            Some(id) => id,
            None => service.cluster_id().await.map_err(CsiError::volume("name its cluster"))?,
        };
        let label = connection.label.clone();
        let cluster = Cluster { id, connection: Arc::new(connection), service };
        self.connected.lock().expect("not poisoned").insert(label, cluster.clone());
        Ok(cluster)
    }

    async fn known(&self) -> Result<String, CsiError> {
        let labels: Vec<String> = self.source.all().await?.into_iter().map(|c| c.label).collect();
        Ok(if labels.is_empty() { "none".to_owned() } else { labels.join(", ") })
    }
}

/// The addresses in a `client.toml` whose certificates are not in files.
fn parse_client_toml(label: &str, text: &str) -> Result<Vec<String>, SourceError> {
    let parsed: ClientConfig = toml::from_str(text)
        .map_err(|source| SourceError::ClientToml { label: label.to_owned(), source })?;
    if parsed.mds.is_empty() {
        return Err(SourceError::Key { label: label.to_owned(), key: "mds address" });
    }
    Ok(parsed.mds)
}
