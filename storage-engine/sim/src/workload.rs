//! Clients that write and read one volume, each fencing the one before it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_client::pattern::{examine, fill};
use curve_client::{AttachOptions, BlockDevice, CreateVolume, MdsClient, Volume, VolumeOptions};
use curve_types::{BLOCK_SIZE, CHUNK_SIZE, VolumeLimits};
use curve_wire::proto::Comparison;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::history::{History, Kind};

/// The one that every cluster begins with.
const POOL: &str = "default";
const VOLUME: &str = "volume";
/// Chunks of the volume, which lie in different copysets, and blocks used in each: few, so that
/// operations meet.
const CHUNKS: u64 = 3;
const BLOCKS: u64 = 6;
/// Operations of one client under way at once.
const WORKERS: usize = 3;
const RETRY: Duration = Duration::from_millis(200);

/// What all clients share.
#[derive(Clone, Default)]
pub struct Shared {
    pub history: History,
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    is_made: bool,
    stopping: bool,
    finished: bool,
    /// Found by a client itself.
    violations: Vec<String>,
    counters: BTreeMap<&'static str, u64>,
}

impl Shared {
    /// Counts of `kinds` are shown even if there is nothing to count.
    pub fn new(kinds: impl Iterator<Item = &'static str>) -> Self {
        let shared = Self::default();
        shared.inner.borrow_mut().counters = kinds.map(|kind| (kind, 0)).collect();
        shared
    }

    pub fn count(&self, what: &'static str) {
        *self.inner.borrow_mut().counters.entry(what).or_default() += 1;
    }

    pub fn counters(&self) -> BTreeMap<String, u64> {
        let inner = self.inner.borrow();
        inner.counters.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect()
    }

    pub fn has_written(&self) -> bool {
        self.inner.borrow().counters.contains_key("writes")
    }

    pub fn is_made(&self) -> bool {
        self.inner.borrow().is_made
    }

    /// Asks the clients to stop; one of them reads everything once more.
    pub fn stop(&self) {
        self.inner.borrow_mut().stopping = true;
    }

    fn is_stopping(&self) -> bool {
        self.inner.borrow().stopping
    }

    /// Everything was read once more.
    pub fn is_finished(&self) -> bool {
        self.inner.borrow().finished
    }

    pub fn violate(&self, what: String) {
        self.inner.borrow_mut().violations.push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.inner.borrow().violations.clone()
    }
}

/// Makes the volume; repeated until it succeeds.
async fn make(mds: &MdsClient) -> Result<()> {
    let volume = CreateVolume {
        name: VOLUME.to_owned(),
        pool: POOL.to_owned(),
        size: CHUNKS * CHUNK_SIZE,
        limits: VolumeLimits::default(),
        source: None,
    };
    mds.create_volume(volume).await?;
    Ok(())
}

