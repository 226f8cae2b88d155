//! Scrubs of a playground on command: what was damaged on a disk is found, repaired and told.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::metrics::scrape;
use curve_e2e::playground::{Directory, Playground, run};
use curve_e2e::wait;
use curve_wire::pki::Role;
use serde_json::Value;

/// What the damaged block was written with, many times over: no other block has it.
const PATTERN: [u8; 16] = *b"curve-scrub-test";
const BLOCK: usize = 4096;
const LIMIT: Duration = Duration::from_secs(60);

fn scrubs(playground: &Playground) -> Result<Value> {
    let text = playground.curve(&["scrub", "status", "--volume", "data", "-o", "json"])?;
    serde_json::from_str(&text).context("parse the scrubs")
}

/// Waits until a chunkserver that was killed has come back with all that it has.
fn wait_serving(playground: &Playground, name: &str) -> Result<()> {
    let ports = playground.ports()?;
    let port = ports.iter().find(|port| port.process == name && port.kind == "metrics");
    let address = port.context("its metrics")?.address;
    let tls = playground.dir().join("tls/admin");
    wait::until("the chunkserver to serve", LIMIT, || {
        let found = scrape(address, Role::Chunkserver, &tls);
        match found.map(|found| found.sum("curve_chunkserver_serving", "")) {
            Ok(Some(1.0)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// Changes one byte of every copy of the block that the device file has. Returns how many it has.
fn damage(device: &Path) -> Result<usize> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let len = file.metadata()?.len();
    let mut buffer = vec![0; 4 << 20];
    let (mut at, mut found) = (0, 0);
    while at < len {
        let read = file.read_at(&mut buffer, at)?;
        ensure!(read > 0, "{} ends at {at}", device.display());
        for (n, block) in buffer[..read].chunks_exact(BLOCK).enumerate() {
            if block.chunks_exact(PATTERN.len()).all(|part| part == PATTERN) {
                file.write_at(b"X", at + (n * BLOCK) as u64 + 1000)?;
                found += 1;
            }
        }
        at += read as u64;
    }
    file.sync_data()?;
    Ok(found)
}

#[test]
fn a_scrub_on_command_finds_and_repairs_damage_and_says_so() -> Result<()> {
    let directory = Directory::create("scrub")?;
    let playground = Playground::start(&directory, &["--device-size", "512Mi"])?;
    playground.curve(&["volume", "create", "data", "--size", "64Mi"])?;
    let socket = directory.path.join("nbd.sock");
    let pattern = directory.path.join("pattern");
    std::fs::write(&pattern, PATTERN.repeat(BLOCK / PATTERN.len()))?;
    {
        let _export = playground.export("data", &socket)?;
        let uri = format!("nbd+unix:///data?socket={}", socket.display());
        let special = format!("write -s {} 1M 4k", pattern.display());
        let args = ["-f", "raw", "-c", "write -P 0xaa 0 1M", "-c", &special, "-c", "flush", &uri];
        let said = run("qemu-io", &args)?;
        ensure!(!said.contains("failed"), "{said}");
    }
    playground.curve(&["scrub", "start", "--volume", "data", "--wait"])?;
    let before = scrubs(&playground)?;
    for scrub in before["copysets"].as_array().context("copysets")? {
        ensure!(scrub["last"]["replicas"] == "alike" && scrub["last"]["lost"] == 0, "{scrub}");
    }

    // What it has in memory it reads from there; after a restart that is nothing.
    playground.kill_child("chunkserver-1")?;
    wait_serving(&playground, "chunkserver-1")?;
    playground.wait_healthy(LIMIT)?;
    let device = playground.dir().join("chunkserver-1").join("device");
    ensure!(damage(&device)? > 0, "{} does not have the block", device.display());
    playground.curve(&["scrub", "start", "--volume", "data"])?;
    let after = wait::until("the end of the scrub", LIMIT, || {
        let found = scrubs(&playground).map_err(|error| format!("{error:#}"))?;
        let repaired: u64 = found["copysets"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|scrub| scrub["last"]["repaired"].as_u64())
            .sum();
        if repaired == 1 { Ok(found) } else { Err(found.to_string()) }
    })?;
    let text = playground.curve(&["scrub", "status"])?;
    ensure!(text.contains("alike") && text.starts_with("scrubs run at any time"), "{text}");
    let by_replica = after["copysets"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|scrub| scrub["last"]["repaired"] == 1)
        .context("the one that found it")?["last"]["by_replica"]
        .clone();
    let found = by_replica.as_array().into_iter().flatten();
    let names: Vec<_> = found.filter(|replica| replica["repaired"] == 1).collect();
    ensure!(names.len() == 1 && names[0]["chunkserver"] == "chunkserver-1", "{by_replica}");

    playground.curve(&["scrub", "schedule", "0 1 * * *", "--window", "5h"])?;
    let text = playground.curve(&["scrub", "status"])?;
    ensure!(text.contains("\"0 1 * * *\" (UTC), 5.0 h each"), "{text}");
    playground.curve(&["scheduler", "pause", "scrub"])?;
    let refused = playground.curve(&["scrub", "start"]);
    let said = format!("{:#}", refused.err().context("a paused scrub was started")?);
    ensure!(said.contains("curve scheduler resume scrub"), "{said}");
    playground.stop()
}
