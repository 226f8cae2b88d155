//! Tables of commands and what they answer and leave behind.

use bytes::Bytes;
use curve_types::{
    ClusterId, DeviceId, Epoch, LimitsChange, SHARDS_PER_POOL, ShardRange, VolumeId, VolumeLimits,
};

use super::*;
use crate::log::{self, WireId, answer, command::Kind, ids_to_wire};

mod overcommit;
mod snapshots;

const GIB: u64 = 1 << 30;

fn device(n: u8) -> DeviceId {
    DeviceId::from_bytes([n; 16])
}

fn volume(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 16])
}

fn request(n: u8) -> Bytes {
    Bytes::copy_from_slice(&[n; 16])
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes([9; 16])
}

/// Applies a command nobody retries.
fn apply(state: &mut State, kind: Kind) -> Result<answer::Kind, Refusal> {
    apply_as(state, Bytes::new(), kind)
}

fn apply_as(state: &mut State, request_id: Bytes, kind: Kind) -> Result<answer::Kind, Refusal> {
    let command = log::Command { request_id, now_unix_ms: 5, kind: Some(kind) };
    match state.apply(command).kind.expect("an answer") {
        answer::Kind::Refused(refused) => {
            Err(Refusal::new(Reason::from_code(refused.code), refused.message))
        }
        kind => Ok(kind),
    }
}

/// A state with one active copyset on the first three devices.
fn with_copyset() -> (State, CopysetId) {
    let mut state = State::default();
    let form = log::FormCluster {
        cluster_id: cluster().to_wire(),
        name: "demo".to_owned(),
        members: Vec::new(),
    };
    apply(&mut state, Kind::FormCluster(form)).expect("formed");
    for n in 1..=4 {
        apply(&mut state, register(&format!("cs-{n}"), device(n), true, None)).expect("known");
    }
    let voters = ids_to_wire(&[device(1), device(2), device(3)]);
    let placement = log::Placement { shard_first: 0, shard_end: SHARDS_PER_POOL, voters };
    let add = log::AddCopysets { pool: 1, placements: vec![placement] };
    apply(&mut state, Kind::AddCopysets(add)).expect("divided");
    (state, CopysetId(1))
}

#[test]
fn the_preferred_leader_outlasts_a_change_of_members() {
    let (mut state, id) = with_copyset();
    let prefer = |n| {
        let device = device(n).to_wire();
        Kind::PreferLeader(log::PreferLeader { copyset: id.0, device })
    };
    let (reason, _) = refusal(&mut state, prefer(2));
    assert_eq!(reason, Reason::Precondition, "the first voter is still to form the group");
    let active = Kind::ActivateCopysets(log::CopysetIds { ids: vec![id.0] });
    apply(&mut state, active).expect("active");
    assert_eq!(refusal(&mut state, prefer(4)).0, Reason::Precondition, "it is no voter");
    apply(&mut state, prefer(2)).expect("a voter");
    assert_eq!(state.copysets[&id].voters, [device(2), device(1), device(3)]);
    let observe = log::ObservedMembership {
        copyset: id.0,
        config_index: 9,
        voters: ids_to_wire(&[device(3), device(4), device(2)]),
    };
    apply(&mut state, Kind::ObserveMembership(observe)).expect("newer");
    assert_eq!(state.copysets[&id].voters, [device(2), device(4), device(3)]);
}

fn refusal(state: &mut State, kind: Kind) -> (Reason, String) {
    let before = state.clone();
    let Refusal { reason, message } = apply(state, kind).expect_err("refused");
    assert_eq!(*state, before, "a refused command changes nothing");
    (reason, message)
}

fn register(name: &str, id: DeviceId, blank: bool, of: Option<ClusterId>) -> Kind {
    let facts = log::DeviceFacts {
        device_id: id.to_wire(),
        name: name.to_owned(),
        host: format!("host-of-{name}"),
        size: 12 * GIB,
        capacity: 10 * GIB,
        address: "10.0.0.1:7200".to_owned(),
        ..Default::default()
    };
    let cluster_id = of.map(WireId::to_wire).unwrap_or_default();
    Kind::RegisterDevice(log::RegisterDevice { facts: Some(facts), blank, cluster_id })
}

