//! Every port of every pod refuses a stranger, and garbage disturbs nobody.

use std::time::Duration;

use anyhow::{Result, ensure};
use curve_e2e::{engine, kubectl, kubectl::Namespace, workload};

const RECOVERED: Duration = Duration::from_secs(120);
/// mds: gRPC, raft, metrics; chunkserver: data, metrics; agent, operator, csi: metrics.
const PORTS: [u16; 8] = [7100, 7101, 7109, 7200, 7209, 7309, 7409, 7509];

/// Sends what a stranger might, and prints what came back as hexadecimal. The first line is
/// whether the port was open at all. That the other side hangs up in mid-write is no failure.
fn probe(ip: &str, port: u16, garbage: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{ip}/{port} || {{ echo closed; exit 0; }}; echo open; trap '' PIPE; \
         printf '{garbage}' >&3; timeout 3 head -c 512 <&3 | od -An -tx1 | tr -d ' \\n'"
    )
}

fn pods() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for namespace in [engine::NAMESPACE, "curve-system"] {
        let path = "{range .items[*]}{.metadata.name} {.status.podIP}{\"\\n\"}{end}";
        let text =
            kubectl::run(&["-n", namespace, "get", "pods", "-o", &format!("jsonpath={path}")])?;
        for line in text.lines() {
            if let Some((name, ip)) = line.split_once(' ').filter(|(_, ip)| !ip.is_empty()) {
                found.push((name.to_owned(), ip.to_owned()));
            }
        }
    }
    Ok(found)
}

#[test]
fn strangers_are_refused_on_every_port_of_every_pod() -> Result<()> {
    engine::wait_healthy(RECOVERED)?;
    let namespace = Namespace::create("chaos-strangers")?;
    let ns = &namespace.0;
    workload::start(ns, "stranger", "Filesystem", "64Mi")?;
    let pods = pods()?;
    ensure!(pods.len() >= 6, "found only {pods:?}");
    let mut open = 0;
    for (pod, ip) in &pods {
        for port in PORTS {
            for garbage in
                ["GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n", "CRV1\\001\\000\\001\\002"]
            {
                let script = probe(ip, port, garbage);
                let answer =
                    kubectl::run(&["-n", ns, "exec", "stranger", "--", "bash", "-c", &script])?;
                let mut lines = answer.lines();
                if lines.next() != Some("open") {
                    continue;
                }
                open += 1;
                let bytes = lines.next().unwrap_or_default();
                // A TLS alert (0x15) or nothing; "HTTP" would be an answer.
                ensure!(
                    bytes.is_empty() || bytes.starts_with("15"),
                    "{pod} answered a stranger on port {port} with {bytes}"
                );
            }
        }
    }
    ensure!(open >= 20, "only {open} probes met an open port: the test looked in the wrong place");
    let after = engine::status()?;
    ensure!(after["health"] == "ok", "garbage disturbed the cluster: {}", after["messages"]);
    let marker = kubectl::exec(ns, "stranger", "echo ok >/data/x && sync && cat /data/x")?;
    ensure!(marker.trim() == "ok", "the volume stopped working");
    Ok(())
}
