//! Planners against random clusters that run: devices come, die, are wiped and return, leaders do
//! what they are told. Whatever happens, failure domains stay apart, and in the end there is
//! nothing left to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use curve_types::{ClusterId, CopysetId, DeviceId, VolumeId};
use curve_wire::proto;
use proptest::prelude::*;

use super::*;
use crate::log::{WireId, ids_from_wire};
use crate::state::{Copyset, FailureDomain, Scheduler, State};
use crate::view::{Condition, Heard, Report, View};

const OUT_AFTER: Duration = Duration::from_secs(60);
const TERM: u64 = 7;
const CAPACITY: u64 = 10 << 30;

/// One copyset's group, as its members have it.
#[derive(Clone, Debug, Default)]
struct Group {
    voters: Vec<DeviceId>,
    learners: BTreeSet<DeviceId>,
    config_index: u64,
    /// To whom leadership was last transferred.
    chosen: Option<DeviceId>,
}

/// A cluster in which every order is carried out at once.
struct World {
    state: State,
    view: View,
    now: Duration,
    alive: BTreeMap<DeviceId, String>,
    /// What each device has on its disk.
    hosted: BTreeMap<DeviceId, BTreeSet<CopysetId>>,
    groups: BTreeMap<CopysetId, Group>,
    /// Bytes of every replica.
    replica_bytes: u64,
    /// What a commit takes, where it is not a millisecond.
    commits: BTreeMap<DeviceId, Duration>,
}

fn device(n: u8) -> DeviceId {
    DeviceId::from_bytes([n; 16])
}

impl World {
    fn new(hosts: &[u8]) -> Self {
        let mut world = Self {
            state: State::default(),
            view: View::begin(Duration::ZERO),
            now: Duration::ZERO,
            alive: BTreeMap::new(),
            hosted: BTreeMap::new(),
            groups: BTreeMap::new(),
            replica_bytes: 64 << 20,
            commits: BTreeMap::new(),
        };
        world.apply(Kind::FormCluster(log::FormCluster {
            cluster_id: ClusterId::from_bytes([1; 16]).to_wire(),
            name: "demo".to_owned(),
            members: Vec::new(),
        }));
        for (n, host) in hosts.iter().enumerate() {
            world.register(n as u8 + 1, &format!("cs-{n}"), *host);
        }
        world
    }

    fn apply(&mut self, kind: Kind) {
        let command = log::Command { kind: Some(kind.clone()), ..Default::default() };
        let answer = self.state.apply(command).kind;
        let refused = matches!(answer, Some(log::answer::Kind::Refused(_)));
        assert!(!refused, "a planner's command is refused: {kind:?}: {answer:?}");
    }

    fn register(&mut self, n: u8, name: &str, host: u8) {
        let facts = log::DeviceFacts {
            device_id: device(n).to_wire(),
            name: name.to_owned(),
            host: format!("host-{host}"),
            size: 11 << 30,
            capacity: CAPACITY,
            address: "h:1".to_owned(),
            ..Default::default()
        };
        let (blank, cluster_id) = (true, Default::default());
        self.apply(Kind::RegisterDevice(log::RegisterDevice {
            facts: Some(facts),
            blank,
            cluster_id,
        }));
        self.alive.insert(device(n), name.to_owned());
        self.hosted.entry(device(n)).or_default();
    }

