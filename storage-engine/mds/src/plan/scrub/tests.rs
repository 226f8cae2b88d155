//! Hundreds of seeded random clusters whose chunkservers read at random speeds and restart, whose
//! MDS changes leaders, and whose operators ask, pause and set windows: the limits hold at every
//! moment, and everything is scrubbed in time.

use std::collections::BTreeMap;

use curve_types::{ClusterId, VolumeId};
use curve_wire::proto::TableDigest;

use super::*;
use crate::log::ids_to_wire;
use crate::state::{Comparison, State};
use crate::testing::Dice;
use crate::view::{Heard, Report, View};

const STEP: Duration = Duration::from_secs(1800);
const DAY_MS: u64 = 24 * 3600 * 1000;

/// A chunkserver's side of the orders.
#[derive(Default)]
struct Server {
    reports: BTreeMap<CopysetId, ScrubReport>,
    alive: bool,
}

struct World {
    state: State,
    view: View,
    now: Duration,
    dice: Dice,
    servers: BTreeMap<DeviceId, Server>,
    /// Of the copysets whose replicas differ.
    differing: BTreeSet<CopysetId>,
    ends: BTreeMap<CopysetId, usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            state: State::default(),
            view: View::begin(Duration::ZERO),
            now: Duration::from_millis(DAY_MS),
            dice: Dice(seed),
            servers: BTreeMap::new(),
            differing: BTreeSet::new(),
            ends: BTreeMap::new(),
        };
        world.apply(Kind::FormCluster(log::FormCluster {
            cluster_id: ClusterId::from_bytes([1; 16]).to_wire(),
            name: "demo".to_owned(),
            members: Vec::new(),
        }));
        let servers = 3 + world.dice.below(10) as u8;
        for n in 1..=servers {
            world.register(n);
        }
        // Pools of one shard range per copyset, on any three of the chunkservers.
        let copysets = 1 + world.dice.below(24) as u32;
        let shards = curve_types::ShardRange::divide(copysets);
        let dice = &mut world.dice;
        let placements = shards.map(|range| {
            let mut all: Vec<DeviceId> =
                (1..=servers).map(|n| DeviceId::from_bytes([n; 16])).collect();
            while all.len() > 3 {
                let out = dice.below(all.len() as u64) as usize;
                all.swap_remove(out);
            }
            let voters = ids_to_wire(&all);
            log::Placement { shard_first: range.first, shard_end: range.end, voters }
        });
        let placements: Vec<_> = placements.collect();
        world.apply(Kind::AddCopysets(log::AddCopysets { pool: 1, placements }));
        let ids = world.state.copysets.keys().map(|id| id.0).collect();
        world.apply(Kind::ActivateCopysets(log::CopysetIds { ids }));
        world
    }

    fn register(&mut self, n: u8) {
        let device = DeviceId::from_bytes([n; 16]);
        let facts = log::DeviceFacts {
            device_id: device.to_wire(),
            name: format!("cs-{n}"),
            host: format!("host-{n}"),
            size: 1 << 40,
            capacity: 1 << 40,
            address: "h:1".to_owned(),
            ..Default::default()
        };
        let (facts, blank, cluster_id) = (Some(facts), true, Default::default());
        self.apply(Kind::RegisterDevice(log::RegisterDevice { facts, blank, cluster_id }));
        self.servers.insert(device, Server { alive: true, ..Server::default() });
    }

    fn unix_ms(&self) -> u64 {
        self.now.as_millis() as u64
    }

    fn apply(&mut self, kind: Kind) {
        let now_unix_ms = self.unix_ms();
        let command = log::Command { now_unix_ms, kind: Some(kind.clone()), ..Default::default() };
        let answer = self.state.apply(command).kind;
        let refused = matches!(answer, Some(log::answer::Kind::Refused(_)));
        assert!(!refused, "refused: {kind:?}: {answer:?}");
    }

    fn scene(&self) -> Scene<'_> {
        let (state, view, now) = (&self.state, &self.view, self.now);
        let out_after = Duration::from_secs(1 << 30);
        Scene { state, view, now, now_unix_ms: self.unix_ms(), out_after }
    }

    /// All that are alive report what they have.
    fn hear(&mut self) {
        for (id, server) in self.servers.iter().filter(|(_, server)| server.alive) {
            let mut replicas = BTreeMap::new();
            for (copyset_id, copyset) in self.state.copysets_on(*id) {
                let leader = copyset.voters.iter().find(|voter| self.servers[*voter].alive);
                let scrub = server.reports.get(&copyset_id).copied();
                let mut report = Report { term: 3, scrub, ..Report::default() };
                if leader == Some(id) {
                    report.leader = true;
                    report.voters = copyset.voters.clone();
                }
                replicas.insert(copyset_id, report);
            }
            let heard = Heard { capacity: 1 << 40, used: 0, commit: None, replicas };
            self.view.on_heartbeat(&self.state, *id, self.now, heard);
        }
    }

    /// Orders are obeyed; those that walk may end.
    fn obey(&mut self) {
        let mut digests = Vec::new();
        let alive = self.servers.iter().filter(|(_, server)| server.alive);
        let alive: Vec<DeviceId> = alive.map(|(id, _)| *id).collect();
        for id in alive {
            let orders = scrub_orders(self.scene(), id);
            self.check_orders(id, &orders);
            let mut reports = BTreeMap::new();
            for order in orders {
                let copyset = CopysetId(order.copyset);
                let before = self.servers[&id].reports.get(&copyset).copied();
                let begun = ScrubReport { number: order.number, ..ScrubReport::default() };
                let before = before.filter(|report| report.number == order.number);
                let mut report = before.unwrap_or(begun);
                report.ended |= order.walk && self.dice.below(3) == 0;
                reports.insert(copyset, report);
                if order.digest {
                    digests.push(copyset);
                }
            }
            self.servers.get_mut(&id).expect("known").reports = reports;
        }
        for copyset in digests {
            self.commit_digest(copyset);
        }
    }

    /// One replica may be away or slow, and has no digest then, or an older one.
    fn commit_digest(&mut self, copyset: CopysetId) {
        let index = self.unix_ms();
        let differs = self.differing.contains(&copyset);
        for (n, voter) in self.state.copysets[&copyset].voters.clone().into_iter().enumerate() {
            let slow = self.dice.below(8) == 0;
            let server = self.servers.get_mut(&voter).expect("known");
            let report = server.reports.get_mut(&copyset).filter(|_| !slow && server.alive);
            if let Some(report) = report {
                let value = Some(if differs && n == 1 { 8 } else { 7 });
                report.digest = Some(TableDigest { index, value });
            }
        }
    }

    fn check_orders(&self, device: DeviceId, orders: &[ScrubOrder]) {
        let walks: Vec<_> = orders.iter().filter(|order| order.walk).collect();
        assert!(walks.len() <= 1, "{device} is to read several replicas: {walks:?}");
        for order in walks {
            let scrub = &self.state.scrubs.copysets[&CopysetId(order.copyset)];
            let run = scrub.running.expect("it runs");
            let allowed = run.requested || is_open(self.scene());
            assert!(allowed && !is_paused(self.scene()), "outside of windows: {order:?}");
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        self.view.since = self.view.since.max(self.now.saturating_sub(STEP));
        self.hear();
        let commands = plan_scrubs(self.scene());
        self.check_begins(&commands);
        for command in commands {
            if let Kind::EndScrub(end) = &command {
                *self.ends.entry(CopysetId(end.copyset)).or_default() += 1;
            }
            self.apply(command);
        }
        let again: Vec<_> = plan_scrubs(self.scene())
            .into_iter()
            .filter(|c| matches!(c, Kind::BeginScrub(_)))
            .collect();
        assert!(again.is_empty(), "what is planned twice was not planned at once: {again:?}");
        self.obey();
    }

    /// No two begin that share a chunkserver, nor beside one that reads; the first in order that
    /// can begin does.
    fn check_begins(&self, commands: &[Kind]) {
        let mut taken = BTreeSet::new();
        for (id, copyset, run) in running(self.scene()) {
            let reads = |voter: &&DeviceId| owes_walk(self.scene(), **voter, id, run);
            if goes_on(self.scene(), run) {
                taken.extend(copyset.voters.iter().filter(reads));
            }
        }
        for command in commands {
            let Kind::BeginScrub(id) = command else { continue };
            let copyset = &self.state.copysets[&CopysetId(*id)];
            assert!(copyset.voters.iter().all(|voter| taken.insert(voter)), "{id} shares one");
        }
        if is_paused(self.scene()) {
            assert!(commands.is_empty(), "paused: {commands:?}");
            return;
        }
        let first = candidates(self.scene()).first().map(|(id, _)| id.0);
        let begun = |id: u32| commands.iter().any(|command| *command == Kind::BeginScrub(id));
        if let Some(first) = first.filter(|id| !begun(*id)) {
            let voters = &self.state.copysets[&CopysetId(first)].voters;
            assert!(voters.iter().any(|voter| taken.contains(voter)), "{first} waits for nothing");
        }
    }

    fn disturb(&mut self) {
        let servers: Vec<DeviceId> = self.servers.keys().copied().collect();
        let any = servers[self.dice.below(servers.len() as u64) as usize];
        match self.dice.below(12) {
            0 => self.servers.get_mut(&any).expect("known").alive = false,
            // What it had read, it has forgotten.
            1 | 2 => {
                let server = self.servers.get_mut(&any).expect("known");
                *server = Server { alive: true, ..Server::default() };
            }
            3 => self.view = View::begin(self.now),
            4 => self.apply(Kind::RequestScrub(log::RequestScrub::default())),
            _ => {}
        }
        assert_eq!(State::decode(&self.state.encode()).expect("its own bytes"), self.state);
    }

    fn set_schedule(&mut self, schedule: &str, window_secs: u64) {
        let schedule = schedule.to_owned();
        self.apply(Kind::SetScrubSchedule(log::SetScrubSchedule { schedule, window_secs }));
    }

    fn run_days(&mut self, days: u64) {
        let until = self.unix_ms() + days * DAY_MS;
        while self.unix_ms() < until {
            self.step();
        }
    }
}

