//! What goes wrong, when, and how it is mended again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use turmoil::Sim;

use crate::cluster::{CHUNKSERVERS, Files, MDS};
use crate::machine::Devices;
use crate::os;
use crate::workload::Shared;

pub const CLIENTS: [&str; 2] = ["client-0", "client-1"];

/// Every kind of fault, as it is counted.
pub const KINDS: [&str; 9] = [
    "process killed",
    "power lost",
    "power of all lost",
    "client killed",
    "partition",
    "slow disk",
    "write error",
    "bit rot",
    "wall clock jumped",
];

/// Ends a fault.
enum Mend {
    Start(&'static str),
    Reconnect(&'static str, Vec<&'static str>),
    SpeedUp(&'static str),
}

pub struct Faults<'a> {
    rng: StdRng,
    files: &'a Files,
    devices: &'a Devices,
    shared: &'a Shared,
    next: Duration,
    mends: Vec<(Duration, Mend)>,
    /// The one device whose blocks rot: two bad copies of three are a loss that nobody promised to
    /// survive.
    rotten: &'static str,
}

fn servers() -> impl Iterator<Item = &'static str> {
    MDS.into_iter().chain(CHUNKSERVERS)
}

impl<'a> Faults<'a> {
    pub fn new(seed: u64, files: &'a Files, devices: &'a Devices, shared: &'a Shared) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let rotten = CHUNKSERVERS.choose(&mut rng).expect("there are some");
        Self { rng, files, devices, shared, next: Duration::ZERO, mends: Vec::new(), rotten }
    }

    fn after(&mut self, range_ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range_ms))
    }

    /// Breaks something from time to time, and mends what is due.
    pub fn tick(&mut self, sim: &mut Sim<'_>, now: Duration) {
        self.mend_due(sim, now);
        if now >= self.next {
            self.next = now + self.after(200..1500);
            self.inject(sim, now);
        }
    }

    /// Mends everything.
    pub fn stop(&mut self, sim: &mut Sim<'_>) {
        for (_, mend) in std::mem::take(&mut self.mends) {
            self.mend(sim, mend);
        }
    }

    /// Mends what is due, and starts servers that ended by themselves a while later, as the kubelet
    /// does.
    pub fn mend_due(&mut self, sim: &mut Sim<'_>, now: Duration) {
        while let Some(at) = self.mends.iter().position(|(due, _)| *due <= now) {
            let (_, mend) = self.mends.remove(at);
            self.mend(sim, mend);
        }
        for name in servers() {
            let due = |(_, mend): &(Duration, Mend)| matches!(mend, Mend::Start(n) if *n == name);
            if !sim.is_host_running(name) && !self.mends.iter().any(due) {
                let pause = self.after(100..2000);
                self.mends.push((now + pause, Mend::Start(name)));
            }
        }
    }

    fn mend(&mut self, sim: &mut Sim<'_>, mend: Mend) {
        match mend {
            Mend::Start(name) => {
                // One that ended by itself leaves its faults behind.
                if servers().any(|server| server == name) {
                    self.devices.lose_process(&self.files.device(name));
                }
                sim.bounce(name);
            }
            Mend::Reconnect(one, others) => {
                others.iter().for_each(|other| sim.release(one, *other));
            }
            Mend::SpeedUp(name) => self.devices.restore_latency(&self.files.device(name)),
        }
    }

    fn kill(
        &mut self,
        sim: &mut Sim<'_>,
        name: &'static str,
        now: Duration,
        down_ms: std::ops::Range<u64>,
    ) {
        sim.crash(name);
        let down = self.after(down_ms);
        self.mends.push((now + down, Mend::Start(name)));
    }

    fn lose_power(&mut self, sim: &mut Sim<'_>, name: &'static str, now: Duration) {
        // First: nothing of what its process still does on the way out reaches the disk.
        let rng = &mut self.rng;
        self.devices.lose_power(&self.files.device(name), || rng.random());
        self.kill(sim, name, now, 200..6000);
    }

    fn inject(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let kind = KINDS[self.rng.random_range(0..KINDS.len())];
        let Some(server) =
            servers().filter(|name| sim.is_host_running(*name)).choose(&mut self.rng)
        else {
            return;
        };
        match kind {
            "process killed" => {
                self.devices.lose_process(&self.files.device(server));
                self.kill(sim, server, now, 100..12_000);
            }
            "power lost" => self.lose_power(sim, server, now),
            // Rarely: it takes seconds until anything goes on.
            "power of all lost" if self.rng.random_bool(0.3) => {
                for name in servers() {
                    self.mends.retain(|(_, mend)| !matches!(mend, Mend::Start(n) if *n == name));
                    self.lose_power(sim, name, now);
                }
            }
            "client killed" => {
                let client = CLIENTS[self.rng.random_range(0..CLIENTS.len())];
                if !sim.is_host_running(client) {
                    return;
                }
                self.kill(sim, client, now, 100..3000);
            }
            // What is sent meanwhile arrives afterwards: TCP sends it again.
            "partition" => {
                let count = self.rng.random_range(1..6);
                let others = servers().chain(CLIENTS).filter(|name| *name != server);
                let others = others.choose_multiple(&mut self.rng, count);
                let heal = now + self.after(100..5000);
                for other in &others {
                    sim.hold(server, *other);
                }
                self.mends.push((heal, Mend::Reconnect(server, others)));
            }
            "slow disk" => {
                let latency = self.after(20..400);
                self.devices.set_latency(&self.files.device(server), latency);
                let heal = now + self.after(500..5000);
                self.mends.push((heal, Mend::SpeedUp(server)));
            }
            "write error" => {
                let Some(disk) = self.devices.disk(&self.files.device(server)) else { return };
                disk.fail_at(disk.operations() + self.rng.random_range(0..4));
            }
            "bit rot" => {
                let Some(disk) = self.devices.disk(&self.files.device(self.rotten)) else { return };
                let data = disk.find_where(|block| block.starts_with(b"CURVEPAT"));
                let Some(at) = data.choose(&mut self.rng) else { return };
                let bit = self.rng.random_range(0..8);
                disk.flip_bit(at + self.rng.random_range(0..4096), bit);
            }
            "wall clock jumped" => os::jump_wall_clock(self.rng.random_range(-7200..7200)),
            _ => return,
        }
        self.shared.count(kind);
        tracing::info!(kind, server, "fault");
    }
}
