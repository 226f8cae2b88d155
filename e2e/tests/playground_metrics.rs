//! Every process that can run without Kubernetes serves its metrics in Prometheus' text format to
//! the cluster's certificates, and to nobody else.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::metrics::{Exposition, scrape};
use curve_e2e::playground::{Directory, Playground, run};
use curve_e2e::wait;
use curve_wire::pki::{Authority, Identity, Role};
use serde_json::Value;

const RESTARTED: Duration = Duration::from_secs(30);

/// What a process proves to be, and a metric that no other has.
fn expected(process: &str) -> (Role, &'static str) {
    match process {
        "playground" => (Role::Admin, "curve_playground_child_up"),
        name if name.starts_with("mds-") => (Role::Mds, "curve_mds_leader"),
        _ => (Role::Chunkserver, "curve_chunkserver_serving"),
    }
}

#[test]
fn every_process_of_a_playground_serves_its_metrics() -> Result<()> {
    let directory = Directory::create("metrics")?;
    let playground = Playground::start_small(&directory)?;
    let tls = playground.dir().join("tls/admin");
    let mut ports = playground.ports()?;
    ports.retain(|port| port.kind == "metrics");
    ensure!(ports.len() == 3 + 3 + 1, "{ports:?}");
    for port in &ports {
        let (role, name) = expected(&port.process);
        let found = scrape(port.address, role, &tls).with_context(|| port.process.clone())?;
        ensure!(found.sum(name, "").is_some(), "{} serves no {name}", port.process);
    }
    let own = ports.iter().find(|port| port.process == "playground");
    let own = own.context("the playground's own port")?.address;
    ensure!(playground.ready["metrics"] == own.to_string(), "{}", playground.ready);
    refuses_another_clusters_certificate(own, &tls, &directory.path.join("foreign"))?;
    counts_its_children(&playground, own, &tls)?;
    playground.stop()
}

fn refuses_another_clusters_certificate(
    address: SocketAddr,
    tls: &Path,
    foreign: &Path,
) -> Result<()> {
    let stranger = Authority::generate("foreign")?.issue(Role::Metrics, "stranger")?;
    // It trusts the right cluster, so that what fails is what the server thinks of it.
    Identity { ca_pem: Identity::load(tls)?.ca_pem, ..stranger }.save(foreign)?;
    ensure!(scrape(address, Role::Admin, foreign).is_err(), "a stranger was served");
    Ok(())
}