#[test]
fn everything_is_scrubbed_once_a_week_and_limits_hold() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        world.run_days(7);
        let copysets: Vec<_> = world.state.copysets.keys().copied().collect();
        let ends = |world: &World| -> Vec<usize> {
            copysets.iter().map(|id| world.ends.get(id).copied().unwrap_or(0)).collect()
        };
        assert!(ends(&world).iter().all(|n| *n == 1), "seed {seed}: {:?}", ends(&world));
        world.run_days(7);
        assert!(ends(&world).iter().all(|n| *n == 2), "seed {seed}: {:?}", ends(&world));
    }
}

#[test]
fn whatever_happens_meanwhile_the_limits_hold_and_in_the_end_all_is_scrubbed() {
    for seed in 1000..1150 {
        let mut world = World::new(seed);
        if world.dice.below(2) == 0 {
            world.set_schedule("0 1 * * *", 5 * 3600);
        }
        for _ in 0..200 {
            world.disturb();
            world.step();
        }
        for server in world.servers.values_mut() {
            server.alive = true;
        }
        world.ends.clear();
        // Two weeks: what began before counts for the week in which it began.
        world.run_days(14);
        let missed: Vec<_> =
            world.state.copysets.keys().filter(|id| !world.ends.contains_key(id)).collect();
        assert!(missed.is_empty(), "seed {seed}: {missed:?}");
    }
}

