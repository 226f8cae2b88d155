//! Runs one simulation of a whole cluster: the same seed gives the same run.
//!
//! MDS, chunkservers and clients are the real ones; time, randomness, network and disks are
//! simulated. One process runs one seed, since what it replaces is the process's own.

mod cluster;
mod faults;
mod history;
mod invariants;
mod machine;
mod many;
mod network;
mod os;
mod workload;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use curve_types::planted::{self, Bug};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::cluster::{Files, servers};
use crate::faults::{CLIENTS, Faults};
use crate::invariants::Promises;
use crate::machine::Devices;
use crate::workload::Shared;

/// Of simulated time, in which hosts do what they can do between two deliveries of messages.
const TICK: Duration = Duration::from_millis(1);
/// Until when the cluster must have formed.
const FORMED_WITHIN: Duration = Duration::from_secs(60);
/// How long faults come.
const FAULTS_FOR: Duration = Duration::from_secs(25);
/// Once nothing is broken any more, everything must work after so long.
const HEALED_WITHIN: Duration = Duration::from_secs(180);
/// Of what was deleted then, nothing may be left after so long.
const DRAINED_WITHIN: Duration = Duration::from_secs(30);
const ACCOUNTED: &str = "devices accounted for";
/// Of real time: a seed takes seconds, and a few times as many on a machine that is busy.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// A task that panics takes nothing else with it, so it has to be counted.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Simulates a cluster with everything that can go wrong.
#[derive(Parser)]
struct Arguments {
    /// Run this one, and print what it came to as a line of JSON
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Run so many
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Plant a bug, which every seed then has
    #[arg(long, value_parser = PossibleValuesParser::new(Bug::ALL.map(|(name, _)| name)))]
    bug: Option<String>,
}

/// What a run came to, as one line of JSON.
#[derive(Serialize, Deserialize)]
struct Report {
    seed: u64,
    /// Of everything that clients did and were told.
    digest: String,
    simulated_ms: u64,
    counters: BTreeMap<String, u64>,
    violations: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let Arguments { seed, seeds, first, bug } = Arguments::parse();
    let Some(seed) = seed else {
        many::run(first, seeds, bug.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    };
    let planted = Bug::ALL.iter().find(|(name, _)| Some(*name) == bug.as_deref());
    planted::plant(planted.map(|(_, bug)| *bug));
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("CURVE_LOG").unwrap_or(EnvFilter::new("off")))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let dir = tempfile::tempdir()?;
    std::thread::spawn(|| {
        std::thread::sleep(STUCK_AFTER);
        eprintln!("stuck: not done after {STUCK_AFTER:?}");
        std::process::exit(1);
    });
    os::begin(seed);
    let report_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        report_panic(panic);
    }));
    // On a thread that has not drawn the keys of its hash maps yet.
    let path = dir.path().to_owned();
    let simulation = std::thread::spawn(move || simulate(seed, &path));
    let report = simulation.join().map_err(|_| anyhow!("the simulation panicked"))??;
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn simulate(seed: u64, dir: &std::path::Path) -> Result<Report> {
    let devices = Devices::default();
    curve_store::simulate::simulate(Box::new(devices.clone()));
    curve_wire::net::simulate(Box::new(network::Simulated));
    let promises = Promises::default();
    curve_raft::witness::observe(Box::new(promises.clone()));
    let files = Files::write(dir)?;
    let shared = Shared::new(faults::kinds().chain(workload::kinds()).chain([ACCOUNTED]));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(Duration::from_millis(3))
        .simulation_duration(Duration::MAX)
        .tcp_capacity(1 << 16)
        .enable_random_order()
        .build();
    files.add_servers(&mut sim, &shared)?;
    for (number, name) in (0..).zip(CLIENTS) {
        let (shared, mds) = (shared.clone(), std::rc::Rc::new(files.client()));
        sim.host(name, move || {
            let (shared, mds) = (shared.clone(), mds.clone());
            async move { Ok(workload::run(number, seed, mds.connect()?, shared).await?) }
        });
    }
    let mut run = Run { sim, now: Duration::ZERO };
    let mut violations = Vec::new();
    let formed = run.until(FORMED_WITHIN, |_, _| shared.has_written())?;
    if formed {
        let mut faults = Faults::new(seed, &files, &devices, &shared, &promises);
        run.until(FAULTS_FOR, |sim, now| {
            faults.tick(sim, now);
            false
        })?;
        faults.stop(&mut run.sim);
        shared.stop();
        let healed = run.until(HEALED_WITHIN, |sim, now| {
            faults.mend_due(sim, now);
            shared.is_finished()
        })?;
        if healed {
            violations.extend(account(&mut run, &devices, &files, &shared)?);
        } else {
            violations.push(format!("the cluster was not whole within {HEALED_WITHIN:?}"));
        }
    } else {
        violations.push(format!("the cluster did not form within {FORMED_WITHIN:?}"));
    }
    violations.extend(shared.violations());
    let panics = PANICS.load(Ordering::Relaxed);
    if panics > 0 {
        violations.push(format!("{panics} tasks have panicked: see stderr"));
    }
    violations.extend(invariants::violations(&shared.history, &promises));
    Ok(Report {
        seed,
        digest: format!("{:016x}", shared.history.digest()),
        simulated_ms: run.now.as_millis() as u64,
        counters: shared.counters(),
        violations,
    })
}

/// Waits until what was deleted is gone. A chunkserver that does not start any more, as damage in
/// its log has it, is left out.
fn account(
    run: &mut Run<'_>,
    devices: &Devices,
    files: &Files,
    shared: &Shared,
) -> Result<Vec<String>> {
    let usages = |sim: &mut turmoil::Sim<'_>| -> BTreeMap<_, _> {
        let running = servers().filter(|name| sim.is_host_running(*name));
        running.map(|name| (name, devices.usage(&files.device(name)))).collect()
    };
    devices.settle();
    run.until(DRAINED_WITHIN, |sim, _| invariants::unaccounted(&usages(sim)).is_empty())?;
    let usages = usages(&mut run.sim);
    usages.keys().for_each(|_| shared.count(ACCOUNTED));
    Ok(invariants::unaccounted(&usages))
}

struct Run<'a> {
    sim: turmoil::Sim<'a>,
    now: Duration,
}

impl<'a> Run<'a> {
    /// Lets time pass until `done` or `at_most` has passed; whether it was done.
    fn until(
        &mut self,
        at_most: Duration,
        mut done: impl FnMut(&mut turmoil::Sim<'a>, Duration) -> bool,
    ) -> Result<bool> {
        let end = self.now + at_most;
        while self.now < end {
            os::advance(TICK);
            self.now += TICK;
            self.sim.step().map_err(|error| anyhow!("the simulation ended: {error}"))?;
            if done(&mut self.sim, self.now) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
