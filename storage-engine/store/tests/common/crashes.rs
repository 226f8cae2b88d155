//! Power loss at random moments, again and again on one disk.

use std::sync::Arc;

use curve_store::{SimDisk, Store};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::model::{Host, crash_options};
use super::sim_small;

pub const SIZE: u64 = 64 << 20;
/// Small enough that a run goes around the ring several times.
pub const WAL: u64 = 1 << 20;

/// Few enough that blocks are reused soon after they are released.
pub const BLOCKS: u64 = 2_000;

/// Works, crashes at a random operation, reopens, a few times on one disk.
pub fn run(seed: u64, cycles: u32) {
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut disk = sim_small(SIZE, WAL, BLOCKS);
    if seed.is_multiple_of(2) {
        disk.make_sparse();
    }
    let (store, _) = Store::open(disk.clone(), crash_options()).expect("open");
    let mut host = Host::new(seed, store);
    for _ in 0..cycles {
        disk.crash_at(disk.operations() + rng.random_range(0..150));
        let _ = host.work(rng.random_range(50..400));
        // Whatever is still queued meets the dead disk.
        disk.crash_at(disk.operations());
        let left = Arc::new(torn(&disk, &mut rng));
        if rng.random_bool(0.3) {
            // A second crash while recovering.
            left.crash_at(rng.random_range(0..4));
            let _ = Store::open(left.clone(), crash_options());
            disk = Arc::new(torn(&left, &mut rng));
        } else {
            disk = left;
        }
        host = host.after_crash(&disk);
    }
    host.check_live();
    host.end();
}

pub fn torn(disk: &SimDisk, rng: &mut SmallRng) -> SimDisk {
    let odds = *[0.0, 0.5, 0.5, 0.9, 1.0].get(rng.random_range(0..5)).expect("in range");
    disk.after_crash(|| rng.random_bool(odds))
}
