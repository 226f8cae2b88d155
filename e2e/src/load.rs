//! Writes of self-describing blocks to a volume, and the question what is really there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use curve_client::pattern::{self, Ledger};
use curve_client::{AttachOptions, BlockDevice, ClientConfig, MdsClient, Volume};

const VOLUME_BYTES: u64 = 256 << 20;
const BLOCKS: u64 = VOLUME_BYTES / 4096;
/// Writes under way at a time.
const WRITERS: u64 = 16;
/// Within which writes must go on.
const STALLED: Duration = Duration::from_secs(60);

/// Attaches the volume `data`, of `VOLUME_BYTES`.
pub async fn open(config: &Path) -> Result<Volume> {
    let config = ClientConfig::load(config)?;
    let mds = MdsClient::connect(&config.mds, &config.identity()?)?;
    let options = AttachOptions { node: "test".to_owned(), ..AttachOptions::default() };
    let session = mds.attach("data", &options).await?;
    Ok(Volume::open(mds, session).await?)
}

/// Writes self-describing blocks until told to stop.
pub struct Load {
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Load {
    /// With `tolerant`, a writer ends quietly at its first error: its outcome is open.
    pub fn start(volume: &Volume, ledger: Arc<Ledger>, tolerant: bool) -> Self {
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

    /// Waits for so many more acknowledged writes.
    pub async fn progress(&self, more: u64) -> Result<()> {
        let (goal, started) = (self.acknowledged.load(Ordering::SeqCst) + more, Instant::now());
        while self.acknowledged.load(Ordering::SeqCst) < goal {
            ensure!(started.elapsed() < STALLED, "writes do not go on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends it; the first error of a writer is the answer.
    pub async fn finish(self) -> Result<Arc<Ledger>> {
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
pub async fn verify(volume: &Volume, ledger: &Ledger) -> Result<()> {
    const STEP: u64 = 256;
    for first in (0..BLOCKS).step_by(STEP as usize) {
        let data = volume.read(first * 4096, (STEP * 4096) as u32).await?;
        ledger.check(first, &data)?;
    }
    Ok(())
}
