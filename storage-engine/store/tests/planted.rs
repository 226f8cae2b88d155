//! What the crash tests would find: a few seeds of them fail once a bug is planted.

mod common;

use common::crashes::run;
use curve_types::planted::{Bug, plant};

/// The test has many more.
const SEEDS: u64 = 60;

/// One test for all: a planted bug is the whole process's.
#[test]
fn planted_bugs_are_found() {
    let bugs = Bug::ALL.iter().filter(|(_, bug)| *bug != Bug::IgnoreEpoch);
    for (name, bug) in bugs {
        plant(Some(*bug));
        let found = (0..SEEDS).find(|seed| std::panic::catch_unwind(|| run(*seed, 4)).is_err());
        let seed = found.unwrap_or_else(|| panic!("{name}: not within {SEEDS} seeds"));
        println!("{name} is found with seed {seed}");
        plant(None);
        run(seed, 4);
    }
}
