//! What goes wrong, when, and how it is mended again.

use std::time::Duration;

use curve_store::{DeviceState, inspect};
use curve_types::DeviceId;
use curve_wire::net::SILENCE_MAX;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use turmoil::Sim;

use crate::cluster::{CHUNKSERVERS, Files, servers};
use crate::invariants::Promises;
use crate::machine::Devices;
use crate::workload::Shared;
use crate::{network, os};

pub const CLIENTS: [&str; 2] = ["client-0", "client-1"];

const POWER_LOST_AT_A_VOTE: &str = "power lost at a vote";

/// What is chosen from.
const DRAWN: [&str; 11] = [
    "process killed",
    "power lost",
    "power of all lost",
    "client killed",
    "messages delayed",
    "messages lost",
    "answers lost",
    "slow disk",
    "write error",
    "bit rot",
    "wall clock jumped",
];

/// Every kind of fault, as it is counted.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    DRAWN.into_iter().chain([POWER_LOST_AT_A_VOTE])
}

/// Ends a fault.
enum Mend {
    Start(&'static str),
    Deliver(&'static str, Vec<&'static str>),
    /// The connections end; the network between them stays as it is.
    TimeOut(&'static str, Vec<&'static str>),
    Reconnect(&'static str, Vec<&'static str>),
    SpeedUp(&'static str),
}

pub struct Faults<'a> {
    rng: StdRng,
    files: &'a Files,
    devices: &'a Devices,
    shared: &'a Shared,
    promises: &'a Promises,
    next: Duration,
    mends: Vec<(Duration, Mend)>,
    /// The one device whose blocks rot: two bad copies of three are a loss that nobody promised to
    /// survive.
    rotten: &'static str,
}

fn everyone() -> impl Iterator<Item = &'static str> {
    servers().chain(CLIENTS)
}

fn time_out(sim: &Sim<'_>, one: &str, others: &[&str]) {
    others.iter().for_each(|other| network::time_out(sim.lookup(one), sim.lookup(*other)));
}

impl<'a> Faults<'a> {
    pub fn new(
        seed: u64,
        files: &'a Files,
        devices: &'a Devices,
        shared: &'a Shared,
        promises: &'a Promises,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let rotten = CHUNKSERVERS.choose(&mut rng).expect("there are some");
        let (next, mends) = (Duration::ZERO, Vec::new());
        Self { rng, files, devices, shared, promises, next, mends, rotten }
    }

