//! Power loss at every moment: what was acknowledged is there, nothing is torn, and what the
//! state machines replay ends in the same bytes as the reference model.

mod common;

use std::sync::Arc;

use common::model::{Host, crash_options};
use common::sim_small;
use curve_store::{SimDisk, Store};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SIZE: u64 = 64 << 20;
/// Small enough that a run goes around the ring several times.
const WAL: u64 = 1 << 20;

/// Few enough that blocks are reused soon after they are released.
const BLOCKS: u64 = 2_000;

/// Works, crashes at a random operation, reopens, a few times on one disk.
fn run(seed: u64, cycles: u32) {
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

fn torn(disk: &SimDisk, rng: &mut SmallRng) -> SimDisk {
    let odds = *[0.0, 0.5, 0.5, 0.9, 1.0].get(rng.random_range(0..5)).expect("in range");
    disk.after_crash(|| rng.random_bool(odds))
}

#[test]
fn acknowledged_work_survives_crashes_at_random_moments() {
    (0..60).for_each(|seed| run(seed, 4));
}

#[test]
fn acknowledged_work_survives_a_crash_at_each_operation() {
    for at in 0..120 {
        let disk = sim_small(SIZE, WAL, BLOCKS);
        let (store, _) = Store::open(disk.clone(), crash_options()).expect("open");
        let mut host = Host::new(77, store);
        disk.crash_at(disk.operations() + at);
        let _ = host.work(150);
        disk.crash_at(disk.operations());
        let mut rng = SmallRng::seed_from_u64(at);
        host.after_crash(&Arc::new(torn(&disk, &mut rng))).end();
    }
}

/// `CURVE_STORE_SEEDS=2000 cargo test -p curve-store --test crash -- --ignored`
#[test]
#[ignore = "long: set CURVE_STORE_SEEDS to the number of seeds"]
fn acknowledged_work_survives_many_crashes() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let first = variable("CURVE_STORE_FIRST_SEED").unwrap_or(1_000);
    for seed in first..first + variable("CURVE_STORE_SEEDS").unwrap_or(500) {
        run(seed, 6);
    }
}
