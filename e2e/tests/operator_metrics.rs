//! Every pod of Curve serves its metrics in Prometheus' text format to a certificate that may do
//! nothing but read them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use curve_e2e::kubectl::{self, Pod};
use curve_e2e::metrics::scrape;
use curve_e2e::playground::Directory;
use curve_e2e::{engine, wait};
use curve_wire::pki::{Authority, Identity, Role};
use xtask::deploy::RELEASE_NAMESPACE;

/// Selects the pods of Curve that run.
const RUNNING: [&str; 4] =
    ["-l", "app.kubernetes.io/name=curve", "--field-selector", "status.phase=Running"];
const RECOVERED: Duration = Duration::from_secs(120);
/// A CSI driver counts what it was asked since it started, so it must have been asked.
const ASKED: Duration = Duration::from_secs(60);
const COMPONENTS: [&str; 6] =
    ["agent", "chunkserver", "csi-controller", "csi-node", "mds", "operator"];
/// Three each of MDS, chunkservers, agents and CSI nodes; two operators and CSI controllers.
const PORTS_MIN: usize = 3 * 4 + 2 * 2;

/// What the process proves to be, and series that no other kind of process has: a metric, and
/// words of its labels.
fn expected(pod: &Pod) -> Result<(Role, &'static str, &'static str)> {
    Ok(match &*pod.component {
        "mds" => (Role::Mds, "curve_mds_leader", ""),
        "chunkserver" => (Role::Chunkserver, "curve_chunkserver_serving", ""),
        "agent" => (Role::Metrics, "curve_agent_attachments", ""),
        "operator" => (Role::Metrics, "curve_operator_leading", ""),
        // The sidecars and kubelet each ask this when they start.
        "csi-controller" => {
            (Role::Metrics, "curve_csi_rpcs_total", "method=\"ControllerGetCapabilities\"")
        }
        "csi-node" => (Role::Metrics, "curve_csi_rpcs_total", "method=\"NodeGetInfo\""),
        other => bail!("{} is {other:?}, of which no metric is known", pod.name),
    })
}

/// A scraper's identity, issued by the authority in that Secret as the operator does.
fn issue(namespace: &str, secret: &str) -> Result<Identity> {
    let read = |key: &str| {
        let template = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
        kubectl::run(&["-n", namespace, "get", "secret", secret, "-o", &template])
    };
    let authority = Authority::from_pem(&read("tls.crt")?, &read("tls.key")?);
    authority.issue(Role::Metrics, "scraper").with_context(|| format!("issue from {secret}"))
}

fn check(pod: &Pod, tls: &Path, stranger: &Path) -> Result<()> {
    let port = pod.ports.get("metrics");
    let port = port.with_context(|| format!("{} has no port for metrics", pod.name))?;
    let ip = pod.ip.with_context(|| format!("{} has no address", pod.name))?;
    let address = SocketAddr::new(ip, *port);
    let (role, name, label) = expected(pod)?;
    wait::until(&format!("{name} {label} of {}", pod.name), ASKED, || {
        match scrape(address, role, tls).map(|found| found.sum(name, label)) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("it is not among the metrics".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    })?;
    let refused = scrape(address, role, stranger);
    ensure!(refused.is_err(), "{} answered a certificate of another authority", pod.name);
    Ok(())
}

#[test]
fn every_pod_serves_its_metrics_to_certificates_of_its_own_authority() -> Result<()> {
    engine::wait_healthy(RECOVERED)?;
    let directory = Directory::create("scrape")?;
    let cluster = issue(engine::NAMESPACE, &format!("{}-ca", engine::CLUSTER))?;
    let release = issue(RELEASE_NAMESPACE, "curve-system-ca")?;
    let (mut components, mut open) = (BTreeSet::new(), 0);
    for (namespace, own, other) in
        [(engine::NAMESPACE, &cluster, &release), (RELEASE_NAMESPACE, &release, &cluster)]
    {
        let tls = directory.path.join(namespace);
        let stranger = tls.join("stranger");
        own.save(&tls)?;
        // It trusts whom it asks, so that only the other side can refuse.
        Identity { ca_pem: own.ca_pem.clone(), ..other.clone() }.save(&stranger)?;
        for pod in kubectl::pods(namespace, &RUNNING)?.into_iter().filter(|pod| !pod.ending) {
            check(&pod, &tls, &stranger)?;
            components.insert(pod.component);
            open += 1;
        }
    }
    ensure!(components.iter().eq(COMPONENTS.iter()), "found only {components:?}");
    ensure!(open >= PORTS_MIN, "found only {open} ports");
    Ok(())
}