fn form() -> Kind {
    let members =
        vec![log::MdsMember { name: "mds-0".to_owned(), device_id: device(99).to_wire() }];
    let (cluster_id, name) = (cluster().to_wire(), "demo".to_owned());
    Kind::FormCluster(log::FormCluster { cluster_id, name, members })
}

fn placements(count: u32, voters: &[DeviceId]) -> Vec<log::Placement> {
    ShardRange::divide(count)
        .map(|range| log::Placement {
            shard_first: range.first,
            shard_end: range.end,
            voters: ids_to_wire(voters),
        })
        .collect()
}

/// Three devices of 10 GiB and a pool whose copysets are formed.
fn ready() -> State {
    let mut state = State::default();
    apply(&mut state, form()).expect("form");
    for n in 1..=3 {
        apply(&mut state, register(&format!("cs-{n}"), device(n), true, None)).expect("register");
    }
    let voters = [device(1), device(2), device(3)];
    let add = log::AddCopysets { pool: 1, placements: placements(8, &voters) };
    apply(&mut state, Kind::AddCopysets(add)).expect("copysets");
    let ids = (1..=8).collect();
    apply(&mut state, Kind::ActivateCopysets(log::CopysetIds { ids })).expect("activate");
    state
}

fn create(name: &str, n: u8, size: u64) -> Kind {
    let (name, pool) = (name.to_owned(), "default".to_owned());
    let volume_id = volume(n).to_wire();
    Kind::CreateVolume(log::CreateVolume { volume_id, name, pool, size, ..Default::default() })
}

fn set_limits(change: LimitsChange) -> Kind {
    let (volume_id, change) = (volume(7).to_wire(), Some(change.into()));
    Kind::SetLimits(log::SetLimits { volume_id, change })
}

fn with_volume() -> State {
    let mut state = ready();
    apply(&mut state, create("data", 7, GIB)).expect("create");
    state
}

fn publish(node: &str, shared: bool) -> Kind {
    let (volume_id, node) = (volume(7).to_wire(), node.to_owned());
    Kind::Publish(log::Publish { volume_id, node, read_only: false, shared })
}

/// By an administrator, with every known session live.
fn open(state: &State, node: &str) -> log::OpenSession {
    let live = |id: &SessionId| log::LiveSession { id: id.0, age_ms: 300 };
    log::OpenSession {
        volume_id: volume(7).to_wire(),
        node: node.to_owned(),
        unpublished_allowed: true,
        live: state.volumes[&volume(7)].sessions.keys().map(live).collect(),
        ..Default::default()
    }
}