    fn scene(&self) -> Scene<'_> {
        let (state, view, now) = (&self.state, &self.view, self.now);
        Scene { state, view, now, now_unix_ms: 0, out_after: OUT_AFTER }
    }

    /// The leader that the group's members that are alive would elect.
    fn leader(&self, id: CopysetId) -> Option<DeviceId> {
        let group = self.groups.get(&id)?;
        let ready =
            |voter: &&DeviceId| self.alive.contains_key(voter) && self.hosted[*voter].contains(&id);
        let alive: Vec<_> = group.voters.iter().filter(ready).collect();
        let chosen = group.chosen.filter(|chosen| alive.contains(&chosen));
        (alive.len() > group.voters.len() / 2).then(|| chosen.unwrap_or(*alive[0]))
    }

    fn heartbeat(&mut self, id: DeviceId) {
        self.report(id);
        let response = heartbeat_response(self.scene(), id, 0, TERM);
        self.obey(id, response);
    }

    /// The MDS hears a heartbeat whose answer is lost.
    fn report(&mut self, id: DeviceId) {
        let mut replicas = BTreeMap::new();
        for copyset in &self.hosted[&id] {
            let mut report = Report { term: 3, ..Report::default() };
            if self.leader(*copyset) == Some(id) {
                let group = &self.groups[copyset];
                let members = group.voters.iter().chain(&group.learners);
                let caught_up = members.filter(|m| self.alive.contains_key(m)).copied();
                report = Report {
                    leader: true,
                    voters: group.voters.clone(),
                    learners: group.learners.clone(),
                    caught_up: caught_up.collect(),
                    config_index: group.config_index,
                    ..report
                };
            }
            replicas.insert(*copyset, report);
        }
        let used = self.hosted[&id].len() as u64 * self.replica_bytes;
        let commit = self.commits.get(&id).copied().unwrap_or(Duration::from_millis(1));
        let heard = Heard { capacity: CAPACITY, used, commit: Some(commit), replicas };
        self.view.on_heartbeat(&self.state, id, self.now, heard);
    }

    fn drops(&self, id: DeviceId) -> Vec<u32> {
        heartbeat_response(self.scene(), id, 0, TERM).drop
    }

    /// A copyset that works, its leader, another of its voters, and a device that has no replica.
    fn any_copyset(&self) -> (CopysetId, DeviceId, DeviceId, DeviceId) {
        let (id, group) = self.groups.iter().next().expect("a group");
        let leader = self.leader(*id).expect("a leader");
        let voter = group.voters.iter().find(|voter| **voter != leader).expect("another");
        let spare = self.alive.keys().find(|device| !group.voters.contains(device));
        (*id, leader, *voter, *spare.expect("a device more than replicas"))
    }

    fn obey(&mut self, id: DeviceId, response: proto::HeartbeatResponse) {
        for host in response.host {
            let copyset = CopysetId(host.copyset);
            self.hosted.get_mut(&id).expect("known").insert(copyset);
            if !host.initialize.is_empty() {
                let voters = ids_from_wire(&host.initialize).expect("ids");
                let formed = || Group { voters, config_index: 1, ..Group::default() };
                self.groups.entry(copyset).or_insert_with(formed);
            }
        }
        for copyset in response.drop {
            let copyset = CopysetId(copyset);
            let known = self.state.copysets.contains_key(&copyset);
            let member = self.groups.get(&copyset).is_some_and(|group| group.voters.contains(&id));
            assert!(!(known && member), "a voter is told to drop its replica");
            self.hosted.get_mut(&id).expect("known").remove(&copyset);
        }
        for change in response.changes {
            self.change(id, change);
        }
        for transfer in response.transfers {
            let to = DeviceId::from_wire(&transfer.to).expect("id");
            let group = self.groups.get_mut(&CopysetId(transfer.copyset)).expect("led");
            assert!(group.voters.contains(&to));
            group.chosen = Some(to);
        }
    }

    fn change(&mut self, leader: DeviceId, change: proto::ChangeMembership) {
        let id = CopysetId(change.copyset);
        assert_eq!(change.mds_term, TERM);
        assert_eq!(self.leader(id), Some(leader), "orders go to leaders");
        let stays = change.voters.is_empty() || change.voters.contains(&leader.to_wire());
        assert!(stays, "no leader is told to take itself out");
        let wanted: Vec<DeviceId> = ids_from_wire(&change.voters).expect("ids");
        let add: Vec<DeviceId> = ids_from_wire(&change.add_learners).expect("ids");
        let group = self.groups.get_mut(&id).expect("led");
        assert_eq!(change.expected_config_index, group.config_index);
        group.config_index += 1;
        if wanted.is_empty() {
            group.learners.extend(add);
            return;
        }
        assert_eq!(wanted.len(), group.voters.len(), "the number of voters never changes");
        let new: Vec<_> = wanted.iter().filter(|v| !group.voters.contains(v)).collect();
        assert!(new.len() <= 1, "one replica at a time");
        for voter in new {
            assert!(group.learners.contains(voter), "a voter was a learner before");
            assert!(self.alive.contains_key(voter), "a voter had caught up");
        }
        group.voters = wanted;
        group.learners = add.into_iter().collect();
    }

    /// One second passes: everyone alive reports, the leader of the MDS plans.
    fn tick(&mut self) -> usize {
        self.now += Duration::from_secs(1);
        for id in self.alive.keys().copied().collect::<Vec<_>>() {
            self.heartbeat(id);
        }
        let due = plan(self.scene());
        let count = due.commands.len();
        for command in due.commands {
            self.apply(command);
        }
        for copyset in due.splits {
            self.split(copyset);
        }
        self.check();
        count
    }

    /// What a copyset's leader and the MDS make of the order to split.
    fn split(&mut self, id: CopysetId) {
        if self.leader(id).is_none() {
            return;
        }
        let left = self.state.copysets[&id].splitting.expect("begun");
        let group = Group { chosen: None, ..self.groups[&id].clone() };
        for (device, hosted) in &mut self.hosted {
            if self.alive.contains_key(device) && hosted.contains(&id) {
                hosted.insert(left);
            }
        }
        self.groups.insert(left, group);
        // Whatever reports it before the MDS has heard keeps it.
        for device in self.alive.keys().copied().collect::<Vec<_>>() {
            self.report(device);
            assert!(!self.drops(device).contains(&left.0));
        }
        self.apply(Kind::FinishSplit(id.0));
    }

    fn check(&self) {
        for (id, copyset) in &self.state.copysets {
            let pool = &self.state.pools[&copyset.pool];
            assert_eq!(copyset.voters.len(), pool.replicas as usize);
            let known = copyset.voters.iter().filter_map(|v| self.state.devices.get(v));
            let hosts: Vec<_> = known.map(|d| d.domain(FailureDomain::Host)).collect();
            let distinct: BTreeSet<_> = hosts.iter().collect();
            assert_eq!(distinct.len(), hosts.len(), "copyset {id} has two replicas on one host");
        }
        let mut incoming: BTreeMap<DeviceId, usize> = BTreeMap::new();
        for joining in self.state.copysets.values().filter_map(|copyset| copyset.joining) {
            *incoming.entry(joining.add).or_default() += 1;
        }
        assert!(incoming.values().all(|count| *count <= 2), "a device receives too much at once");
    }

    fn host_of(&self, id: DeviceId) -> u8 {
        let host = self.state.devices[&id].host.strip_prefix("host-");
        host.and_then(|n| n.parse().ok()).expect("as register named it")
    }

    fn conditions(&self) -> Vec<Condition> {
        let all = self.state.copysets.iter();
        all.map(|(id, copyset)| self.scene().condition(*id, copyset)).collect()
    }

    /// How many copysets the device leads.
    fn led(&self, id: DeviceId) -> usize {
        self.groups.keys().filter(|copyset| self.leader(**copyset) == Some(id)).count()
    }

    fn settle(&mut self, seconds: usize) {
        for _ in 0..seconds {
            self.tick();
        }
    }
}

