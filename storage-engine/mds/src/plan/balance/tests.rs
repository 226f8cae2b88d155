//! Hundreds of seeded random clusters whose devices come and go, with everything that is planned
//! carried out sooner or later: it ends, soon and evenly, and breaks no rule on the way.

use std::collections::BTreeMap;

use curve_types::ClusterId;

use super::*;
use crate::log::{self, WireId, ids_to_wire};
use crate::pace::Pace;
use crate::plan::{Plan, plan};
use crate::state::State;
use crate::testing::Dice;
use crate::view::{Report, Seen, View};

const OUT_AFTER: Duration = Duration::from_secs(60);
/// Time that passes between two looks; a replica's way takes one or more of them.
const STEP: Duration = Duration::from_secs(35);
const GIB: u64 = 1 << 30;

struct Sim {
    state: State,
    view: View,
    now: Duration,
    dice: Dice,
    /// Since when each device that is there has been there.
    alive: BTreeMap<DeviceId, Duration>,
    replica_bytes: u64,
    next: u8,
    moves: usize,
    leader_changes: usize,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut sim = Self {
            state: State::default(),
            view: View::begin(Duration::ZERO),
            now: Duration::ZERO,
            dice: Dice(seed),
            alive: BTreeMap::new(),
            replica_bytes: 64 << 20,
            next: 1,
            moves: 0,
            leader_changes: 0,
        };
        sim.apply(Kind::FormCluster(log::FormCluster {
            cluster_id: ClusterId::from_bytes([1; 16]).to_wire(),
            name: "demo".to_owned(),
            members: Vec::new(),
        }));
        sim
    }

    fn apply(&mut self, kind: Kind) {
        let command = log::Command { kind: Some(kind.clone()), ..Default::default() };
        let answer = self.state.apply(command).kind;
        let refused = matches!(answer, Some(log::answer::Kind::Refused(_)));
        assert!(!refused, "a planner's command is refused: {kind:?}: {answer:?}");
    }

    fn join(&mut self, host: u64, capacity: u64) {
        let id = DeviceId::from_bytes([self.next; 16]);
        let facts = log::DeviceFacts {
            device_id: id.to_wire(),
            name: format!("cs-{}", self.next),
            host: format!("host-{host}"),
            zone: format!("zone-{}", host % 4),
            size: capacity,
            capacity,
            address: "h:1".to_owned(),
            ..Default::default()
        };
        self.next += 1;
        let (blank, cluster_id) = (true, Default::default());
        let facts = Some(facts);
        self.apply(Kind::RegisterDevice(log::RegisterDevice { facts, blank, cluster_id }));
        self.alive.insert(id, self.now);
    }

    fn scene(&self) -> Scene<'_> {
        let (state, view, now) = (&self.state, &self.view, self.now);
        Scene { state, view, now, now_unix_ms: 0, out_after: OUT_AFTER }
    }

    /// Everyone alive reports; leaders are where they are wanted, if they can be.
    fn hear(&mut self) {
        self.view.devices.retain(|id, _| self.alive.contains_key(id));
        for (id, since) in &self.alive {
            let mut replicas = BTreeMap::new();
            for (copyset_id, copyset) in self.state.copysets_on(*id) {
                let leader = copyset.voters.iter().find(|voter| self.alive.contains_key(voter));
                let mut report = Report { term: 3, ..Report::default() };
                if leader == Some(id) {
                    report.leader = true;
                    report.voters = copyset.voters.clone();
                    report.config_index = copyset.config_index;
                }
                replicas.insert(copyset_id, report);
            }
            let used = replicas.len() as u64 * self.replica_bytes;
            let capacity = self.state.devices[id].capacity;
            let pace = Pace::default();
            let seen = Seen { at: self.now, up_since: *since, capacity, used, pace, replicas };
            self.view.devices.insert(*id, seen);
        }
    }

    /// One look of the MDS, then some of the replicas under way arrive. Whether all is done.
    fn step(&mut self) -> bool {
        self.now += STEP;
        self.hear();
        let Plan { commands, splits, .. } = plan(self.scene());
        let idle = commands.is_empty() && splits.is_empty();
        for command in commands {
            self.check_command(&command);
            self.apply(command);
        }
        splits.iter().for_each(|copyset| self.apply(Kind::FinishSplit(copyset.0)));
        self.check_limits();
        let joining = |(id, copyset): (&CopysetId, &Copyset)| Some((*id, copyset.joining?));
        let under_way: Vec<_> = self.state.copysets.iter().filter_map(joining).collect();
        for (id, joining) in &under_way {
            if self.dice.below(3) > 0 {
                self.arrive(*id, *joining);
            }
        }
        idle && under_way.is_empty()
    }

    fn arrive(&mut self, id: CopysetId, joining: Joining) {
        let copyset = &self.state.copysets[&id];
        let mut voters = copyset.voters.clone();
        voters.retain(|voter| *voter != joining.remove);
        // Groups list their members in an order of their own.
        voters.insert(0, joining.add);
        let config_index = copyset.config_index + 2;
        let voters = ids_to_wire(&voters);
        let observed = log::ObservedMembership { copyset: id.0, config_index, voters };
        self.apply(Kind::ObserveMembership(observed));
    }

    fn replicas(&self, id: DeviceId) -> u64 {
        self.state.copysets_on(id).count() as u64
    }

    /// A move, as opposed to a repair, is worth it, and no copyset waits for a repair.
    fn check_command(&mut self, command: &Kind) {
        self.leader_changes += usize::from(matches!(command, Kind::PreferLeader(_)));
        let Kind::BeginReplacement(log::Replacement { copyset, remove, add }) = command else {
            return;
        };
        let add = DeviceId::from_wire(add).expect("an id");
        let remove = DeviceId::from_wire(remove).expect("an id");
        let (seen, replica) = (&self.view.devices[&add], self.replica_bytes);
        assert!(seen.used + replica <= seen.capacity / 10 * 9, "{add} is overfilled");
        if !self.alive.contains_key(&remove) {
            return;
        }
        self.moves += 1;
        let per_byte = |id: DeviceId, change: i64| {
            let replicas = self.replicas(id).saturating_add_signed(change);
            replicas as f64 / self.state.devices[&id].capacity as f64
        };
        let (giver, taker) = (per_byte(remove, -1), per_byte(add, 1));
        assert!(giver >= taker * 0.999_999, "a move overshoots: {giver} {taker}");
        let pool = self.state.copysets[&CopysetId(*copyset)].pool;
        for (_, copyset) in self.state.copysets_of(pool) {
            assert!(copyset.voters.iter().all(|voter| self.alive.contains_key(voter)));
        }
    }

    fn check_limits(&self) {
        for copyset in self.state.copysets.values() {
            let pool = &self.state.pools[&copyset.pool];
            let mut after = copyset.voters.clone();
            if let Some(joining) = copyset.joining {
                after.retain(|voter| *voter != joining.remove);
                after.push(joining.add);
            }
            let domains = |voters: &[DeviceId]| {
                let domain = |id| self.state.devices[id].domain(pool.failure_domain);
                voters.iter().map(domain).collect::<BTreeSet<_>>().len()
            };
            assert_eq!(domains(&copyset.voters), pool.replicas as usize);
            assert_eq!(domains(&after), pool.replicas as usize);
        }
        let joining = self.state.copysets.values().filter_map(|copyset| copyset.joining);
        let moves: Vec<_> = joining.filter(|j| self.scene().is_move(*j)).collect();
        let ends: BTreeSet<_> = moves.iter().flat_map(|j| [j.add, j.remove]).collect();
        assert!(moves.len() <= MOVES_MAX);
        assert_eq!(ends.len(), moves.len() * 2, "a device takes part in one move at a time");
    }

    /// Runs until nothing is left to do; how many replicas were moved for balance.
    fn converge(&mut self, seed: u64) -> usize {
        let before = self.moves;
        let mut idle = 0;
        for _ in 0..400 {
            idle = if self.step() { idle + 1 } else { 0 };
            // Longer than a device must be up, and longer than it may be silent.
            if idle == 3 {
                return self.moves - before;
            }
        }
        panic!("seed {seed} does not come to rest");
    }

    /// How many copysets of a pool a device should lead, and how many it does.
    fn leads(&self, pool: PoolId, id: DeviceId) -> (f64, u64) {
        let on: Vec<_> = self.state.copysets_on(id).filter(|(_, c)| c.pool == pool).collect();
        let leads = on.iter().filter(|(_, copyset)| copyset.voters[0] == id).count();
        let share = on.len() as f64 / f64::from(self.state.pools[&pool].replicas);
        (share, leads as u64)
    }

    /// No copyset is led by a device that leads too many where another voter leads too few.
    fn check_leaders(&self, seed: u64) {
        for (id, copyset) in &self.state.copysets {
            if !is_calm(self.scene(), copyset.pool) {
                continue;
            }
            let excess = |device: DeviceId, change: i64| {
                let (share, leads) = self.leads(copyset.pool, device);
                leads.saturating_add_signed(change) as f64 / share
            };
            for other in &copyset.voters[1..] {
                let (from, to) = (excess(copyset.voters[0], -1), excess(*other, 1));
                assert!(from <= to * 1.000_001, "seed {seed}: {id} should be led by {other}");
            }
        }
    }

    /// Of the devices that are there: most replicas less fewest.
    fn spread(&self) -> u64 {
        let replicas = || self.alive.keys().map(|id| self.replicas(*id));
        replicas().max().unwrap_or(0) - replicas().min().unwrap_or(0)
    }

    fn lose_one(&mut self) {
        let nth = self.dice.below(self.alive.len() as u64) as usize;
        let id = *self.alive.keys().nth(nth).expect("there are that many");
        self.alive.remove(&id);
    }

    /// No replica could still be moved to where there is clearly more room.
    fn check_even(&self, seed: u64) {
        for (id, copyset) in &self.state.copysets {
            let pool = &self.state.pools[&copyset.pool];
            if !is_calm(self.scene(), copyset.pool) {
                continue;
            }
            for giver in &copyset.voters {
                for taker in self.alive.keys().filter(|taker| !copyset.is_on(**taker)) {
                    let (from, to) = (&self.state.devices[giver], &self.state.devices[taker]);
                    let per_byte = |replicas: u64, device: &Device| {
                        replicas as f64 / (device.capacity >> 20) as f64
                    };
                    let (given, taken) = (self.replicas(*giver) - 1, self.replicas(*taker) + 1);
                    let gains = per_byte(given, from) > per_byte(taken, to) * 1.000_001;
                    let kept = copyset.voters.iter().filter(|voter| *voter != giver);
                    let domain = |id: &DeviceId| self.state.devices[id].domain(pool.failure_domain);
                    let clash = kept.map(domain).any(|other| other == domain(taker));
                    let own = |device: &DeviceId| {
                        let on = self.state.copysets_on(*device);
                        on.filter(|(_, other)| other.pool == copyset.pool).count() as u64
                    };
                    let gains =
                        gains && per_byte(own(giver), from) > per_byte(own(taker), to) * 1.000_001;
                    let room = taken * self.replica_bytes <= to.capacity / 100 * 90;
                    assert!(!gains || clash || !room, "seed {seed}: {id} is left on {giver}");
                }
            }
        }
    }
}

