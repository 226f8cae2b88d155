//! Killing what a playground consists of: IO goes on or comes back, and nothing acknowledged is
//! lost, checked block by block.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use curve_client::pattern::{self, Ledger};
use curve_client::{AttachOptions, BlockDevice, ClientConfig, MdsClient, Volume};
use curve_e2e::playground::{Directory, Playground, run};

const VOLUME_BYTES: u64 = 256 << 20;
const BLOCKS: u64 = VOLUME_BYTES / 4096;
/// Writes under way at a time.
const WRITERS: u64 = 16;
const HEALED: Duration = Duration::from_secs(60);

async fn open(config: &Path) -> Result<Volume> {
    let config = ClientConfig::load(config)?;
    let mds = MdsClient::connect(&config.mds, &config.identity()?)?;
    let options = AttachOptions { node: "test".to_owned(), ..AttachOptions::default() };
    let session = mds.attach("data", &options).await?;
    Ok(Volume::open(mds, session).await?)
}

/// Writes self-describing blocks until told to stop.
struct Load {
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Load {
    /// With `tolerant`, a writer ends quietly at its first error: its outcome is open.
    fn start(volume: &Volume, ledger: Arc<Ledger>, tolerant: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers = (0..WRITERS)
            .map(|writer| {
                let writer = Writer {
                    volume: volume.clone(),
                    ledger: ledger.clone(),
                    stop: stop.clone(),
                    acknowledged: acknowledged.clone(),
                    random: writer * 7919 + 1,
                    first: writer * (BLOCKS / WRITERS),
                };
                tokio::spawn(writer.run(tolerant))
            })
            .collect();
        Self { ledger, stop, acknowledged, writers }
    }

    async fn progress(&self, more: u64) -> Result<()> {
        let (goal, started) = (self.acknowledged.load(Ordering::SeqCst) + more, Instant::now());
        while self.acknowledged.load(Ordering::SeqCst) < goal {
            ensure!(started.elapsed() < HEALED, "writes do not go on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn finish(self) -> Result<Arc<Ledger>> {
        self.stop.store(true, Ordering::SeqCst);
        for writer in self.writers {
            writer.await.context("a writer")??;
        }
        Ok(self.ledger)
    }
}

/// Writes in its own part of the volume, so that the versions of a block rise.
struct Writer {
    volume: Volume,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    random: u64,
    first: u64,
}

impl Writer {
    async fn run(mut self, tolerant: bool) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(11);
            let blocks = 1 + (self.random >> 60);
            let first = self.first + (self.random >> 20) % (BLOCKS / WRITERS - blocks);
            let version = self.ledger.sending(first, blocks);
            let data = pattern::fill(first, blocks, version);
            match self.volume.write(first * 4096, data).await {
                Ok(()) => {
                    self.ledger.acknowledged(first, blocks, version);
                    self.acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) if tolerant => return Ok(()),
                Err(error) => return Err(error).context("a write failed"),
            }
        }
        Ok(())
    }
}

/// Reads the whole volume and holds every block against the ledger.
async fn verify(volume: &Volume, ledger: &Ledger) -> Result<()> {
    const STEP: u64 = 256;
    for first in (0..BLOCKS).step_by(STEP as usize) {
        let data = volume.read(first * 4096, (STEP * 4096) as u32).await?;
        ledger.check(first, &data)?;
    }
    Ok(())
}

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
    let directory = Directory::create("crash")?;
    let mut playground = Playground::start_small(&directory)?;
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
