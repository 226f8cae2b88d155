//! Power loss at every moment: what was acknowledged is there, nothing is torn, and what the
//! state machines replay ends in the same bytes as the reference model.

mod common;

use common::crashes::{Disks, Log, run};
use common::model::{Host, crash_options};
use curve_store::Store;
use rand::SeedableRng;
use rand::rngs::SmallRng;

#[test]
fn acknowledged_work_survives_crashes_at_random_moments() {
    (0..60).for_each(|seed| run(seed, 4, Log::OnDevice));
}

#[test]
fn so_it_does_with_the_log_elsewhere() {
    (0..60).for_each(|seed| run(seed, 4, Log::Elsewhere));
}

#[test]
fn acknowledged_work_survives_a_crash_at_each_operation() {
    for (log, at) in
        [Log::OnDevice, Log::Elsewhere].iter().flat_map(|log| (0..120).map(move |at| (*log, at)))
    {
        let disks = Disks::format(log);
        let (store, _) = Store::open(disks.joined().expect("join"), crash_options()).expect("open");
        let mut host = Host::new(77, store);
        disks.crash_soon(|| at);
        let _ = host.work(150);
        disks.crash_now();
        let left = disks.torn(&mut SmallRng::seed_from_u64(at));
        host.after_crash(left.joined().expect("join")).end();
    }
}

/// `CURVE_STORE_SEEDS=2000 cargo test -p curve-store --test crash -- --ignored`
#[test]
#[ignore = "long: set CURVE_STORE_SEEDS to the number of seeds"]
fn acknowledged_work_survives_many_crashes() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let first = variable("CURVE_STORE_FIRST_SEED").unwrap_or(1_000);
    for seed in first..first + variable("CURVE_STORE_SEEDS").unwrap_or(500) {
        let log = if seed.is_multiple_of(3) { Log::Elsewhere } else { Log::OnDevice };
        run(seed, 6, log);
    }
}
