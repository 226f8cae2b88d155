//! Power loss at random moments, again and again on the same disks.

use std::sync::Arc;

use curve_store::{
    Disk, SimDisk, Store, StoreError, format_small, format_small_with_log, with_log,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::format_options;
use super::model::{Host, crash_options};

const SIZE: u64 = 64 << 20;
/// Small enough that a run goes around the ring several times.
const WAL: u64 = 1 << 20;
/// Where a log's device has its ring.
const RING: u64 = 64 << 10;
/// Few enough that blocks are reused soon after they are released.
const BLOCKS: u64 = 2_000;

/// Where the log of a store lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Log {
    OnDevice,
    Elsewhere,
}

/// What one store has its data and its log on.
pub struct Disks {
    data: Arc<SimDisk>,
    log: Option<Arc<SimDisk>>,
}

impl Disks {
    pub fn format(log: Log) -> Self {
        let options = format_options(SIZE);
        let data = Arc::new(SimDisk::new(SIZE));
        if log == Log::OnDevice {
            format_small(&*data, &options, WAL, BLOCKS).expect("format");
            return Self { data, log: None };
        }
        let log = Arc::new(SimDisk::new(RING + WAL));
        format_small_with_log(data.clone(), log.clone(), &options, BLOCKS).expect("format");
        Self { data, log: Some(log) }
    }

    fn each(&self) -> impl Iterator<Item = &Arc<SimDisk>> {
        std::iter::once(&self.data).chain(&self.log)
    }

    /// As the store sees them.
    pub fn joined(&self) -> Result<Arc<dyn Disk>, StoreError> {
        match &self.log {
            None => Ok(self.data.clone()),
            Some(log) => with_log(self.data.clone(), log.clone()),
        }
    }

    /// The power goes at one of the next operations of each, not at the same moment.
    pub fn crash_soon(&self, mut after: impl FnMut() -> u64) {
        self.each().for_each(|disk| disk.crash_at(disk.operations() + after()));
    }

    /// Nothing that is still queued arrives.
    pub fn crash_now(&self) {
        self.crash_soon(|| 0);
    }

    pub fn torn(&self, rng: &mut SmallRng) -> Self {
        let data = Arc::new(torn(&self.data, rng));
        Self { data, log: self.log.as_ref().map(|log| Arc::new(torn(log, rng))) }
    }
}

/// Works, crashes at a random operation, reopens, a few times on the same disks.
pub fn run(seed: u64, cycles: u32, log: Log) {
    println!("seed {seed}, log {log:?}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut disks = Disks::format(log);
    if seed.is_multiple_of(2) {
        disks.data.make_sparse();
    }
    let (store, _) = Store::open(disks.joined().expect("join"), crash_options()).expect("open");
    let mut host = Host::new(seed, store);
    for _ in 0..cycles {
        disks.crash_soon(|| rng.random_range(0..150));
        let _ = host.work(rng.random_range(50..400));
        disks.crash_now();
        let left = disks.torn(&mut rng);
        if rng.random_bool(0.3) {
            // A second crash while recovering.
            left.crash_soon(|| rng.random_range(0..4));
            let _ = left.joined().and_then(|disk| Store::open(disk, crash_options()));
            disks = left.torn(&mut rng);
        } else {
            disks = left;
        }
        host = host.after_crash(disks.joined().expect("join"));
    }
    host.check_live();
    host.end();
}

fn torn(disk: &SimDisk, rng: &mut SmallRng) -> SimDisk {
    let odds = *[0.0, 0.5, 0.5, 0.9, 1.0].get(rng.random_range(0..5)).expect("in range");
    disk.after_crash(|| rng.random_bool(odds))
}
