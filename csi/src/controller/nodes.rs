//! Which nodes exist, and how many volumes each takes: from the CSINode objects that kubelet keeps
//! up to date, or from a list on the command line where there is no Kubernetes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::storage::v1::CSINode;
use kube::Api;

use crate::DRIVER_NAME;
use crate::clusters::SourceError;
use crate::error::CsiError;

/// A node with the node plugin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    /// Volumes it takes at a time; `None` without limit.
    pub volumes_max: Option<u32>,
}

/// Looks nodes up.
#[async_trait]
pub trait NodeDirectory: Send + Sync {
    /// `None` if no node of that id has registered the driver.
    async fn find(&self, node: &str) -> Result<Option<NodeInfo>, CsiError>;
}

/// Nodes of the Kubernetes cluster. The node id is the node's name.
pub struct KubernetesNodes {
    api: Api<CSINode>,
}

impl KubernetesNodes {
    pub fn new(client: kube::Client) -> Self {
        Self { api: Api::all(client) }
    }
}

#[async_trait]
impl NodeDirectory for KubernetesNodes {
    async fn find(&self, node: &str) -> Result<Option<NodeInfo>, CsiError> {
        // A name that no object can have would be an error of the API, not an absent object.
        let possible = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if node.is_empty() || !node.bytes().all(possible) {
            return Ok(None);
        }
        let found = self.api.get_opt(node).await.map_err(|source| SourceError::Kubernetes {
            place: format!("CSINode {node}"),
            source: Box::new(source),
        })?;
        Ok(found.and_then(|node| registered(&node)))
    }
}

fn registered(node: &CSINode) -> Option<NodeInfo> {
    let driver = node.spec.drivers.iter().find(|driver| driver.name == DRIVER_NAME)?;
    let count = driver.allocatable.as_ref().and_then(|allocatable| allocatable.count);
    Some(NodeInfo { volumes_max: count.and_then(|count| u32::try_from(count).ok()) })
}

/// Nodes named on the command line.
pub struct ListedNodes(pub BTreeMap<String, NodeInfo>);

impl ListedNodes {
    /// Reads one `NODE` or `NODE=VOLUMES_MAX`.
    pub fn parse(text: &str) -> Result<(String, NodeInfo), String> {
        let (node, volumes_max) = match text.split_once('=') {
            None => (text, None),
            Some((node, count)) => {
                let count = count.parse().map_err(|_| format!("{count:?} is not a number"))?;
                (node, Some(count))
            }
        };
        if node.is_empty() {
            return Err("expected NODE or NODE=VOLUMES_MAX".to_owned());
        }
        Ok((node.to_owned(), NodeInfo { volumes_max }))
    }
}

#[async_trait]
impl NodeDirectory for ListedNodes {
    async fn find(&self, node: &str) -> Result<Option<NodeInfo>, CsiError> {
        Ok(self.0.get(node).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::storage::v1::{CSINodeDriver, CSINodeSpec, VolumeNodeResources};

    #[test]
    fn a_node_counts_once_it_has_registered_the_driver() {
        let driver = |name: &str| CSINodeDriver {
            name: name.to_owned(),
            allocatable: Some(VolumeNodeResources { count: Some(7) }),
            ..Default::default()
        };
        let node = |drivers| CSINode { spec: CSINodeSpec { drivers }, ..Default::default() };
        assert_eq!(registered(&node(vec![driver("other.example")])), None);
        let found = registered(&node(vec![driver("other.example"), driver(DRIVER_NAME)]));
        assert_eq!(found, Some(NodeInfo { volumes_max: Some(7) }));
    }

    #[test]
    fn nodes_on_the_command_line_may_have_a_limit() {
        assert_eq!(ListedNodes::parse("a"), Ok(("a".to_owned(), NodeInfo { volumes_max: None })));
        let limited = NodeInfo { volumes_max: Some(4) };
        assert_eq!(ListedNodes::parse("a=4"), Ok(("a".to_owned(), limited)));
        assert!(ListedNodes::parse("a=x").is_err() && ListedNodes::parse("=4").is_err());
    }
}