#[test]
fn random_clusters_come_to_rest_evenly() {
    for seed in 0..400 {
        let mut sim = Sim::new(seed);
        if sim.dice.below(3) == 0 {
            let replicas = 3 + 2 * sim.dice.below(2) as u32;
            let failure_domain = 1 + sim.dice.below(2) as u32;
            let name = "second".to_owned();
            let pool = log::CreatePool { name, replicas, failure_domain, ..Default::default() };
            sim.apply(Kind::CreatePool(pool));
        }
        if sim.dice.below(4) == 0 {
            // Two replicas more or less decide whether a device is full.
            sim.replica_bytes = GIB;
        }
        let hosts = 3 + sim.dice.below(5);
        for host in 0..hosts {
            for _ in 0..1 + sim.dice.below(2) {
                let capacity = (20 * GIB) << sim.dice.below(3);
                sim.join(host, capacity);
            }
        }
        sim.converge(seed);
        for _ in 0..2 {
            match sim.dice.below(3) {
                0 => sim.lose_one(),
                _ => {
                    let host = sim.dice.below(hosts + 2);
                    let capacity = (20 * GIB) << sim.dice.below(3);
                    sim.join(host, capacity);
                }
            }
            let before = sim.leader_changes;
            let moves = sim.converge(seed);
            // With those of copysets that were split meanwhile.
            let replicas: usize = sim.state.copysets.values().map(|c| c.voters.len()).sum();
            let changes = sim.leader_changes - before;
            assert!(changes <= replicas, "seed {seed}: {changes} changes of leaders");
            assert!(moves <= replicas, "seed {seed}: {moves} moves of {replicas} replicas");
            sim.check_even(seed);
            sim.check_leaders(seed);
        }
    }
}