#[test]
fn three_devices_get_eight_copysets_with_leaders_spread() {
    let mut world = World::new(&[1, 2, 3]);
    world.settle(8);
    assert_eq!(world.conditions(), [Condition::Whole; 8]);
    let mut leaders: BTreeMap<DeviceId, usize> = BTreeMap::new();
    for copyset in world.state.copysets.values() {
        *leaders.entry(copyset.voters[0]).or_default() += 1;
    }
    let mut counts: Vec<_> = leaders.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [2, 3, 3]);
}

#[test]
fn copysets_are_split_and_spread_as_devices_come() {
    let mut world = World::new(&[1, 2, 3]);
    world.settle(8);
    assert_eq!(world.conditions().len(), 8);
    for n in 4..=6 {
        world.register(n, &format!("cs-{n}"), n);
    }
    // Not at once: they may go again.
    world.settle(20);
    assert_eq!(world.conditions().len(), 8);
    world.settle(200);
    assert_eq!(world.conditions(), [Condition::Whole; 16]);
    let shards = |copyset: &Copyset| (copyset.shards.len(), copyset.shards.first);
    let mut ranges: Vec<_> = world.state.copysets.values().map(shards).collect();
    ranges.sort_unstable();
    assert_eq!(ranges, (0..16).map(|n| (64, n * 64)).collect::<Vec<_>>());
    for n in 1..=6 {
        assert_eq!(world.state.copysets_on(device(n)).count(), 8, "device {n}");
        assert!((2..=3).contains(&world.led(device(n))), "device {n}");
    }
}