fn opened(state: &mut State, open: log::OpenSession) -> log::OpenedSession {
    match apply(state, Kind::OpenSession(open)).expect("attach") {
        answer::Kind::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_state_reads_back_from_its_bytes() {
    let mut state = with_volume();
    let limits = LimitsChange { read_iops: Some(9), burst_seconds: Some(3), ..Default::default() };
    apply(&mut state, set_limits(limits)).expect("limits");
    apply(&mut state, publish("node1", true)).expect("publish");
    let attach = open(&state, "node1");
    apply_as(&mut state, request(3), Kind::OpenSession(attach)).expect("attach");
    apply(&mut state, register("cs-4", device(4), true, None)).expect("register");
    let begin =
        log::Replacement { copyset: 2, remove: device(1).to_wire(), add: device(4).to_wire() };
    apply(&mut state, Kind::BeginReplacement(begin)).expect("begin");
    let stored = state.encode();
    let again = State::decode(&stored).expect("decode");
    assert_eq!(again, state);
    assert_eq!(again.encode(), stored);
    assert_eq!(State::decode(&[]).expect("empty"), State::default());
    assert!(State::decode(&stored[..stored.len() - 1]).is_err());
    assert!(State::decode(&[0xff; 40]).is_err());
}

#[test]
fn a_retried_request_has_the_effect_of_one() {
    let mut state = ready();
    let first = apply_as(&mut state, request(1), create("data", 7, GIB)).expect("create");
    // The retry carries another candidate for the id; the answer names the volume that exists.
    let again = apply_as(&mut state, request(1), create("data", 8, GIB)).expect("retry");
    assert_eq!(first, again);
    assert_eq!(state.volumes.len(), 1);
    let grant = apply_as(&mut state, request(2), register("cs-9", device(20), true, None));
    let again = apply_as(&mut state, request(2), register("cs-9", device(21), true, None));
    assert_eq!(grant, again);
    let misuse = apply_as(&mut state, request(1), Kind::DeletePool("default".to_owned()));
    assert_eq!(misuse.expect_err("another kind").reason, Reason::Invalid);
}

#[test]
fn a_refused_request_may_be_tried_again() {
    let mut state = ready();
    let large = create("data", 7, 20 * GIB);
    apply_as(&mut state, request(1), large.clone()).expect_err("full");
    for device in state.devices.values_mut() {
        device.capacity = 100 * GIB;
    }
    apply_as(&mut state, request(1), large).expect("room now");
}

#[test]
fn bad_input_is_refused_by_name_and_value() {
    let mut state = with_volume();
    let pool = |replicas, failure_domain, class: &str| {
        Kind::CreatePool(log::CreatePool {
            name: "fast".to_owned(),
            replicas,
            failure_domain,
            device_class: class.to_owned(),
            overcommit_percent: 0,
        })
    };
    let overcommit = |overcommit_percent| {
        let (name, replicas) = ("fast".to_owned(), 3);
        let pool = log::CreatePool { name, replicas, overcommit_percent, ..Default::default() };
        Kind::CreatePool(pool)
    };
    let volume_in = |pool: &str| {
        let Kind::CreateVolume(create) = create("new", 8, GIB) else { unreachable!() };
        Kind::CreateVolume(log::CreateVolume { pool: pool.to_owned(), ..create })
    };
    let resize =
        |size| Kind::ResizeVolume(log::ResizeVolume { volume_id: volume(7).to_wire(), size });
    let cases = [
        (create("", 8, GIB), Reason::Invalid, "volume name is \"\": expected 1 to 128 letters"),
        (create("../x", 8, GIB), Reason::Invalid, "volume name is \"../x\""),
        (create(&"x".repeat(129), 8, GIB), Reason::Invalid, "1 to 128"),
        (create("new", 8, 1000), Reason::Invalid, "size is 1000 bytes: expected a multiple of 512"),
        (create("new", 8, GIB + 1), Reason::Invalid, "multiple of 512 from 1 MiB to 64 TiB"),
        (create("new", 8, u64::MAX), Reason::Invalid, "from 1 MiB to 64 TiB"),
        (create("new", 8, 9 * GIB), Reason::Exhausted, "9 GiB more were asked for"),
        (create("data", 8, 2 * GIB), Reason::AlreadyExists, "exists with other properties: 1 GiB"),
        (volume_in("nope"), Reason::NotFound, "pool is \"nope\": expected one of default"),
        (resize(GIB / 2), Reason::Invalid, "a volume can only grow"),
        (resize(30 * GIB), Reason::Exhausted, "pool \"default\" is full"),
        (pool(2, 1, ""), Reason::Invalid, "replicas is 2: expected 3, 5 or 7"),
        (pool(4, 1, ""), Reason::Invalid, "replicas is 4"),
        (pool(3, 7, ""), Reason::Invalid, "failure_domain is 7: expected 1 (host) or 2 (zone)"),
        (pool(3, 1, "a b"), Reason::Invalid, "device_class is \"a b\""),
        (overcommit(99), Reason::Invalid, "overcommit_percent is 99: expected 100 (no overcommit)"),
        (overcommit(2001), Reason::Invalid, "overcommit_percent is 2001: expected 100"),
        (Kind::DeletePool("default".to_owned()), Reason::Precondition, "holds 1 volumes"),
        (register("cs-1", device(1), false, None), Reason::Precondition, "belongs to cluster none"),
        (publish("no de", false), Reason::Invalid, "node is \"no de\""),
    ];
    for (kind, reason, sentence) in cases {
        let (found, message) = refusal(&mut state, kind);
        assert_eq!(found, reason, "{message}");
        assert!(message.contains(sentence), "{message:?} should say {sentence:?}");
    }
}

#[test]
fn a_volume_waits_for_its_pool() {
    let mut state = State::default();
    apply(&mut state, form()).expect("form");
    apply(&mut state, register("cs-1", device(1), true, None)).expect("register");
    let (reason, message) = refusal(&mut state, create("data", 7, GIB));
    assert_eq!(reason, Reason::NotReady);
    assert!(message.contains("devices in 3 different hosts, 1 are registered"), "{message}");
}

#[test]
fn a_device_of_another_cluster_is_refused() {
    let mut state = ready();
    let stranger = register("cs-1", device(1), false, Some(ClusterId::from_bytes([8; 16])));
    let (reason, message) = refusal(&mut state, stranger);
    assert_eq!(reason, Reason::Precondition);
    assert!(message.contains("this is cluster \"demo\""), "{message}");
    apply(&mut state, register("cs-1", device(1), false, Some(cluster()))).expect("its own");
    let forgotten = register("cs-5", device(50), false, Some(cluster()));
    assert!(refusal(&mut state, forgotten).1.contains("no longer part of cluster"));
}

#[test]
fn a_wiped_device_supersedes_its_old_identity() {
    let mut state = ready();
    apply(&mut state, register("cs-1", device(11), true, None)).expect("register");
    assert!(state.devices[&device(1)].superseded);
    assert_eq!(state.successor(&state.devices[&device(1)]), Some(device(11)));
    assert!(refusal(&mut state, Kind::ForgetDevice(device(1).to_wire())).1.contains("in use"));
    // The old disk is put back: it takes its name again.
    apply(&mut state, register("cs-1", device(1), false, Some(cluster()))).expect("register");
    assert!(!state.devices[&device(1)].superseded);
    assert!(state.devices[&device(11)].superseded);
    apply(&mut state, Kind::ForgetDevice(device(11).to_wire())).expect("unused");
}

#[test]
fn a_replacement_keeps_failure_domains_apart() {
    let mut state = ready();
    for n in [4, 5] {
        apply(&mut state, register(&format!("cs-{n}"), device(n), true, None)).expect("register");
    }
    state.devices.get_mut(&device(5)).expect("known").host = "host-of-cs-2".to_owned();
    let exchange = |remove: u8, add: u8| {
        let (remove, add) = (device(remove).to_wire(), device(add).to_wire());
        log::Replacement { copyset: 1, remove, add }
    };
    let begin = |remove, add| Kind::BeginReplacement(exchange(remove, add));
    assert!(refusal(&mut state, begin(1, 5)).1.contains("has a replica in host"));
    assert!(refusal(&mut state, begin(4, 5)).1.contains("no replica on"));
    apply(&mut state, begin(1, 4)).expect("another host");
    assert!(refusal(&mut state, begin(2, 4)).1.contains("not at rest"));

    let observed = |config_index, voters: &[DeviceId]| {
        let voters = ids_to_wire(voters);
        Kind::ObserveMembership(log::ObservedMembership { copyset: 1, config_index, voters })
    };
    let voters = [device(2), device(3), device(4)];
    apply(&mut state, observed(40, &voters)).expect("observe");
    let copyset = &state.copysets[&CopysetId(1)];
    assert_eq!(copyset.joining, None);
    // In the place of the one that left, so that leaders stay where they were planned.
    assert_eq!(copyset.voters, [device(4), device(2), device(3)]);
    refusal(&mut state, observed(39, &[device(1), device(2), device(3)]));
}

#[test]
fn a_formed_copyset_is_never_started_over() {
    let mut state = ready();
    let voters = ids_to_wire(&[device(1), device(2), device(3)]);
    let recreate = Kind::RecreateCopyset(log::RecreateCopyset { copyset: 1, voters });
    assert!(refusal(&mut state, recreate.clone()).1.contains("in use"));
    state.copysets.get_mut(&CopysetId(1)).expect("known").active = false;
    apply(&mut state, recreate).expect("not formed");
    assert!(!state.copysets.contains_key(&CopysetId(1)));
    let shards = |copyset: &Copyset| copyset.shards.end - copyset.shards.first;
    assert_eq!(state.copysets.values().map(shards).sum::<u32>(), SHARDS_PER_POOL);
}

#[test]
fn a_live_attachment_elsewhere_stands_in_the_way() {
    let mut state = with_volume();
    let attach = open(&state, "node2");
    let first = opened(&mut state, attach);
    assert_eq!(first.epoch, Epoch::of_attachment(1).0);
    let wanted = open(&state, "node1");
    let (reason, message) = refusal(&mut state, Kind::OpenSession(wanted.clone()));
    assert_eq!(reason, Reason::Precondition);
    let expected = "volume \"data\" is attached on node2 (session 1, last seen 0.3 s ago): \
                    detach it there, or pass --force to fence it";
    assert_eq!(message, expected);

    let forced = opened(&mut state, log::OpenSession { force: true, ..wanted });
    assert_eq!(forced.epoch, Epoch::of_attachment(2).0);
    let sessions: Vec<_> = state.volumes[&volume(7)].sessions.keys().map(|id| id.0).collect();
    assert_eq!(sessions, [forced.id]);
    // An expired session and one of the same node stand in nobody's way, and are fenced.
    let again = open(&state, "node1");
    assert_eq!(opened(&mut state, again).epoch, Epoch::of_attachment(3).0);
    let expired = log::OpenSession { live: Vec::new(), ..open(&state, "node3") };
    assert_eq!(opened(&mut state, expired).epoch, Epoch::of_attachment(4).0);
}

#[test]
fn an_agent_attaches_only_what_is_published_to_its_node() {
    let mut state = with_volume();
    let by_agent = |state: &State, node: &str| log::OpenSession {
        unpublished_allowed: false,
        ..open(state, node)
    };
    let attach = by_agent(&state, "node1");
    let (reason, message) = refusal(&mut state, Kind::OpenSession(attach));
    assert_eq!(reason, Reason::Forbidden);
    assert_eq!(message, "volume \"data\" is not published to node1");
    apply(&mut state, publish("node1", false)).expect("publish");
    let attach = by_agent(&state, "node1");
    let session = opened(&mut state, attach.clone());
    refusal(&mut state, Kind::OpenSession(log::OpenSession { shared: true, ..attach }));
    assert!(refusal(&mut state, publish("node2", false)).1.contains("exclusively to node1"));
    assert!(refusal(&mut state, publish("node1", true)).1.contains("shared false"));

    // Taking the publication back ends the session and owes a fence.
    let unpublish = log::Unpublish { volume_id: volume(7).to_wire(), node: "node1".to_owned() };
    let answer = apply(&mut state, Kind::Unpublish(unpublish.clone())).expect("unpublish");
    assert_eq!(answer, answer::Kind::Epoch(Epoch(session.epoch).next_attachment().0));
    let found = &state.volumes[&volume(7)];
    assert!(found.sessions.is_empty() && found.publications.is_empty());
    assert!(found.fenced_epoch < found.epoch);
    // Without a session nothing more is fenced.
    let again = apply(&mut state, Kind::Unpublish(unpublish)).expect("again");
    assert_eq!(again, answer);
}

#[test]
fn shared_sessions_live_side_by_side_and_end_one_by_one() {
    let mut state = with_volume();
    for node in ["node1", "node2"] {
        apply(&mut state, publish(node, true)).expect("publish");
    }
    let attach = |state: &mut State, node: &str| {
        let open = log::OpenSession { shared: true, ..open(state, node) };
        opened(state, open)
    };
    let sessions = |state: &State| -> Vec<u64> {
        state.volumes[&volume(7)].sessions.keys().map(|id| id.0).collect()
    };
    let revoking = |state: &State| -> Vec<u64> {
        state.volumes[&volume(7)].revoking.iter().map(|id| id.0).collect()
    };
    let lone = attach(&mut state, "node1");
    let first = attach(&mut state, "node1");
    assert!(first.epoch > lone.epoch, "the only holder fences its own earlier session");
    let second = attach(&mut state, "node2");
    assert_eq!((first.epoch, sessions(&state)), (second.epoch, vec![first.id, second.id]));
    let exclusive = open(&state, "node3");
    refusal(&mut state, Kind::OpenSession(exclusive));

    // A node that attaches again ends its own earlier session, and no other.
    let again = attach(&mut state, "node1");
    assert_eq!((again.epoch, sessions(&state)), (second.epoch, vec![second.id, again.id]));
    assert_eq!(revoking(&state), [first.id]);
    let unpublish = log::Unpublish { volume_id: volume(7).to_wire(), node: "node1".to_owned() };
    apply(&mut state, Kind::Unpublish(unpublish)).expect("unpublish");
    assert_eq!((sessions(&state), revoking(&state)), (vec![second.id], vec![first.id, again.id]));
    let found = &state.volumes[&volume(7)];
    assert!(found.epoch.0 == second.epoch && found.publications.contains_key("node2"));
    assert_eq!(State::decode(&state.encode()).expect("its own bytes"), state);

    // What was recorded is what was owed then, not what is owed since.
    let fenced = |revoked| {
        let volume_id = volume(7).to_wire();
        Kind::Fenced(log::Fenced { volume_id, epoch: second.epoch, revoked })
    };
    apply(&mut state, fenced(vec![first.id, 99])).expect("record");
    assert_eq!(revoking(&state), [again.id]);
    assert!(state.volumes[&volume(7)].owes_fence());
    apply(&mut state, fenced(vec![again.id])).expect("record");
    assert!(!state.volumes[&volume(7)].owes_fence());
}

#[test]
fn too_many_revocations_raise_the_epoch() {
    let mut state = with_volume();
    let attach = |state: &mut State, node: &str| {
        let open = log::OpenSession { shared: true, ..open(state, node) };
        opened(state, open)
    };
    let other = attach(&mut state, "node2");
    let mut last = attach(&mut state, "node1");
    for _ in 0..100 {
        last = attach(&mut state, "node1");
        assert_eq!(last.epoch, other.epoch);
    }
    let raised = attach(&mut state, "node1");
    assert!(raised.epoch > last.epoch);
    let found = &state.volumes[&volume(7)];
    assert_eq!((found.sessions.len(), found.revoking.len(), found.revoked), (1, 0, 0));
}

#[test]
fn a_recorded_fence_never_goes_back_nor_beyond_the_epoch() {
    let mut state = with_volume();
    let attach = open(&state, "node1");
    let epoch = opened(&mut state, attach).epoch;
    let fenced = |epoch| {
        Kind::Fenced(log::Fenced { volume_id: volume(7).to_wire(), epoch, revoked: Vec::new() })
    };
    for (said, known) in [(epoch - 1, epoch - 1), (epoch + 9, epoch), (1, epoch)] {
        apply(&mut state, fenced(said)).expect("record");
        assert_eq!(state.volumes[&volume(7)].fenced_epoch, Epoch(known));
    }
}

#[test]
fn deletion_waits_for_users_and_frees_the_name_at_once() {
    let mut state = with_volume();
    let delete = |live_sessions| {
        let volume_id = volume(7).to_wire();
        Kind::DeleteVolume(log::DeleteVolume { volume_id, live_sessions })
    };
    apply(&mut state, publish("node1", false)).expect("publish");
    assert!(refusal(&mut state, delete(vec![])).1.contains("published to node1"));
    let unpublish = log::Unpublish { volume_id: volume(7).to_wire(), node: String::new() };
    apply(&mut state, Kind::Unpublish(unpublish)).expect("unpublish");
    let attach = open(&state, "node2");
    let session = opened(&mut state, attach);
    assert!(refusal(&mut state, delete(vec![session.id])).1.contains("attached on node2"));
    apply(&mut state, delete(vec![])).expect("its session has expired");
    apply(&mut state, delete(vec![])).expect("already done");
    apply(&mut state, create("data", 8, GIB)).expect("the name is free");
    assert_eq!(state.provisioned(curve_types::PoolId(1)), 2 * GIB);
    apply(&mut state, Kind::ForgetVolume(volume(7).to_wire())).expect("forget");
    apply(&mut state, Kind::ForgetVolume(volume(8).to_wire())).expect("not deleted: kept");
    assert_eq!(state.volumes.keys().collect::<Vec<_>>(), [&volume(8)]);
}

#[test]
fn capacity_is_what_the_fullest_device_can_hold() {
    let mut state = ready();
    let pool = curve_types::PoolId(1);
    // Every device has a replica of everything: 95 % of the smallest.
    assert_eq!(state.logical_capacity(pool), 10 * GIB * 95 / 100);
    state.devices.get_mut(&device(2)).expect("known").capacity = 4 * GIB;
    assert_eq!(state.logical_capacity(pool), 4 * GIB * 95 / 100);
    // A second pool on the same devices takes its share of them.
    let second = log::CreatePool {
        name: "second".to_owned(),
        replicas: 3,
        failure_domain: 1,
        ..Default::default()
    };
    apply(&mut state, Kind::CreatePool(second)).expect("pool");
    let voters = [device(1), device(2), device(3)];
    let add = log::AddCopysets { pool: 2, placements: placements(8, &voters) };
    apply(&mut state, Kind::AddCopysets(add)).expect("copysets");
    apply(&mut state, create("data", 7, GIB)).expect("create");
    let second = curve_types::PoolId(2);
    assert_eq!(state.logical_capacity(second), 4 * GIB * 95 / 100 - GIB);
}

#[test]
fn the_cluster_is_formed_once() {
    let mut state = ready();
    assert_eq!(refusal(&mut state, form()).0, Reason::AlreadyExists);
    let member = |name: &str| {
        let device_id = device(98).to_wire();
        Kind::ReplaceMds(log::MdsMember { name: name.to_owned(), device_id })
    };
    apply(&mut state, member("mds-0")).expect("known");
    assert_eq!(state.members["mds-0"], device(98));
    assert!(refusal(&mut state, member("mds-7")).1.contains("no MDS of this cluster: mds-0"));
}

#[test]
fn limits_are_set_at_creation_and_changed_one_by_one() {
    let mut state = ready();
    let limited = |write_iops| {
        let Kind::CreateVolume(create) = create("data", 7, GIB) else { unreachable!() };
        let limits = LimitsChange { write_iops: Some(write_iops), ..Default::default() };
        Kind::CreateVolume(log::CreateVolume { limits: Some(limits.into()), ..create })
    };
    apply(&mut state, limited(100)).expect("create");
    apply(&mut state, limited(100)).expect("the same");
    let (reason, message) = refusal(&mut state, limited(200));
    assert_eq!(reason, Reason::AlreadyExists);
    assert!(message.contains("limits: write_iops 100"), "{message}");

    let mib = Some(1 << 20);
    let change =
        LimitsChange { bytes_per_second: mib, burst_seconds: Some(9), ..Default::default() };
    apply(&mut state, set_limits(change)).expect("set");
    apply(&mut state, set_limits(change)).expect("again");
    let expected = VolumeLimits {
        write_iops: 100,
        bytes_per_second: 1 << 20,
        burst_seconds: 9,
        ..Default::default()
    };
    assert_eq!(state.volumes[&volume(7)].limits, expected);
    let off = LimitsChange { write_iops: Some(0), ..Default::default() };
    apply(&mut state, set_limits(off)).expect("lifted");
    assert_eq!(state.volumes[&volume(7)].limits, VolumeLimits { write_iops: 0, ..expected });
}

#[test]
fn a_limit_that_makes_no_sense_is_refused_by_name_and_value() {
    let mut state = with_volume();
    let none = LimitsChange::default;
    let cases = [
        (
            LimitsChange { read_bytes_per_second: Some(100), ..none() },
            "read_bytes_per_second is 100: expected 0 (unlimited) or a number from 262144 to",
        ),
        (LimitsChange { iops: Some(u64::MAX), ..none() }, "iops is 18446744073709551615: expected"),
        (LimitsChange { burst_seconds: Some(7200), ..none() }, "burst_seconds is 7200: expected 0"),
    ];
    for (change, sentence) in cases {
        let (reason, message) = refusal(&mut state, set_limits(change));
        assert_eq!(reason, Reason::Invalid);
        assert!(message.contains(sentence), "{message:?} should say {sentence:?}");
    }
    let missing = log::SetLimits { volume_id: volume(8).to_wire(), change: None };
    assert_eq!(refusal(&mut state, Kind::SetLimits(missing)).0, Reason::NotFound);
}

#[test]
fn schedulers_are_paused_by_name_or_all() {
    let mut state = ready();
    let pause = |names: &[&str], paused| {
        let schedulers = names.iter().map(ToString::to_string).collect();
        Kind::PauseSchedulers(log::PauseSchedulers { schedulers, paused })
    };
    apply(&mut state, pause(&["balance"], true)).expect("pause");
    apply(&mut state, pause(&["balance"], true)).expect("again");
    assert_eq!(state.paused.iter().copied().collect::<Vec<_>>(), [Scheduler::Balance]);
    let (reason, message) = refusal(&mut state, pause(&["repair", "scrubs"], true));
    let expected = "scheduler is \"scrubs\": expected one of repair, balance, leaders, scrub";
    assert_eq!((reason, &*message), (Reason::Invalid, expected));
    apply(&mut state, pause(&[], true)).expect("all");
    assert_eq!(state.paused.len(), Scheduler::ALL.len());
    assert_eq!(State::decode(&state.encode()).expect("its own bytes"), state);
    apply(&mut state, pause(&[], false)).expect("none");
    assert!(state.paused.is_empty());
}