    fn some_others(&mut self, than: &str) -> Vec<&'static str> {
        let count = self.rng.random_range(1..6);
        everyone().filter(|name| *name != than).choose_multiple(&mut self.rng, count)
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
        self.surprise_voter(sim, now);
    }

    /// Now and then a voter loses its power before its device does anything else: votes are rare,
    /// and a power loss at any moment would hardly ever meet one.
    fn surprise_voter(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let Some(voter) = self.promises.take_voter() else { return };
        if self.rng.random_bool(0.97) {
            return;
        }
        let is_its = |name: &&str| self.device_id(name) == Some(voter);
        if let Some(name) = servers().find(|name| sim.is_host_running(*name) && is_its(name)) {
            self.lose_power(sim, name, now);
            self.shared.count(POWER_LOST_AT_A_VOTE);
            tracing::info!(kind = POWER_LOST_AT_A_VOTE, server = name, "fault");
        }
    }

    fn device_id(&self, name: &str) -> Option<DeviceId> {
        let disk = self.devices.disk(&self.files.device(name))?;
        match inspect(&*disk) {
            Ok(DeviceState::Formatted(found)) => Some(found.device),
            _ => None,
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
            Mend::Deliver(one, others) => {
                others.iter().for_each(|other| sim.release(one, *other));
            }
            Mend::TimeOut(one, others) => time_out(sim, one, &others),
            Mend::Reconnect(one, others) => {
                time_out(sim, one, &others);
                others.iter().for_each(|other| sim.repair(one, *other));
            }
            Mend::SpeedUp(name) => self.devices.restore_latency(&self.files.device(name)),
        }
    }

    /// Its kernel lives on and ends its connections.
    fn kill(&mut self, sim: &mut Sim<'_>, name: &'static str, start: Duration) {
        sim.crash(name);
        self.mends.push((start, Mend::Start(name)));
    }

    /// Nobody ends its connections: those at their other ends have to notice, by the silence or by
    /// what the host says once it is back.
    fn lose_power(&mut self, sim: &mut Sim<'_>, name: &'static str, now: Duration) {
        // First: nothing of what its process still does on the way out reaches disk or network.
        let rng = &mut self.rng;
        self.devices.lose_power(&self.files.device(name), || rng.random());
        network::lose_power(sim.lookup(name));
        let start = now + self.after(200..6000);
        let others = everyone().filter(|other| *other != name).collect();
        self.mends.push((start.min(now + SILENCE_MAX), Mend::TimeOut(name, others)));
        self.kill(sim, name, start);
    }

    /// What `one` sends, and what it is sent unless `one_way`, is lost until `heal`. Connections of
    /// which something was lost end, as the kernel has them end.
    fn lose_messages(
        &mut self,
        sim: &mut Sim<'_>,
        one: &'static str,
        one_way: bool,
        now: Duration,
        heal: Duration,
    ) {
        let others = self.some_others(one);
        for other in &others {
            match one_way {
                true => sim.partition_oneway(one, *other),
                false => sim.partition(one, *other),
            }
        }
        if heal > now + SILENCE_MAX {
            self.mends.push((now + SILENCE_MAX, Mend::TimeOut(one, others.clone())));
        }
        self.mends.push((heal, Mend::Reconnect(one, others)));
    }

    /// False if the rotten device has no data.
    fn rot(&mut self) -> bool {
        let Some(disk) = self.devices.disk(&self.files.device(self.rotten)) else { return false };
        let data = disk.find_where(|block| block.starts_with(b"CURVEPAT"));
        let Some(at) = data.choose(&mut self.rng) else { return false };
        let bit = self.rng.random_range(0..8);
        disk.flip_bit(at + self.rng.random_range(0..4096), bit);
        self.device_id(self.rotten).into_iter().for_each(|id| self.promises.excuse(id));
        true
    }

    fn inject(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let kind = DRAWN[self.rng.random_range(0..DRAWN.len())];
        let Some(server) =
            servers().filter(|name| sim.is_host_running(*name)).choose(&mut self.rng)
        else {
            return;
        };
        match kind {
            "process killed" => {
                self.devices.lose_process(&self.files.device(server));
                let start = now + self.after(100..12_000);
                self.kill(sim, server, start);
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
                let start = now + self.after(100..3000);
                self.kill(sim, client, start);
            }
            // A short partition, as TCP has it: it sends again what was lost meanwhile.
            "messages delayed" => {
                let others = self.some_others(server);
                let heal = now + self.after(100..SILENCE_MAX.as_millis() as u64);
                for other in &others {
                    sim.hold(server, *other);
                }
                self.mends.push((heal, Mend::Deliver(server, others)));
            }
            "messages lost" => {
                let heal = now + SILENCE_MAX + self.after(0..7000);
                let one_way = self.rng.random_bool(0.3);
                self.lose_messages(sim, server, one_way, now, heal);
            }
            // What was asked arrives and is carried out, but whoever asked hears nothing until the
            // connection ends, and asks again over another one.
            "answers lost" => {
                let heal = now + self.after(20..400);
                self.lose_messages(sim, server, true, now, heal);
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
            "bit rot" if self.rot() => {}
            "wall clock jumped" => os::jump_wall_clock(self.rng.random_range(-7200..7200)),
            _ => return,
        }
        self.shared.count(kind);
        tracing::info!(kind, server, "fault");
    }
}
