//! What the simulator would find: a few of its seeds fail once a bug is planted.

use std::process::Command;

use curve_types::planted::Bug;

const SEEDS: u64 = 12;

fn fails(name: &str, seed: u64) -> bool {
    let seed = seed.to_string();
    let run = Command::new(env!("CARGO_BIN_EXE_curve-sim"))
        .args(["--seed", &seed, "--bug", name])
        .output()
        .expect("run the simulator");
    let report = String::from_utf8_lossy(&run.stdout);
    assert!(report.contains("violations"), "{report}{}", String::from_utf8_lossy(&run.stderr));
    if !run.status.success() {
        println!("{name} is found with seed {seed}: {}", report.trim());
    }
    !run.status.success()
}

#[test]
fn planted_bugs_are_found() {
    // A run writes too little to come back to a block that it gave up. The store's crash tests do.
    let bugs = Bug::ALL.iter().filter(|(_, bug)| *bug != Bug::ReuseBlockBeforeCheckpoint);
    for (name, _) in bugs {
        let found = (1..=SEEDS).any(|seed| fails(name, seed));
        assert!(found, "{name} was not found within {SEEDS} seeds");
    }
}