fn counts_its_children(playground: &Playground, own: SocketAddr, tls: &Path) -> Result<()> {
    let state = |label: &str| -> Result<(Option<f64>, Option<f64>)> {
        let found = scrape(own, Role::Admin, tls)?;
        let sum = |name| found.sum(name, label);
        Ok((sum("curve_playground_child_up"), sum("curve_playground_child_restarts_total")))
    };
    ensure!(state("")? == (Some(6.0), Some(0.0)), "before: {:?}", state(""));
    playground.kill_child("chunkserver-1")?;
    wait::until("a restart to be counted", RESTARTED, || match state("child=\"chunkserver-1\"") {
        Ok((Some(1.0), Some(1.0))) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(state("")? == (Some(6.0), Some(1.0)), "after: {:?}", state(""));
    Ok(())
}

/// Below the ports that playgrounds take, and those of outgoing connections.
fn free_address() -> Result<SocketAddr> {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let port = (19_000..20_000).find(is_free).context("no port is free")?;
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

#[test]
fn an_export_and_the_background_agent_serve_metrics_where_they_are_told_to() -> Result<()> {
    let directory = Directory::create("port")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "64Mi"])?;
    let (socket, tls) = (directory.path.join("nbd.sock"), playground.dir().join("tls/admin"));

    let taken = playground.ports()?.first().context("a port")?.address.to_string();
    let refused = playground.export_with("data", &socket, &["--listen-metrics", &taken]);
    ensure!(refused.is_err(), "{taken} belongs to another process");
    let volume = playground.curve(&["volume", "show", "data", "-o", "json"])?;
    let volume: Value = serde_json::from_str(&volume)?;
    ensure!(volume["sessions"] == Value::Array(vec![]), "it attached nevertheless: {volume}");

    let address = free_address()?;
    let listen = address.to_string();
    let mut export = playground.export_with("data", &socket, &["--listen-metrics", &listen])?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 64k", &uri])?;
    let found = scrape(address, Role::Admin, &tls)?;
    let written = found.sum("curve_volume_transferred_bytes_total", "op=\"write\"");
    ensure!(written >= Some(65536.0), "{written:?} bytes were written");
    export.stop()?;

    let state = directory.path.join("agent");
    let state = ["--state-dir", state.to_str().context("path")?];
    let checked = the_agent_serves_metrics(&playground, &state, address, &tls);
    // Whatever came out: a device that stays would outlive its cluster.
    let detached = playground.curve(&[&["volume", "detach", "data"][..], &state].concat());
    checked?;
    detached?;
    let found = scrape(address, Role::Admin, &tls)?;
    ensure!(found.sum("curve_agent_attachments", "") == Some(0.0), "the agent counts a volume");
    playground.stop()
}

fn the_agent_serves_metrics(
    playground: &Playground,
    state: &[&str],
    address: SocketAddr,
    tls: &Path,
) -> Result<()> {
    let attach = |listen: &str| {
        let listen = ["--listen-metrics", listen];
        playground.curve(&[&["volume", "attach", "data"][..], state, &listen].concat())
    };
    let device = attach(&address.to_string())?;
    let found = scrape(address, Role::Admin, tls)?;
    ensure!(found.sum("curve_agent_attachments", "") == Some(1.0), "the agent counts no volume");
    ensure!(found.sum("curve_volume_operations_total", "").is_some(), "no metrics of the volume");
    ensure!(attach(&address.to_string())? == device, "a second attach is the first");
    let refused = attach("127.0.0.1:1").err().context("the running agent was said to move")?;
    ensure!(refused.to_string().contains(&address.to_string()), "{refused}");
    Ok(())
}

#[test]
fn what_is_not_in_the_text_format_is_noticed() -> Result<()> {
    let good = "# HELP a A.\n# TYPE a counter\na_total{x=\"1\",y=\"a b\\\"\\\\\"} 2\n\
                a_total{x=\"2\"} 5e-1\n# HELP b_bytes B.\n# TYPE b_bytes gauge\n\
                # UNIT b_bytes bytes\nb_bytes -1\n# HELP c C.\n# TYPE c histogram\nc_sum 0.5\n\
                c_count 1\nc_bucket{le=\"+Inf\"} 1\n# EOF\n";
    let found = Exposition::parse(good)?;
    let sums =
        [("a_total", ""), ("a_total", "x=\"2\""), ("b_bytes", ""), ("b", ""), ("c_sum", "x")]
            .map(|(name, label)| found.sum(name, label));
    ensure!(sums == [Some(2.5), Some(0.5), Some(-1.0), None, None], "{sums:?}");
    let cases = [
        ("", "# EOF"),
        ("a_total 1\n# EOF\n", "no HELP and TYPE"),
        ("# HELP a A.\na_total 1\n# EOF\n", "no TYPE"),
        ("# HELP a A.\n# HELP b B.\n# TYPE b gauge\n# EOF\n", "a has no TYPE"),
        ("# HELP a A.\n# EOF\n", "a has no TYPE"),
        ("# TYPE a counter\n# EOF\n", "no HELP of a"),
        ("# HELP a \n# TYPE a counter\n# EOF\n", "nothing follows"),
        ("# HELP a A.\n# TYPE a sum\n# EOF\n", "unknown type"),
        ("# HELP a A.\n# TYPE a gauge\n# HELP a A.\n# EOF\n", "declared before"),
        ("# HELP a A.\n# TYPE a counter\na 1\n# EOF\n", "no sample of the counter a"),
        ("# HELP a A.\n# TYPE a gauge\nab 1\n# EOF\n", "no sample of the gauge a"),
        ("# HELP a A.\n# TYPE a gauge\na one\n# EOF\n", "no number"),
        ("# HELP a A.\n# TYPE a gauge\na\n# EOF\n", "no value"),
        ("# HELP a A.\n# TYPE a gauge\na{x=1} 1\n# EOF\n", "no labels"),
        ("# HELP a A.\n# TYPE a gauge\na{x=\"1} 1\n# EOF\n", "no labels"),
        ("# HELP a A.\n# TYPE a gauge\na 1\na 2\n# EOF\n", "a second value"),
    ];
    for (text, words) in cases {
        let error = Exposition::parse(text).err().with_context(|| format!("accepted {text:?}"))?;
        ensure!(format!("{error:#}").contains(words), "{text:?}: {error:#}");
    }
    Ok(())
}