#[test]
fn a_split_waits_for_what_all_copysets_must_hear_and_that_for_the_split() {
    let mut world = World::new(&[1, 2, 3, 4, 5, 6]);
    world.settle(40);
    let volume_id = VolumeId::from_bytes([7; 16]).to_wire();
    let create = log::CreateVolume {
        volume_id: volume_id.clone(),
        name: "data".to_owned(),
        pool: "default".to_owned(),
        size: 1 << 30,
        ..Default::default()
    };
    world.apply(Kind::CreateVolume(create));
    world.apply(Kind::BeginSplit(1));
    assert_eq!(plan(world.scene()).splits, [CopysetId(1)]);
    let delete = log::DeleteVolume { volume_id: volume_id.clone(), ..Default::default() };
    world.apply(Kind::DeleteVolume(delete));
    assert!(plan(world.scene()).deletions.is_empty(), "it would miss the new copyset");
    world.split(CopysetId(1));
    let due = plan(world.scene());
    assert_eq!(due.deletions.len(), 1);
    let begin = log::Command { kind: Some(Kind::BeginSplit(2)), ..Default::default() };
    let answer = world.state.apply(begin).kind;
    assert!(matches!(answer, Some(log::answer::Kind::Refused(_))), "{answer:?}");
    world.apply(Kind::ForgetVolume(volume_id));
    world.apply(Kind::BeginSplit(2));
}

#[test]
fn two_hosts_are_too_few() {
    let mut world = World::new(&[1, 2, 2, 1]);
    world.settle(10);
    assert!(world.state.copysets.is_empty());
}

#[test]
fn a_lost_device_is_replaced_after_the_time_and_not_before() {
    let mut world = World::new(&[1, 2, 3, 4]);
    world.settle(8);
    let copysets = world.state.copysets.len();
    assert_eq!(world.conditions(), vec![Condition::Whole; copysets]);
    world.alive.remove(&device(1));
    world.settle(50);
    assert!(world.state.copysets.values().all(|copyset| copyset.joining.is_none()));
    assert!(world.conditions().contains(&Condition::Degraded { replicas: 2 }));
    world.settle(80);
    assert_eq!(world.conditions(), vec![Condition::Whole; copysets]);
    assert_eq!(world.state.copysets_on(device(1)).count(), 0);
    assert_eq!(world.tick(), 0, "nothing is left to do");
}

#[test]
fn a_slow_device_does_not_keep_a_new_one_from_leading() {
    let mut world = World::new(&[1, 2, 3]);
    world.settle(60);
    world.commits.insert(device(2), Duration::from_millis(300));
    world.settle(40);
    world.register(4, "cs-3", 4);
    world.settle(200);
    assert_eq!(world.led(device(2)), 0);
    assert!(world.led(device(4)) >= 1);
}

#[test]
fn a_slow_device_leads_nothing_until_it_is_sound_again() {
    let mut world = World::new(&[1, 2, 3]);
    world.settle(60);
    let led = |world: &World| world.led(device(2));
    let planned = led(&world);
    assert!(planned >= 2);
    world.commits.insert(device(2), Duration::from_millis(300));
    world.settle(14);
    assert_eq!(led(&world), planned, "a burst");
    world.settle(10);
    assert_eq!(led(&world), 0);
    assert_eq!(world.conditions(), [Condition::Whole; 8], "its replicas stay");
    world.commits.clear();
    world.settle(50);
    assert_eq!(led(&world), 0);
    world.settle(40);
    assert_eq!(led(&world), planned);
}

#[test]
fn a_paused_repair_begins_nothing_and_goes_on_later() {
    let mut world = World::new(&[1, 2, 3, 4]);
    world.settle(8);
    world.state.paused.insert(Scheduler::Repair);
    world.alive.remove(&device(1));
    world.settle(130);
    assert!(world.state.copysets.values().all(|copyset| copyset.joining.is_none()));
    assert!(world.conditions().contains(&Condition::Degraded { replicas: 2 }));
    let messages = crate::health::cluster_status(world.scene(), &[]).messages;
    assert!(messages.contains(&"repair paused by command".to_owned()), "{messages:?}");
    world.state.paused.clear();
    world.settle(130);
    assert_eq!(world.conditions(), vec![Condition::Whole; world.state.copysets.len()]);
}

#[test]
fn a_paused_balance_moves_nothing_to_a_new_device() {
    let mut world = World::new(&[1, 2, 3]);
    world.settle(8);
    world.state.paused.insert(Scheduler::Balance);
    world.register(4, "cs-3", 4);
    world.settle(130);
    assert_eq!(world.state.copysets_on(device(4)).count(), 0);
    world.state.paused.clear();
    world.settle(130);
    assert!(world.state.copysets_on(device(4)).count() > 0);
}

