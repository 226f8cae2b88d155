//! What the crash tests would find: a few seeds of them fail once a bug is planted.

mod common;

use common::crashes::{Log, run};
use curve_types::planted::{Bug, plant};

/// Enough for what only threads that happen to meet bring out: a vote alone in its batch, and the
/// power lost before the next, is seen by 1 to 2 seeds of a hundred.
const SEEDS: u64 = 1000;

/// One test for all: a planted bug is the whole process's.
#[test]
fn planted_bugs_are_found() {
    // What is not the store's, and what costs no data.
    let others = [Bug::IgnoreEpoch, Bug::EmptySnapshot, Bug::LeakBlocks];
    let bugs = Bug::ALL.iter().filter(|(_, bug)| !others.contains(bug));
    for (name, bug) in bugs {
        plant(Some(*bug));
        let found = (0..SEEDS).find(|seed| is_found(*seed));
        let seed = found.unwrap_or_else(|| panic!("{name}: not within {SEEDS} seeds"));
        println!("{name} is found with seed {seed}");
        plant(None);
        run(seed, 4, Log::OnDevice);
    }
}

fn is_found(seed: u64) -> bool {
    std::panic::catch_unwind(|| run(seed, 4, Log::OnDevice)).is_err()
}
