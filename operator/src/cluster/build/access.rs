//! Who may read a cluster's connections: Roles that name each Secret, in the operator's namespace,
//! so that neither the agents nor the CSI controller may read any other Secret there.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use serde_json::json;

use crate::cluster::names::ClusterKey;
use crate::object::typed;

/// Accounts of the chart whose pods use connections.
const CSI_ACCOUNT: &str = "curve-csi-controller";
const AGENT_ACCOUNT: &str = "curve-agent";

/// The Roles over `connections`, and what gives them to their accounts. No owner: that cannot be
/// in another namespace.
pub fn build_access(
    key: &ClusterKey,
    connections: &[Secret],
    operator_namespace: &str,
) -> (Vec<Role>, Vec<RoleBinding>) {
    let names = connections.iter().map(ResourceExt::name_any);
    let (csi, agents): (Vec<_>, Vec<_>) = names.partition(|name| *name == key.csi_secret());
    let accounts = [(key.csi_secret(), CSI_ACCOUNT, csi), (key.node_role(), AGENT_ACCOUNT, agents)];
    // A rule without names would be a rule over all Secrets.
    let accounts = accounts.into_iter().filter(|(_, _, secrets)| !secrets.is_empty());
    let pairs = accounts.map(|(name, account, secrets)| {
        let metadata = json!({
            "name": name,
            "namespace": operator_namespace,
            "labels": key.labels(),
        });
        let role = typed(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [{
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": secrets,
                "verbs": ["get"],
            }],
        }));
        let binding = typed(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": name,
            },
            "subjects": [{
                "kind": "ServiceAccount",
                "name": account,
                "namespace": operator_namespace,
            }],
        }));
        (role, binding)
    });
    pairs.unzip()
}
