//! What the simulator would find: a few of its seeds fail once a bug is planted.

use std::process::Command;

use curve_types::planted::Bug;

const SEEDS: u64 = 12;
/// What a violation may say: an invariant, or that a device does not have what its own marks say
/// was acknowledged. That a cluster is slow, or a task panics, finds nothing.
const FINDINGS: [&str; 6] = [
    "linearizability: ",
    "fencing: ",
    "promises: ",
    "snapshots: ",
    "space: ",
    "it was acknowledged",
];

/// The report of one seed.
fn run(seed: u64, bug: Option<&str>) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_curve-sim"))
        .args(["--seed", &seed.to_string()])
        .args(bug.map(|name| format!("--bug={name}")))
        .output()
        .expect("run the simulator");
    let report = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    assert!(report.contains("violations"), "{report}{}", String::from_utf8_lossy(&run.stderr));
    report
}

#[test]
fn planted_bugs_are_found() {
    // A run writes too little to come back to a block that it gave up. The store's crash tests do.
    let bugs = Bug::ALL.iter().filter(|(_, bug)| *bug != Bug::ReuseBlockBeforeCheckpoint);
    for (name, _) in bugs {
        let found = (1..=SEEDS).find_map(|seed| {
            let report = run(seed, Some(name));
            FINDINGS.iter().any(|finding| report.contains(finding)).then_some((seed, report))
        });
        let (seed, report) = found.unwrap_or_else(|| panic!("{name}: not within {SEEDS} seeds"));
        println!("{name} is found with seed {seed}: {report}");
        let sound = run(seed, None);
        assert!(sound.ends_with("\"violations\":[]}"), "without a bug: {sound}");
    }
}
