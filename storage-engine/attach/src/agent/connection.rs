//! How the agent reaches a cluster: addresses of its MDS and a certificate of this node. Read anew
//! for each attachment, since both may change.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use curve_client::{ClientConfig, ConfigError};
use curve_types::ClusterId;
use curve_wire::pki::Identity;
use thiserror::Error;

use super::ClusterName;

/// Where a cluster's MDS listens, and as whom to speak to it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// As recorded beside the connection, so that a handle of another cluster is noticed.
    pub cluster: Option<ClusterId>,
    /// `HOST:PORT` of every MDS.
    pub mds: Vec<String>,
    pub identity: Identity,
}

/// Why a connection could not be read.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("use the connection of {cluster}")]
    Config { cluster: ClusterName, source: Box<ConfigError> },
    #[error("{what} of cluster {cluster} is missing or malformed")]
    Content { cluster: ClusterName, what: &'static str },
    #[error("read the connection of {cluster} from {place}")]
    Fetch { cluster: ClusterName, place: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Where connections come from.
#[async_trait]
pub trait ConnectionSource: Send + Sync {
    /// `None` if there is no such cluster.
    async fn find(&self, cluster: &ClusterName) -> Result<Option<Connection>, SourceError>;
}

/// `DIR/NAMESPACE/NAME/` or `DIR/NAMESPACE-NAME/` with `client.toml`, the certificates that it
/// names, and optionally `cluster-uuid`.
pub struct ConnectionDir(PathBuf);

impl ConnectionDir {
    pub fn new(root: &Path) -> Self {
        Self(root.to_owned())
    }
}

#[async_trait]
impl ConnectionSource for ConnectionDir {
    async fn find(&self, cluster: &ClusterName) -> Result<Option<Connection>, SourceError> {
        let ClusterName { namespace, name } = cluster;
        let dirs = [self.0.join(namespace).join(name), self.0.join(format!("{namespace}-{name}"))];
        let Some(dir) = dirs.into_iter().find(|dir| dir.join("client.toml").exists()) else {
            return Ok(None);
        };
        let unusable =
            |source| SourceError::Config { cluster: cluster.clone(), source: Box::new(source) };
        let config = ClientConfig::load(&dir.join("client.toml")).map_err(unusable)?;
        let identity = config.identity().map_err(unusable)?;
        let path = dir.join("cluster-uuid");
        let id = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().parse().map_err(|_| SourceError::Content {
                cluster: cluster.clone(),
                what: "cluster-uuid",
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(SourceError::Read { path, source }),
        };
        Ok(Some(Connection { cluster: id, mds: config.mds, identity }))
    }
}

#[cfg(test)]
mod tests {
    use curve_wire::pki::{Authority, Role};

    use super::*;

    #[tokio::test]
    async fn both_layouts_are_found_and_a_stranger_is_not() {
        let root = tempfile::tempdir().expect("directory");
        let authority = Authority::generate("demo").expect("authority");
        let id = ClusterId::random();
        for (dir, uuid) in [("curve/demo", Some(id)), ("curve-other", None)] {
            let dir = root.path().join(dir);
            authority.issue(Role::Agent, "node1").expect("issue").save(&dir).expect("save");
            let toml = "mds = [\"a:1\", \"b:1\"]\ntls_dir = \".\"\n";
            std::fs::write(dir.join("client.toml"), toml).expect("write");
            if let Some(uuid) = uuid {
                std::fs::write(dir.join("cluster-uuid"), format!("{uuid}\n")).expect("write");
            }
        }
        let source = ConnectionDir::new(root.path());
        let find =
            async |name: &str| source.find(&name.parse().expect("name")).await.expect("read");
        let demo = find("curve/demo").await.expect("there");
        assert_eq!((demo.cluster, demo.mds.len()), (Some(id), 2));
        assert_eq!(find("curve/other").await.expect("there").cluster, None);
        assert!(find("curve/none").await.is_none());
    }
}
