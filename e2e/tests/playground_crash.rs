//! Killing what a playground consists of: IO goes on or comes back, and nothing acknowledged is
//! lost, checked block by block.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_client::pattern::Ledger;
use curve_e2e::load::{Load, open, verify};
use curve_e2e::playground::{Directory, Playground, run};

const HEALED: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn killing_each_process_in_turn_is_not_seen_by_a_writer() -> Result<()> {
    let directory = Directory::create("kill")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "256Mi"])?;
    let volume = open(&playground.config()).await?;
    let load = Load::start(&volume, Arc::default(), false);
    load.progress(200).await?;
    for (name, _) in playground.pids()? {
        playground.kill_child(&name)?;
        load.progress(200).await.with_context(|| format!("after {name} was killed"))?;
        // The next one only when this one is back: two of three would be one too many.
        let whole = tokio::task::block_in_place(|| playground.wait_healthy(HEALED));
        whole.with_context(|| format!("after {name} was killed"))?;
    }
    let ledger = load.finish().await?;
    verify(&volume, &ledger).await?;
    playground.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_the_death_of_all_processes() -> Result<()> {
    survives_the_death_of_all("crash", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_with_logs_on_devices_of_their_own() -> Result<()> {
    survives_the_death_of_all("crash-log", &["--log-device-size", "64Mi"]).await
}

async fn survives_the_death_of_all(name: &str, args: &[&str]) -> Result<()> {
    let directory = Directory::create(name)?;
    let args = [&["--device-size", "2Gi"], args].concat();
    let mut playground = Playground::start(&directory, &args)?;
    playground.curve(&["volume", "create", "data", "--size", "256Mi"])?;
    let ledger: Arc<Ledger> = Arc::default();
    for round in 0..2 {
        let volume = open(&playground.config()).await?;
        verify(&volume, &ledger).await.with_context(|| format!("before round {round}"))?;
        let load = Load::start(&volume, ledger.clone(), true);
        load.progress(500).await?;
        playground.kill_all()?;
        // What is in flight now has an open outcome; closing ends it.
        volume.close();
        load.finish().await?;
        playground = Playground::start(&directory, &[])?;
    }
    let volume = open(&playground.config()).await?;
    verify(&volume, &ledger).await?;
    ensure!(ledger.blocks().len() > 500, "the load wrote too little to prove anything");
    playground.stop()
}

#[test]
fn fio_over_nbd_does_not_notice_a_killed_leader() -> Result<()> {
    let directory = Directory::create("fio")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "64Mi"])?;
    let socket = directory.path.join("nbd.sock");
    let _export = playground.export("data", &socket)?;
    let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
    let verified = std::thread::scope(|scope| -> Result<()> {
        let fio = scope.spawn(|| {
            run(
                "fio",
                &[
                    "--name=verify",
                    "--ioengine=nbd",
                    &uri,
                    "--rw=randwrite",
                    "--bs=4k",
                    "--iodepth=16",
                    "--size=64M",
                    "--time_based",
                    "--runtime=12",
                    "--verify=crc32c",
                    "--verify_backlog=512",
                    "--verify_fatal=1",
                    "--verify_state_save=0",
                ],
            )
        });
        std::thread::sleep(Duration::from_secs(3));
        let leader = busiest(&playground)?;
        playground.kill_child(&leader)?;
        fio.join().expect("fio's thread").map(|_| ())
    });
    verified?;
    playground.stop()
}

fn busiest(playground: &Playground) -> Result<String> {
    let status = playground.status()?;
    let devices = status["devices"].as_array().context("devices")?;
    let most = devices.iter().max_by_key(|device| device["leaders"].as_u64());
    Ok(most.and_then(|device| device["name"].as_str()).context("a device")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_playground_restarts_with_its_data_identities_and_one_more_disk() -> Result<()> {
    let directory = Directory::create("restart")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "256Mi"])?;
    let before = identities(&playground);
    let volume = open(&playground.config()).await?;
    let load = Load::start(&volume, Arc::default(), false);
    load.progress(300).await?;
    let ledger = load.finish().await?;
    let second =
        Playground::start(&directory, &[]).err().context("two playgrounds in one place")?;
    ensure!(format!("{second:#}").contains("already runs"), "{second:#}");
    playground.stop()?;
    volume.close();

    let args = ["--chunkservers", "4", "--device-size", "2Gi"];
    let playground = Playground::start(&directory, &args)?;
    let mut after = identities(&playground);
    ensure!(after.remove("chunkserver-3").is_some(), "there is no fourth chunkserver");
    ensure!(before == after, "identities changed from {before:?} to {after:?}");
    let volume = open(&playground.config()).await?;
    verify(&volume, &ledger).await?;
    volume.close();
    playground.stop()
}

fn identities(playground: &Playground) -> HashMap<String, String> {
    let servers = playground.ready["chunkservers"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    servers.iter().map(|server| (text(&server["name"]), text(&server["device_id"]))).collect()
}
