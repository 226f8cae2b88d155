//! Connections from a directory: `DIR/NAMESPACE/NAME/` or `DIR/NAMESPACE-NAME/`, each with what
//! the operator's Secret would hold. For running without Kubernetes.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use curve_client::ClientConfig;

use super::{Connection, ConnectionSource, SourceError};
use crate::handle::ClusterName;

const CLIENT_TOML: &str = "client.toml";
const CLUSTER_UUID: &str = "cluster-uuid";

/// Reads the directory anew each time: it is small and may change.
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn load(&self, dir: &Path, label: String) -> Result<Connection, SourceError> {
        let unusable =
            |source| SourceError::Config { label: label.clone(), source: Box::new(source) };
        let config = ClientConfig::load(&dir.join(CLIENT_TOML)).map_err(unusable)?;
        let identity = config.identity().map_err(unusable)?;
        let uuid = dir.join(CLUSTER_UUID);
        let cluster = if uuid.exists() {
            let value = read(&uuid)?;
            let parsed = value.trim().parse();
            let key = CLUSTER_UUID;
            Some(parsed.map_err(|_| SourceError::Value { label: label.clone(), key, value })?)
        } else {
            None
        };
        Ok(Connection { label, cluster, mds: config.mds, identity })
    }
}

#[async_trait]
impl ConnectionSource for Directory {
    async fn find(&self, name: &ClusterName) -> Result<Option<Connection>, SourceError> {
        let nested = self.root.join(&name.namespace).join(&name.name);
        let flat = self.root.join(format!("{}-{}", name.namespace, name.name));
        match [nested, flat].into_iter().find(|dir| dir.join(CLIENT_TOML).exists()) {
            Some(dir) => {
                let label = label(&self.root, &dir);
                self.load(&dir, label).map(Some)
            }
            None => Ok(None),
        }
    }

    async fn all(&self) -> Result<Vec<Connection>, SourceError> {
        let mut found = Vec::new();
        for dir in directories(&self.root)? {
            let nested = directories(&dir)?;
            for dir in std::iter::once(dir).chain(nested) {
                if dir.join(CLIENT_TOML).exists() {
                    found.push(self.load(&dir, label(&self.root, &dir))?);
                }
            }
        }
        Ok(found)
    }
}

fn label(root: &Path, dir: &Path) -> String {
    dir.strip_prefix(root).unwrap_or(dir).display().to_string()
}

fn directories(of: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let error = |source| SourceError::Read { path: of.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(of).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String, SourceError> {
    let error = |source| SourceError::Read { path: path.to_owned(), source };
    std::fs::read_to_string(path).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve_types::ClusterId;
    use curve_wire::pki::{Authority, Role};

    fn write_connection(dir: &Path, uuid: Option<ClusterId>) {
        let authority = Authority::generate("demo").expect("authority");
        authority.issue(Role::Csi, "csi").expect("issue").save(dir).expect("save");
        std::fs::write(dir.join(CLIENT_TOML), "mds = [\"a:1\", \"b:1\"]\ntls_dir = \".\"\n")
            .expect("write");
        if let Some(uuid) = uuid {
            std::fs::write(dir.join(CLUSTER_UUID), format!("{uuid}\n")).expect("write");
        }
    }

    #[tokio::test]
    async fn both_layouts_are_found() {
        let root = tempfile::tempdir().expect("tempdir");
        let uuid = ClusterId::random();
        write_connection(&root.path().join("curve/demo"), Some(uuid));
        write_connection(&root.path().join("curve-other"), None);
        let source = Directory::new(root.path());
        let find = |name: &str| name.parse::<ClusterName>().expect("name");
        let demo = source.find(&find("curve/demo")).await.expect("read").expect("there");
        assert_eq!((demo.cluster, demo.mds.len()), (Some(uuid), 2));
        let other = source.find(&find("curve/other")).await.expect("read").expect("there");
        assert_eq!((other.cluster, other.label.as_str()), (None, "curve-other"));
        assert!(source.find(&find("curve/none")).await.expect("read").is_none());
        let labels: Vec<String> =
            source.all().await.expect("read").into_iter().map(|c| c.label).collect();
        assert_eq!(labels, ["curve/demo", "curve-other"]);
    }

    #[tokio::test]
    async fn a_broken_connection_is_named() {
        let root = tempfile::tempdir().expect("tempdir");
        let dir = root.path().join("curve-demo");
        write_connection(&dir, None);
        std::fs::write(dir.join(CLIENT_TOML), "mds = 7").expect("write");
        let name = "curve/demo".parse().expect("name");
        let error = Directory::new(root.path()).find(&name).await.expect_err("broken");
        assert!(error.to_string().contains("curve-demo"), "{error}");
    }
}
