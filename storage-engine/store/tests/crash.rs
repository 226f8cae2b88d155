//! Power loss at every moment: what was acknowledged is there, nothing is torn, and what the
//! state machines replay ends in the same bytes as the reference model.

mod common;

use std::sync::Arc;

use common::crashes::{BLOCKS, SIZE, WAL, run, torn};
use common::model::{Host, crash_options};
use common::sim_small;
use curve_store::Store;
use rand::SeedableRng;
use rand::rngs::SmallRng;

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