#[test]
fn a_request_ignores_windows_and_goes_first_and_a_pause_stops_everything() {
    let mut world = World::new(5);
    // The first of a month that is far away.
    world.set_schedule("0 0 1 12 *", 3600);
    world.run_days(2);
    assert!(world.ends.is_empty(), "no window has opened");
    let volume = VolumeId::from_bytes([7; 16]);
    world.apply(Kind::CreateVolume(log::CreateVolume {
        volume_id: volume.to_wire(),
        name: "data".to_owned(),
        pool: "default".to_owned(),
        size: 1 << 30,
        ..Default::default()
    }));
    let pool = world.state.volumes[&volume].pool;
    let wanted = world.state.copysets_of_volume(volume, pool);
    world.apply(Kind::RequestScrub(log::RequestScrub { volume_id: volume.to_wire() }));
    world.step();
    world.apply(Kind::PauseSchedulers(log::PauseSchedulers {
        schedulers: vec!["scrub".to_owned()],
        paused: true,
    }));
    for _ in 0..50 {
        world.step();
    }
    assert!(world.ends.is_empty(), "paused");
    world.apply(Kind::PauseSchedulers(log::PauseSchedulers {
        schedulers: vec!["scrub".to_owned()],
        paused: false,
    }));
    world.run_days(2);
    let ended: BTreeSet<_> = world.ends.keys().copied().collect();
    assert_eq!(ended, wanted);
    assert!(world.ends.values().all(|ends| *ends == 1));
}

#[test]
fn a_scrub_ends_with_what_its_replicas_found_and_says_which_differ() {
    let mut world = World::new(9);
    let id = *world.state.copysets.keys().next().expect("one");
    world.differing.insert(id);
    world.run_days(3);
    for (other, scrub) in &world.state.scrubs.copysets {
        let last = scrub.last.as_ref().expect("scrubbed");
        let expected = if *other == id { Comparison::Differ } else { Comparison::Alike };
        assert_eq!(last.comparison(), expected);
        assert_eq!(last.replicas.len(), 3);
    }
    // A lost block is no digest: the others may be alike, and nobody knows.
    let mut last = world.state.scrubs.copysets[&id].last.clone().expect("scrubbed");
    for findings in last.replicas.values_mut() {
        findings.digest = Some(7);
    }
    last.replicas.values_mut().next().expect("three").digest = None;
    assert_eq!(last.comparison(), Comparison::Unknown);
    last.replicas.values_mut().next_back().expect("three").digest = Some(8);
    assert_eq!(last.comparison(), Comparison::Differ);
}
