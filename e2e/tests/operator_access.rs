//! Which Secrets an account may read: its own connections, and nothing else.

use std::time::Duration;

use anyhow::{Result, ensure};
use curve_e2e::{engine, kubectl};
use xtask::deploy::RELEASE_NAMESPACE;

const READY: Duration = Duration::from_secs(120);
/// The release's, and the cluster's.
const SECRETS: [(&str, &str); 6] = [
    (RELEASE_NAMESPACE, "curve-system-ca"),
    (RELEASE_NAMESPACE, "curve-system-metrics-tls"),
    (RELEASE_NAMESPACE, "curve-curve-demo-csi"),
    (RELEASE_NAMESPACE, "curve-curve-demo-node-node1"),
    (engine::NAMESPACE, "demo-ca"),
    (engine::NAMESPACE, "demo-mds-tls"),
];

#[test]
fn an_account_may_read_its_own_connections_and_no_other_secret() -> Result<()> {
    engine::wait_healthy(READY)?;
    for (namespace, secret) in SECRETS {
        kubectl::run(&["-n", namespace, "get", "secret", secret])?;
    }
    for (account, own) in [
        ("curve-system:curve-agent", Some("curve-curve-demo-node-node1")),
        ("curve-system:curve-csi-controller", Some("curve-curve-demo-csi")),
        ("curve-system:curve-csi-node", None),
        ("curve:demo-mds", None),
        ("curve:demo-chunkserver", None),
    ] {
        for (namespace, secret) in SECRETS {
            let may = kubectl::may(account, "get", namespace, secret)?;
            ensure!(may == (own == Some(secret)), "{account} get {namespace}/{secret}: {may}");
        }
        for namespace in [RELEASE_NAMESPACE, engine::NAMESPACE] {
            for verb in ["list", "watch", "patch", "delete"] {
                let may = kubectl::may(account, verb, namespace, "")?;
                ensure!(!may, "{account} may {verb} Secrets of {namespace}");
            }
        }
    }
    let (operator, cluster) = ("curve-system:curve-operator", engine::NAMESPACE);
    ensure!(kubectl::may(operator, "get", cluster, "demo-ca")?, "{operator} cannot read its CA");
    ensure!(!kubectl::may(operator, "list", cluster, "")?, "{operator} may list users' Secrets");
    Ok(())
}