#[test]
fn equal_devices_end_with_equal_shares() {
    for seed in 0..200 {
        let mut sim = Sim::new(seed);
        let first = 3 + sim.dice.below(3);
        for host in 0..first {
            sim.join(host, 20 * GIB);
        }
        sim.converge(seed);
        let added = 1 + sim.dice.below(5);
        for host in first..first + added {
            sim.join(host, 20 * GIB);
        }
        let moves = sim.converge(seed) as u64;
        assert!(sim.spread() <= 1, "seed {seed}: {}", sim.spread());
        for id in sim.alive.keys() {
            let (share, leads) = sim.leads(PoolId(1), *id);
            let off = (leads as f64 - share).abs();
            assert!(off < 2.0, "seed {seed}: {id} leads {leads}, its share is {share:.1}");
        }
        let copysets = sim.state.copysets.len() as u64;
        let share = (copysets * 3).div_ceil(first + added);
        // Two copysets that were one have their replicas on the same devices: a few go a detour.
        let most = (share + 1) * added;
        assert!(moves <= most, "seed {seed}: {moves} moves, no more than are needed");
    }
}

#[test]
fn a_device_that_has_just_come_is_given_nothing_yet() {
    let mut sim = Sim::new(1);
    for host in 0..3 {
        sim.join(host, 20 * GIB);
    }
    sim.converge(1);
    sim.now += STEP / 2;
    sim.join(3, 20 * GIB);
    sim.now -= STEP / 2;
    sim.step();
    assert_eq!(sim.moves, 0);
    // Copysets are split for it first.
    while sim.moves == 0 {
        assert!(!sim.step(), "it is to get some");
    }
    assert_eq!(sim.moves, 1, "one at a time");
}

#[test]
fn a_repair_ends_the_moves_of_its_copysets() {
    let mut sim = Sim::new(1);
    for host in 0..4 {
        sim.join(host, 20 * GIB);
    }
    sim.converge(1);
    sim.join(4, 20 * GIB);
    sim.now += STEADY;
    sim.hear();
    let mut commands = plan_moves(sim.scene());
    assert_eq!(commands.len(), 1);
    let Kind::BeginReplacement(begun) = commands.remove(0) else { panic!("a move") };
    sim.apply(Kind::BeginReplacement(begun.clone()));
    let copyset = &sim.state.copysets[&CopysetId(begun.copyset)];
    let lost = copyset.voters.iter().find(|voter| voter.to_wire() != begun.remove);
    let lost = *lost.expect("more voters");
    sim.alive.remove(&lost);
    sim.now += OUT_AFTER + STEP;
    sim.hear();
    let due = plan(sim.scene()).commands;
    assert!(due.contains(&Kind::AbandonReplacement(begun)), "{due:?}");
    assert!(plan_moves(sim.scene()).is_empty(), "a repair is due");
}
