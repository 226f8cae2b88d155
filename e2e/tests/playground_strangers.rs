//! What has no business with a playground is refused, says why, and disturbs nobody.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::playground::{Directory, Playground, Port, binary};

const PATIENCE: Duration = Duration::from_secs(30);

/// Sends bytes and returns what came back until the peer closed.
fn poke(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The peer may close before it has taken everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            anyhow::bail!("it neither answered nor closed within {PATIENCE:?}")
        }
        _ => Ok(answer),
    }
}

#[test]
fn garbage_on_every_port_is_refused_and_disturbs_nobody() -> Result<()> {
    let directory = Directory::create("garbage")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "16Mi"])?;
    let (before, ports) = (playground.pids()?, playground.ports()?);
    ensure!(ports.len() == 3 * 3 + 3 * 2 + 1, "ports: {ports:?}");
    let garbage: Vec<u8> =
        (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for Port { process, kind, address } in &ports {
        let name = format!("{process} {kind}");
        for bytes in [&garbage, &request[..], &preface[..], &[0xff; 64], &[0; 4096]] {
            let answer = poke(*address, bytes).with_context(|| name.clone())?;
            let text = String::from_utf8_lossy(&answer);
            ensure!(!text.contains("200 OK") && !text.contains("curve_"), "{name} says {text:?}");
        }
    }
    ensure!(playground.pids()? == before, "a process died of garbage");
    playground.wait_healthy(PATIENCE)?;
    let socket = directory.path.join("nbd.sock");
    let _export = playground.export("data", &socket)?;
    playground.stop()
}

#[test]
fn a_certificate_of_another_cluster_opens_nothing() -> Result<()> {
    let directory = Directory::create("foreign")?;
    let playground = Playground::start_small(&directory)?;
    let foreign = directory.path.join("foreign");
    let authority = curve_wire::pki::Authority::generate("foreign")?;
    authority.issue(curve_wire::pki::Role::Admin, "admin")?.save(&foreign)?;
    let text = std::fs::read_to_string(playground.config())?;
    let config = foreign.join("client.toml");
    std::fs::write(&config, text.replace("tls/admin", "."))?;
    let output = Command::new(binary()?)
        .args(["status", "--config"])
        .arg(&config)
        .output()
        .context("run curve")?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.starts_with("error: "), "{said}");
    playground.stop()
}

#[test]
fn mistakes_on_the_command_line_say_what_to_do() -> Result<()> {
    let directory = Directory::create("mistakes")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "16Mi"])?;
    let playground_dir = playground.dir().to_str().context("path")?.to_owned();
    let config = playground.config();
    let config = config.to_str().context("path")?;
    let cases: [(&[&str], i32, &str); 9] = [
        (&["status"], 2, "CURVE_CONFIG"),
        (&["status", "--config", "/none.toml"], 1, "/none.toml"),
        (&["volume", "create", "x", "--size", "big", "--config", config], 2, "512Mi"),
        (&["volume", "create", "x", "--size", "900Ti", "--config", config], 1, "size"),
        (&["volume", "create", "x", "--size", "60Gi", "--config", config], 1, "GiB"),
        (
            &["volume", "create", "x", "--size", "1Gi", "--pool", "p", "--config", config],
            1,
            "\"p\"",
        ),
        (&["volume", "show", "none", "--config", config], 1, "none"),
        (&["volume", "resize", "data", "--size", "8Mi", "--config", config], 1, "16"),
        (
            &["playground", "start", "--dir", &playground_dir, "--chunkservers", "2"],
            1,
            "already runs",
        ),
    ];
    for (args, code, word) in cases {
        let output = Command::new(binary()?)
            .args(args)
            .env_remove("CURVE_CONFIG")
            .output()
            .context("run curve")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{args:?}: {} {said}", output.status);
        ensure!(said.contains("error: ") && said.contains(word), "{args:?}: {said}");
    }
    let fresh = directory.path.join("fresh");
    let output = Command::new(binary()?)
        .args(["playground", "start", "--chunkservers", "2", "--dir"])
        .arg(&fresh)
        .output()
        .context("run curve")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("at least 3"), "{said}");
    playground.stop()
}