#[test]
fn a_wiped_device_is_filled_again_under_its_new_identity() {
    let mut world = World::new(&[1, 2, 3]);
    world.settle(8);
    world.alive.remove(&device(2));
    world.register(22, "cs-1", 2);
    assert_eq!(world.conditions(), [Condition::Degraded { replicas: 2 }; 8], "lost at once");
    world.settle(40);
    assert_eq!(world.conditions(), [Condition::Whole; 8]);
    assert_eq!(world.state.copysets_on(device(22)).count(), 8);
    assert!(!world.state.devices.contains_key(&device(2)), "the old identity is forgotten");
}

#[test]
fn a_returned_device_ends_its_replacement() {
    let mut world = World::new(&[1, 2, 3, 4]);
    world.settle(8);
    world.alive.remove(&device(1));
    world.settle(61);
    world.alive.remove(&device(2));
    world.alive.remove(&device(3));
    world.settle(3);
    let moving = |world: &World| {
        world.state.copysets.values().filter(|copyset| copyset.joining.is_some()).count()
    };
    for n in [1, 2, 3] {
        world.alive.insert(device(n), String::new());
    }
    world.settle(30);
    assert_eq!(moving(&world), 0);
    let copysets = world.state.copysets.len();
    assert_eq!(world.conditions(), vec![Condition::Whole; copysets]);
    assert!(world.groups.values().all(|group| group.learners.is_empty()), "no learner is left");
}

#[test]
fn copysets_that_can_never_be_formed_are_started_over() {
    let mut world = World::new(&[1, 2, 3, 4, 5]);
    world.settle(2);
    let due = plan(world.scene());
    due.commands.into_iter().for_each(|command| world.apply(command));
    assert!(world.state.copysets.values().all(|copyset| !copyset.active));
    world.alive.remove(&device(1));
    world.alive.remove(&device(2));
    // The first orders are only now computed: half of the groups lack a quorum.
    world.settle(60);
    let copysets = world.state.copysets.values();
    assert!(copysets.clone().all(|copyset| copyset.active));
}

#[test]
fn orders_come_from_what_the_leader_reports() {
    let mut world = World::new(&[1, 2, 3]);
    world.settle(8);
    // A learner nobody wants is removed.
    let id = *world.groups.keys().next().expect("a group");
    world.groups.get_mut(&id).expect("group").learners.insert(device(9));
    world.settle(2);
    assert!(world.groups[&id].learners.is_empty());
}

#[test]
fn a_replica_is_dropped_only_once_its_group_does_without_it() {
    let mut world = World::new(&[1, 2, 3, 4]);
    world.settle(8);
    let (id, leader, old, new) = world.any_copyset();
    // The leader was told to promote a learner; then the move was given up.
    world.hosted.get_mut(&new).expect("known").insert(id);
    world.groups.get_mut(&id).expect("a group").learners.insert(new);
    world.report(leader);
    world.report(new);
    assert!(world.drops(new).is_empty(), "it may become a voter at any moment");
    let group = world.groups.get_mut(&id).expect("a group");
    group.voters.iter_mut().filter(|voter| **voter == old).for_each(|voter| *voter = new);
    group.learners.clear();
    group.config_index += 1;
    world.report(leader);
    assert!(world.drops(new).is_empty(), "it is a voter that the state does not know");
    for command in plan(world.scene()).commands {
        world.apply(command);
    }
    assert_eq!(world.drops(old), [id.0]);
    // It follows a leader of whom nothing was heard yet.
    let follows = Report { term: 4, leader_id: Some(new), ..Report::default() };
    world.view.devices.get_mut(&old).expect("seen").replicas.insert(id, follows);
    assert!(world.drops(old).is_empty());
    world.report(old);
    assert_eq!(world.drops(old), [id.0]);
    world.now += crate::view::DOWN_AFTER + Duration::from_secs(1);
    world.report(old);
    assert!(world.drops(old).is_empty(), "nobody speaks for the group");
}

#[test]
fn the_first_step_of_a_change_is_not_taken_over() {
    let mut world = World::new(&[1, 2, 3, 4]);
    world.settle(8);
    let (id, _, old, new) = world.any_copyset();
    let before = world.state.copysets[&id].voters.clone();
    let group = world.groups.get_mut(&id).expect("a group");
    group.voters.push(new);
    group.config_index += 1;
    world.settle(2);
    assert_eq!(world.state.copysets[&id].voters, before);
    let group = world.groups.get_mut(&id).expect("a group");
    group.voters.retain(|voter| *voter != old);
    group.config_index += 1;
    world.settle(2);
    assert!(!world.state.copysets[&id].is_on(old) && world.state.copysets[&id].is_on(new));
}

