//! Many seeds, one process each, as many at a time as there are cores.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::Report;

/// With fewer seeds a kind of fault may be missing by chance.
const SEEDS_FOR_ALL_FAULTS: u64 = 20;

/// Runs `seeds` seeds from `first` on, with the planted bug of that name. The first of them is run
/// twice and must come to the same.
pub fn run(first: u64, seeds: u64, bug: Option<&str>) -> Result<()> {
    let workers = std::thread::available_parallelism()?.get();
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let totals: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let failed: Mutex<Vec<String>> = Mutex::default();
    let digest: Mutex<Option<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    match one(seed, bug) {
                        Ok(report) => {
                            if seed == first {
                                *digest.lock().expect("no panic while held") = Some(report.digest);
                            }
                            let mut totals = totals.lock().expect("no panic while held");
                            for (what, count) in report.counters {
                                *totals.entry(what).or_default() += count;
                            }
                        }
                        Err(error) => {
                            println!("seed {seed}: {error:#}");
                            let mut failed = failed.lock().expect("no panic while held");
                            failed.push(seed.to_string());
                        }
                    }
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if done.is_multiple_of(10) {
                        println!("{done} of {seeds} seeds");
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().expect("no panic while held");
    for (what, count) in &totals {
        println!("{count:>10} {what}");
    }
    let failed = failed.into_inner().expect("no panic while held");
    ensure!(
        failed.is_empty(),
        "{} of {seeds} seeds failed: {}; CURVE_LOG=info curve-sim --seed N runs one and shows more",
        failed.len(),
        failed.join(", ")
    );
    let once = digest.into_inner().expect("no panic while held").context("no seed was run")?;
    let again = one(first, bug)?.digest;
    ensure!(
        once == again,
        "seed {first} came to {once} and then to {again}: the same was expected"
    );
    if seeds >= SEEDS_FOR_ALL_FAULTS {
        let missing: Vec<&str> =
            totals.iter().filter(|(_, count)| **count == 0).map(|(what, _)| &**what).collect();
        ensure!(missing.is_empty(), "never happened in {seeds} seeds: {}", missing.join(", "));
    }
    println!("{seeds} seeds passed");
    Ok(())
}

fn one(seed: u64, bug: Option<&str>) -> Result<Report> {
    let program = std::env::current_exe().context("find this program")?;
    let output = Command::new(program)
        .args(["--seed", &seed.to_string()])
        .args(bug.map(|bug| format!("--bug={bug}")))
        .stdin(Stdio::null())
        .output()
        .context("start this program")?;
    let Ok(report) = serde_json::from_slice::<Report>(&output.stdout) else {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    };
    ensure!(report.violations.is_empty(), "{}", report.violations.join("; "));
    Ok(report)
}