/// Runs client `number` until it is asked to stop.
pub async fn run(number: u64, seed: u64, mds: MdsClient, shared: Shared) -> Result<()> {
    // A client that starts again goes on with other choices.
    let mut rng = StdRng::seed_from_u64(seed ^ (number << 32) ^ shared.history.next_version());
    while !shared.is_made() && number == 0 {
        match make(&mds).await {
            Ok(()) => shared.inner.borrow_mut().is_made = true,
            Err(error) => {
                tracing::debug!(%error, "nothing made yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    while !shared.is_made() {
        tokio::time::sleep(RETRY).await;
    }
    while !shared.is_stopping() {
        let time = Duration::from_millis(rng.random_range(500..6000));
        match attach(&mds, &shared).await {
            Ok((volume, epoch)) => {
                let seeds: Vec<u64> = (0..WORKERS).map(|_| rng.random()).collect();
                let workers = seeds.into_iter().map(|seed| work(seed, &volume, epoch, &shared));
                let _ = tokio::time::timeout(time, futures::future::join_all(workers)).await;
            }
            Err(error) => tracing::debug!(%error, "not attached"),
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
    }
    if number == 0 {
        while let Err(error) = read_all(&mds, &shared).await {
            tracing::debug!(%error, "not all read yet");
            tokio::time::sleep(RETRY).await;
        }
        while let Err(error) = compare(&mds, &shared).await {
            tracing::debug!(%error, "not all scrubbed yet");
            tokio::time::sleep(RETRY).await;
        }
        shared.inner.borrow_mut().finished = true;
    }
    Ok(())
}

async fn attach(mds: &MdsClient, shared: &Shared) -> Result<(Volume, u64)> {
    let options = AttachOptions { node: "sim".to_owned(), force: true, ..Default::default() };
    let session = mds.attach(VOLUME, &options).await?;
    let epoch = session.epoch.0;
    shared.history.attached(epoch);
    shared.count("attachments");
    let options = VolumeOptions { io_deadline: Duration::from_secs(20), ..Default::default() };
    Ok((Volume::open_with(mds.clone(), session, options).await?, epoch))
}

/// Writes and reads until the volume fails.
async fn work(seed: u64, volume: &Volume, epoch: u64, shared: &Shared) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !shared.is_stopping() {
        let chunk = rng.random_range(0..CHUNKS);
        let first = rng.random_range(0..BLOCKS);
        let count = rng.random_range(1..=(BLOCKS - first).min(3));
        let first = chunk * (CHUNK_SIZE / BLOCK_SIZE) + first;
        let done = match rng.random_bool(0.6) {
            true => write(volume, first, count, epoch, shared).await,
            false => read(volume, first, count, epoch, shared).await,
        };
        if let Err(error) = done {
            tracing::debug!(%error, epoch, "an operation failed");
            shared.count("failed operations");
            if volume.is_ended() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
    }
}

async fn write(volume: &Volume, first: u64, count: u64, epoch: u64, shared: &Shared) -> Result<()> {
    let history = &shared.history;
    let version = history.next_version();
    let begin = |block| history.begin(Kind::Write, block, version, epoch);
    let pending: Vec<_> = (first..first + count).map(begin).collect();
    volume.write(first * BLOCK_SIZE, fill(first, count, version)).await?;
    pending.iter().for_each(|op| history.end(op, version));
    shared.count("writes");
    Ok(())
}

async fn read(volume: &Volume, first: u64, count: u64, epoch: u64, shared: &Shared) -> Result<()> {
    let history = &shared.history;
    let pending: Vec<_> =
        (first..first + count).map(|block| history.begin(Kind::Read, block, 0, epoch)).collect();
    let data = volume.read(first * BLOCK_SIZE, (count * BLOCK_SIZE) as u32).await?;
    let blocks = data.chunks_exact(BLOCK_SIZE as usize);
    for ((block, bytes), op) in (first..).zip(blocks).zip(&pending) {
        match examine(block, bytes) {
            Ok(stamp) => history.end(op, stamp.version),
            Err(error) => shared.violate(format!("data: {error}")),
        }
    }
    shared.count("reads");
    Ok(())
}

/// Has every copyset scrubbed. Its replicas must be equal at one index of their log, and no block
/// be lost: the damaged ones have whole copies.
async fn compare(mds: &MdsClient, shared: &Shared) -> Result<()> {
    let copysets = mds.start_scrub(None).await?;
    loop {
        let scrubs = mds.scrubs(None).await?.copysets;
        if scrubs.iter().all(|scrub| !scrub.requested && scrub.running.is_none()) {
            ensure!(scrubs.len() == copysets.len(), "{} copysets scrubbed", scrubs.len());
            for scrub in &scrubs {
                let last = scrub.last.as_ref().context("a scrub that never ended")?;
                let alike = last.comparison() == Comparison::Alike;
                let reports = last.replicas.iter().filter_map(|replica| replica.report);
                if !alike || reports.map(|report| report.lost + report.unrepaired).sum::<u64>() > 0
                {
                    shared.violate(format!("equal replicas: {scrub:?}"));
                }
                shared.count("copysets compared");
            }
            return Ok(());
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads every block that was ever used, once.
async fn read_all(mds: &MdsClient, shared: &Shared) -> Result<()> {
    let (volume, epoch) = attach(mds, shared).await?;
    for chunk in 0..CHUNKS {
        let first = chunk * (CHUNK_SIZE / BLOCK_SIZE);
        read(&volume, first, BLOCKS, epoch, shared).await.context("last read")?;
    }
    let status = mds.status().await?;
    let is_whole = status.copysets_degraded == 0 && status.copysets_unavailable == 0;
    ensure!(status.copysets_whole > 0 && is_whole, "not whole: {:?}", status.messages);
    Ok(())
}