#[test]
fn a_replica_that_has_left_its_device_is_not_moved_again() {
    let mut world = World::new(&[1, 2, 3, 4]);
    world.settle(8);
    let (id, _, old, new) = world.any_copyset();
    let group = world.groups.get_mut(&id).expect("a group");
    group.voters.iter_mut().filter(|voter| **voter == old).for_each(|voter| *voter = new);
    group.config_index += 1;
    world.hosted.get_mut(&new).expect("known").insert(id);
    let name = world.alive.remove(&old).expect("alive");
    world.register(22, &name, world.host_of(old));
    // `apply` panics if what is planned beside taking over the new voters is refused.
    world.tick();
    let copyset = &world.state.copysets[&id];
    assert!(copyset.voters.contains(&new) && copyset.joining.is_none());
}

#[test]
fn repair_stops_before_the_devices_that_are_left_are_full() {
    let mut world = World::new(&[1, 2, 3, 4]);
    // Each device has 12 of 48 replicas: 70 %. Of a lost one's, three more fit on each, not four.
    world.replica_bytes = CAPACITY / 100 * 70 / 12;
    world.settle(8);
    world.alive.remove(&device(1));
    world.settle(20);
    assert!(!has_spare(world.scene(), device(1)));
    let message = crate::health::cluster_status(world.scene(), &[]).messages.remove(0);
    assert!(message.contains("can take the replicas of cs-0, for lack of room"), "{message}");
    world.settle(150);
    assert!(world.hosted.values().all(|replicas| replicas.len() <= 15));
    let left = world.state.copysets_on(device(1)).count();
    assert!((3..12).contains(&left), "{left} of 12 are left");
    assert!(!has_spare(world.scene(), device(1)));
    assert_eq!(world.tick(), 0, "nothing can be done");

    world.register(5, "cs-4", 5);
    world.settle(60);
    assert_eq!(world.conditions(), [Condition::Whole; 16]);
}

#[test]
fn leaders_are_told_which_copysets_have_a_full_device() {
    let mut world = World::new(&[1, 2, 3, 4]);
    world.settle(8);
    let full = |world: &World| -> BTreeSet<CopysetId> {
        let host = (1..=4).flat_map(|n| heartbeat_response(world.scene(), device(n), 0, TERM).host);
        host.filter(|order| order.full).map(|order| CopysetId(order.copyset)).collect()
    };
    assert_eq!(full(&world), BTreeSet::new());
    world.view.devices.get_mut(&device(2)).expect("heard").used = CAPACITY / 100 * 98;
    let hosted = world.state.copysets_on(device(2)).map(|(id, _)| id).collect();
    assert_eq!(full(&world), hosted);
}

#[derive(Clone, Debug)]
enum Event {
    Kill(u8),
    Revive(u8),
    Wipe(u8),
    Pass(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0u8..8).prop_map(Event::Kill),
        (0u8..8).prop_map(Event::Revive),
        (0u8..8).prop_map(Event::Wipe),
        (1u8..90).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn domains_stay_apart_and_repair_ends(
        hosts in prop::collection::vec(1u8..6, 3..8),
        events in events(),
    ) {
        let mut world = World::new(&hosts);
        world.settle(8);
        // The device that a process runs on, by process.
        let mut current: Vec<u8> = (1..=hosts.len() as u8).collect();
        let mut next = 100u8;
        for event in events {
            match event {
                // One at a time: the second loss of a quorum is not repaired by anyone.
                Event::Kill(n) if world.alive.len() == hosts.len() => {
                    let id = device(current[usize::from(n) % hosts.len()]);
                    world.alive.remove(&id);
                }
                Event::Revive(n) => {
                    let at = usize::from(n) % hosts.len();
                    world.alive.insert(device(current[at]), String::new());
                }
                Event::Wipe(n) if world.alive.len() == hosts.len() => {
                    let at = usize::from(n) % hosts.len();
                    // Only a cluster that is whole can afford it.
                    if world.conditions().iter().all(|c| *c == Condition::Whole) {
                        world.alive.remove(&device(current[at]));
                        next += 1;
                        current[at] = next;
                        world.register(next, &format!("cs-{at}"), hosts[at]);
                    }
                }
                Event::Pass(seconds) => world.settle(usize::from(seconds)),
                Event::Kill(_) | Event::Wipe(_) => {}
            }
            world.tick();
        }
        for n in &current {
            world.alive.insert(device(*n), String::new());
        }
        world.settle(200);
        prop_assert!(world.conditions().iter().all(|c| *c == Condition::Whole));
        prop_assert_eq!(world.tick(), 0);
    }
}
