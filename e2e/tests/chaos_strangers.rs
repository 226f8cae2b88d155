//! Every port of every pod refuses a stranger, and garbage disturbs nobody.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use curve_e2e::kubectl::{self, Namespace, Pod};
use curve_e2e::{engine, workload};
use xtask::deploy::RELEASE_NAMESPACE;

const RECOVERED: Duration = Duration::from_secs(120);
/// What is known to listen. The ports come from the pods: this proves that the test looked there.
const KNOWN: [(&str, u16); 9] = [
    ("mds", 7100),
    ("mds", 7101),
    ("mds", 7109),
    ("chunkserver", 7200),
    ("chunkserver", 7209),
    ("agent", 7309),
    ("operator", 7409),
    ("csi-controller", 7509),
    ("csi-node", 7509),
];

/// Sends what a stranger might, and prints what came back as hexadecimal. The first line is
/// whether the port was open at all. That the other side hangs up in mid-write is no failure.
fn probe(ip: &IpAddr, port: u16, garbage: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{ip}/{port} || {{ echo closed; exit 0; }}; echo open; trap '' PIPE; \
         printf '{garbage}' >&3; timeout 3 head -c 512 <&3 | od -An -tx1 | tr -d ' \\n'"
    )
}

#[test]
fn strangers_are_refused_on_every_port_of_every_pod() -> Result<()> {
    engine::wait_healthy(RECOVERED)?;
    let namespace = Namespace::create("chaos-strangers")?;
    let ns = &namespace.0;
    workload::start(ns, "stranger", "Filesystem", "64Mi")?;
    let mut pods = kubectl::pods(engine::NAMESPACE, &[])?;
    pods.extend(kubectl::pods(RELEASE_NAMESPACE, &[])?);
    for (component, port) in KNOWN {
        let serves = |pod: &Pod| pod.ready && pod.component == component && pod.declares(port);
        ensure!(pods.iter().any(serves), "no ready {component} declares port {port}: {pods:?}");
    }
    // On every pod, since one may listen where only another says so.
    let addressed = pods.iter().filter(|pod| pod.ip.is_some());
    let ports: BTreeSet<u16> = addressed.flat_map(|pod| pod.ports.values()).copied().collect();
    for pod in &pods {
        let (name, Some(ip)) = (&pod.name, &pod.ip) else { continue };
        for port in &ports {
            for garbage in
                ["GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n", "CRV1\\001\\000\\001\\002"]
            {
                let script = probe(ip, *port, garbage);
                let answer =
                    kubectl::run(&["-n", ns, "exec", "stranger", "--", "bash", "-c", &script])?;
                let mut lines = answer.lines();
                if lines.next() != Some("open") {
                    ensure!(!(pod.ready && pod.declares(*port)), "{name}: port {port} is closed");
                    continue;
                }
                let bytes = lines.next().unwrap_or_default();
                // A TLS alert (0x15) or nothing; "HTTP" would be an answer.
                ensure!(
                    bytes.is_empty() || bytes.starts_with("15"),
                    "{name} answered a stranger on port {port} with {bytes}"
                );
            }
        }
    }
    let after = engine::status()?;
    ensure!(after["health"] == "ok", "garbage disturbed the cluster: {}", after["messages"]);
    let marker = kubectl::exec(ns, "stranger", "echo ok >/data/x && sync && cat /data/x")?;
    ensure!(marker.trim() == "ok", "the volume stopped working");
    Ok(())
}
