//! Clients that write and read one volume, each fencing the one before it. The first of them also
//! takes snapshots, makes the volume larger, and in the end reads, compares and deletes everything.

mod ending;
mod resizes;
mod snapshots;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use curve_client::pattern::{examine, fill};
use curve_client::{
    AttachOptions, BlockDevice, CreateVolume, MdsClient, Session, Volume, VolumeOptions,
};
use curve_types::{BLOCK_SIZE, CHUNK_SIZE, VolumeLimits};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::history::{History, Kind};

/// The one that every cluster begins with.
const POOL: &str = "default";
const VOLUME: &str = "volume";
const NODE: &str = "sim";
/// Chunks of the volume, which lie in different copysets, at first and at most, and blocks used in
/// each: few, so that operations meet.
const CHUNKS: u64 = 3;
const CHUNKS_MAX: u64 = 5;
const BLOCKS: u64 = 6;
/// Operations of one client under way at once.
const WORKERS: usize = 3;
const RETRY: Duration = Duration::from_millis(200);

/// What clients do besides writes and reads, as it is counted.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    snapshots::KINDS.into_iter().chain(resizes::KINDS)
}

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

    /// Chunks that the volume is known to have.
    fn chunks(&self) -> u64 {
        self.history.size() / CHUNK_SIZE
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

/// Repeats what is given until it succeeds.
async fn insist(step: &str, what: impl AsyncFn() -> Result<()>) {
    while let Err(error) = what().await {
        tracing::debug!(%error, step, "not yet");
        tokio::time::sleep(RETRY).await;
    }
}

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
    if number > 0 {
        while !shared.is_made() {
            tokio::time::sleep(RETRY).await;
        }
        use_volume(rng, &mds, &shared).await;
        return Ok(());
    }
    if !shared.is_made() {
        let asked = shared.history.now();
        insist("make the volume", async || make(&mds).await).await;
        shared.history.sized(asked, CHUNKS * CHUNK_SIZE);
        shared.inner.borrow_mut().is_made = true;
    }
    let snapshots = snapshots::run(StdRng::from_rng(&mut rng), &mds, &shared);
    let resizes = resizes::run(StdRng::from_rng(&mut rng), &mds, &shared);
    tokio::join!(use_volume(rng, &mds, &shared), snapshots, resizes);
    ending::run(&mds, &shared).await;
    shared.inner.borrow_mut().finished = true;
    Ok(())
}

/// Attaches the volume again and again.
async fn use_volume(mut rng: StdRng, mds: &MdsClient, shared: &Shared) {
    while !shared.is_stopping() {
        let time = Duration::from_millis(rng.random_range(500..6000));
        match attach(mds, shared).await {
            Ok((volume, epoch)) => {
                let seeds: Vec<u64> = (0..WORKERS).map(|_| rng.random()).collect();
                let workers = seeds.into_iter().map(|seed| work(seed, &volume, epoch, shared));
                let _ = tokio::time::timeout(time, futures::future::join_all(workers)).await;
            }
            Err(error) => tracing::debug!(%error, "not attached"),
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
    }
}

async fn attach(mds: &MdsClient, shared: &Shared) -> Result<(Volume, u64)> {
    let options = AttachOptions { node: NODE.to_owned(), force: true, ..Default::default() };
    let asked = shared.history.now();
    let session = mds.attach(VOLUME, &options).await?;
    shared.history.sized(asked, session.size);
    let epoch = session.epoch.0;
    shared.history.attached(epoch);
    shared.count("attachments");
    Ok((open(mds, session).await?, epoch))
}

async fn open(mds: &MdsClient, session: Session) -> Result<Volume> {
    let options = VolumeOptions { io_deadline: Duration::from_secs(20), ..Default::default() };
    Ok(Volume::open_with(mds.clone(), session, options).await?)
}

/// Writes and reads until the volume fails.
async fn work(seed: u64, volume: &Volume, epoch: u64, shared: &Shared) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !shared.is_stopping() {
        let chunk = rng.random_range(0..shared.chunks());
        let first = rng.random_range(0..BLOCKS);
        let count = rng.random_range(1..=(BLOCKS - first).min(3));
        let first = chunk * (CHUNK_SIZE / BLOCK_SIZE) + first;
        let is_write = rng.random_bool(0.6);
        let done = async {
            if volume.size() <= chunk * CHUNK_SIZE {
                resizes::learn(volume, shared).await?;
            }
            match is_write {
                true => write(volume, first, count, epoch, shared).await,
                false => read(volume, first, count, epoch, shared).await,
            }
        };
        let done = done.await;
        if is_write && done.is_ok() && chunk >= CHUNKS {
            shared.count("writes behind the old end");
        }
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
    let found = versions(volume, first, count, shared).await?;
    for (op, version) in pending.iter().zip(found) {
        version.into_iter().for_each(|version| history.end(op, version));
    }
    shared.count("reads");
    Ok(())
}

/// Reads blocks; none in the place of one that is torn or another's.
async fn versions(
    volume: &Volume,
    first: u64,
    count: u64,
    shared: &Shared,
) -> Result<Vec<Option<u64>>> {
    let data = volume.read(first * BLOCK_SIZE, (count * BLOCK_SIZE) as u32).await?;
    let blocks = (first..).zip(data.chunks_exact(BLOCK_SIZE as usize));
    let version = |(block, bytes)| match examine(block, bytes) {
        Ok(stamp) => Some(stamp.version),
        Err(error) => {
            shared.violate(format!("data: {error}"));
            None
        }
    };
    Ok(blocks.map(version).collect())
}
