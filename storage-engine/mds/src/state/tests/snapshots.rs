//! Snapshots, what is made from them, and rollback.

use proptest::prelude::*;

use super::*;

const POOL: curve_types::PoolId = curve_types::PoolId(1);

fn begin(wanted: &[(u8, &str, u8)]) -> Kind {
    let snapshot = |(of, name, id): &(u8, &str, u8)| log::BeginSnapshot {
        volume_id: volume(*of).to_wire(),
        name: (*name).to_owned(),
        snapshot_id: volume(*id).to_wire(),
    };
    Kind::BeginSnapshots(log::BeginSnapshots { snapshots: wanted.iter().map(snapshot).collect() })
}

fn ids(ids: &[u8]) -> log::VolumeIds {
    log::VolumeIds { ids: ids.iter().map(|n| volume(*n).to_wire()).collect() }
}

fn taken(of: &[u8]) -> Kind {
    Kind::SnapshotsReady(ids(of))
}

fn abandon(of: &[u8]) -> Kind {
    Kind::AbandonSnapshots(ids(of))
}

fn delete(n: u8) -> Kind {
    let volume_id = volume(n).to_wire();
    Kind::DeleteVolume(log::DeleteVolume { volume_id, live_sessions: Vec::new() })
}

fn clone_of(snapshot: u8, name: &str, n: u8) -> log::CreateVolume {
    let source_id = volume(snapshot).to_wire();
    let (volume_id, name) = (volume(n).to_wire(), name.to_owned());
    log::CreateVolume { volume_id, name, source_id, ..Default::default() }
}

fn rollback(of: u8, to: u8) -> Kind {
    let (volume_id, snapshot_id) = (volume(of).to_wire(), volume(to).to_wire());
    Kind::Rollback(log::Rollback { volume_id, snapshot_id, live_sessions: Vec::new() })
}

fn restored(n: u8, epoch: Epoch) -> Kind {
    Kind::Restored(log::Restored { volume_id: volume(n).to_wire(), epoch: epoch.0 })
}

fn resize(n: u8, size: u64) -> Kind {
    Kind::ResizeVolume(log::ResizeVolume { volume_id: volume(n).to_wire(), size })
}

fn publish_as(n: u8, read_only: bool) -> Kind {
    let (volume_id, node) = (volume(n).to_wire(), "node1".to_owned());
    Kind::Publish(log::Publish { volume_id, node, read_only, shared: false })
}

fn open_as(n: u8, read_only: bool) -> Kind {
    Kind::OpenSession(log::OpenSession {
        volume_id: volume(n).to_wire(),
        node: "node1".to_owned(),
        read_only,
        unpublished_allowed: true,
        ..Default::default()
    })
}

/// Volume 7, `data`, with the snapshot 20, `data@one`.
fn with_snapshot() -> State {
    let mut state = with_volume();
    apply(&mut state, begin(&[(7, "one", 20)])).expect("begin");
    apply(&mut state, taken(&[20])).expect("ready");
    state
}

#[test]
fn a_snapshot_is_a_volume_that_is_listed_apart_and_takes_no_room() {
    let state = with_snapshot();
    let found = &state.volumes[&volume(20)];
    assert_eq!((&*found.name, found.size, found.created_unix_ms), ("data@one", GIB, 5));
    let origin = found.snapshot.as_ref().expect("a snapshot");
    assert_eq!((origin.volume, &*origin.volume_name, &*origin.name), (volume(7), "data", "one"));
    assert_eq!(state.volume_by_name("data@one").map(|(id, _)| id), Some(volume(20)));
    assert_eq!(state.volumes_after("").map(|(id, _)| id).collect::<Vec<_>>(), [volume(7)]);
    let listed: Vec<_> = state.snapshots_after("data").map(|(id, ..)| id).collect();
    assert_eq!(listed, [volume(20)]);
    assert_eq!(state.snapshots_after("data@one").count(), 0);
    assert_eq!(state.provisioned(POOL), GIB);
    assert_eq!(State::decode(&state.encode()).expect("its own bytes"), state);
}

#[test]
fn snapshots_of_one_request_are_begun_together_or_not_at_all() {
    let mut state = with_volume();
    apply(&mut state, create("wal", 8, GIB)).expect("create");
    let both = begin(&[(7, "n", 20), (8, "n", 21)]);
    assert_eq!(apply(&mut state, both.clone()), Ok(answer::Kind::Volumes(ids(&[20, 21]))));
    let (reason, message) = refusal(&mut state, both);
    assert_eq!((reason, &*message), (Reason::NotReady, "snapshot \"data@n\" is being taken"));
    apply(&mut state, taken(&[20, 21])).expect("ready");
    // The same again: they are the answer, under whatever ids it comes.
    let again = begin(&[(8, "n", 31), (7, "n", 30)]);
    assert_eq!(apply(&mut state, again), Ok(answer::Kind::Volumes(ids(&[21, 20]))));

    apply(&mut state, begin(&[(7, "x", 40)])).expect("begin");
    apply(&mut state, taken(&[40])).expect("ready");
    let (reason, message) = refusal(&mut state, begin(&[(7, "x", 41), (8, "x", 42)]));
    assert_eq!(reason, Reason::AlreadyExists);
    assert!(message.contains("\"data@x\" exists, of another moment"), "{message}");
    // Each exists, but not of one moment.
    apply(&mut state, begin(&[(8, "x", 43)])).expect("begin");
    apply(&mut state, taken(&[43])).expect("ready");
    state.volumes.get_mut(&volume(43)).expect("known").created_unix_ms += 1;
    let (reason, _) = refusal(&mut state, begin(&[(7, "x", 44), (8, "x", 45)]));
    assert_eq!(reason, Reason::AlreadyExists);
}

#[test]
fn unusable_requests_for_snapshots_are_refused_by_name_and_value() {
    let mut state = with_snapshot();
    let many = |count: usize| {
        Kind::BeginSnapshots(log::BeginSnapshots {
            snapshots: vec![log::BeginSnapshot::default(); count],
        })
    };
    let cases = [
        (many(0), Reason::Invalid, "0 snapshots are asked for: expected 1 to 64"),
        (many(65), Reason::Invalid, "65 snapshots are asked for: expected 1 to 64"),
        (begin(&[(7, "a@b", 30)]), Reason::Invalid, "snapshot name is \"a@b\": expected 1 to 128"),
        (begin(&[(7, "", 30)]), Reason::Invalid, "snapshot name is \"\""),
        (begin(&[(7, "a", 30), (7, "b", 31)]), Reason::Invalid, "\"data\" is listed twice"),
        (begin(&[(99, "a", 30)]), Reason::NotFound, "does not exist"),
        (begin(&[(20, "a", 30)]), Reason::Precondition, "\"data@one\" is a snapshot itself"),
        (resize(20, 2 * GIB), Reason::Precondition, "a snapshot, which keeps its size"),
        (open_as(20, false), Reason::Precondition, "use it read-only, or make a volume from it"),
        (publish_as(20, false), Reason::Precondition, "nobody can write"),
        (rollback(20, 20), Reason::Precondition, "only a volume can be rolled back"),
        (create("x@y", 30, GIB), Reason::Invalid, "volume name is \"x@y\""),
    ];
    for (kind, reason, sentence) in cases {
        let (found, message) = refusal(&mut state, kind);
        assert_eq!(found, reason, "{message}");
        assert!(message.contains(sentence), "{message:?} should say {sentence:?}");
    }
    apply(&mut state, open_as(20, true)).expect("read-only");
    apply(&mut state, publish_as(20, true)).expect("read-only");
}

#[test]
fn a_snapshot_that_is_not_ready_is_of_no_use_and_can_be_given_up() {
    let mut state = with_volume();
    apply(&mut state, begin(&[(7, "one", 20)])).expect("begin");
    let clone = Kind::CreateVolume(clone_of(20, "copy", 8));
    let sentence = "snapshot \"data@one\" is still being taken";
    for kind in [open_as(20, true), publish_as(20, true), rollback(7, 20), clone] {
        let (reason, message) = refusal(&mut state, kind);
        assert_eq!((reason, &*message), (Reason::NotReady, sentence));
    }
    apply(&mut state, abandon(&[20, 99])).expect("abandon");
    assert!(state.volumes[&volume(20)].deleting);
    let (reason, message) = refusal(&mut state, taken(&[20]));
    assert_eq!(reason, Reason::NotReady);
    assert!(message.contains("was given up"), "{message}");
    // The name is free at once; what is ready is never given up.
    apply(&mut state, begin(&[(7, "one", 21)])).expect("begin");
    apply(&mut state, taken(&[21])).expect("ready");
    apply(&mut state, abandon(&[21])).expect("nothing to give up");
    assert!(!state.volumes[&volume(21)].deleting);
}

#[test]
fn a_snapshot_has_the_size_that_its_volume_had_when_it_was_taken() {
    let mut state = with_volume();
    apply(&mut state, begin(&[(7, "one", 20)])).expect("begin");
    apply(&mut state, resize(7, 2 * GIB)).expect("grown before it was frozen");
    apply(&mut state, taken(&[20])).expect("ready");
    apply(&mut state, resize(7, 3 * GIB)).expect("grown later");
    apply(&mut state, taken(&[20])).expect("again");
    assert_eq!(state.volumes[&volume(20)].size, 2 * GIB);
}

#[test]
fn snapshots_outlive_their_volume() {
    let mut state = with_snapshot();
    apply(&mut state, delete(7)).expect("delete");
    apply(&mut state, Kind::ForgetVolume(volume(7).to_wire())).expect("forget");
    apply(&mut state, Kind::CreateVolume(clone_of(20, "copy", 8))).expect("clone");
    // A new volume of that name has none of the old one's snapshots.
    apply(&mut state, create("data", 9, GIB)).expect("create");
    let (reason, message) = refusal(&mut state, begin(&[(9, "one", 30)]));
    assert_eq!(reason, Reason::AlreadyExists);
    assert!(message.contains("of an earlier volume of that name"), "{message}");
    let (_, message) = refusal(&mut state, rollback(9, 20));
    assert!(message.contains("expected one of volume \"data\""), "{message}");
}

#[test]
fn a_clone_is_usable_once_it_has_its_data() {
    let mut state = with_snapshot();
    let clone = Kind::CreateVolume(clone_of(20, "copy", 8));
    apply_as(&mut state, request(1), clone.clone()).expect("clone");
    let found = state.volumes[&volume(8)].clone();
    let first = Epoch::of_attachment(1);
    assert_eq!((found.size, found.epoch, found.fenced_epoch), (GIB, first, Epoch(0)));
    assert_eq!((found.restoring, found.source), (Some(volume(20)), Some(volume(20))));
    assert!(!found.owes_fence(), "taking the data over is its fence");
    assert_eq!(state.provisioned(POOL), 2 * GIB);
    let sentence = "volume \"copy\" cannot be used yet: its data is still being taken over from \
                    \"data@one\"";
    for kind in [open_as(8, false), open_as(8, true), publish_as(8, false), begin(&[(8, "a", 30)])]
    {
        let (reason, message) = refusal(&mut state, kind);
        assert_eq!((reason, &*message), (Reason::NotReady, sentence));
    }
    let (reason, message) = refusal(&mut state, delete(20));
    assert_eq!(reason, Reason::Precondition);
    assert!(message.contains("volume \"copy\" is still taking over the data"), "{message}");
    assert_eq!(State::decode(&state.encode()).expect("its own bytes"), state);

    apply(&mut state, restored(8, Epoch(1))).expect("of another time");
    assert!(state.volumes[&volume(8)].restoring.is_some());
    apply(&mut state, restored(8, first)).expect("restored");
    let found = &state.volumes[&volume(8)];
    assert_eq!((found.restoring, found.fenced_epoch), (None, first));
    apply(&mut state, open_as(8, false)).expect("attach");
    apply(&mut state, delete(20)).expect("nobody needs it");
    // The same clone again is there, though its source is not.
    apply(&mut state, clone).expect("again");
    let (_, message) = refusal(&mut state, Kind::CreateVolume(clone_of(20, "other", 9)));
    assert!(message.contains("does not exist"), "{message}");
}

#[test]
fn a_clone_may_be_larger_and_lies_in_its_snapshots_pool() {
    let mut state = with_snapshot();
    let second = log::CreatePool {
        name: "second".to_owned(),
        replicas: 3,
        failure_domain: 1,
        ..Default::default()
    };
    apply(&mut state, Kind::CreatePool(second)).expect("pool");
    let clone = |pool: &str, size| {
        let pool = pool.to_owned();
        Kind::CreateVolume(log::CreateVolume { pool, size, ..clone_of(20, "copy", 8) })
    };
    let of_volume = Kind::CreateVolume(clone_of(7, "copy", 8));
    let cases = [
        (clone("second", 0), "pool is \"second\": expected \"default\", that of snapshot"),
        (clone("", GIB - 512), "expected at least 1 GiB, that of snapshot \"data@one\""),
        (clone("", GIB + 1), "size is 1073741825 bytes: expected a multiple of 512"),
        (of_volume, "source is volume \"data\": expected a snapshot; take one first, data@NAME"),
    ];
    for (kind, sentence) in cases {
        let (reason, message) = refusal(&mut state, kind);
        assert_eq!(reason, Reason::Invalid);
        assert!(message.contains(sentence), "{message:?} should say {sentence:?}");
    }
    assert_eq!(refusal(&mut state, clone("third", 0)).0, Reason::NotFound);
    assert_eq!(refusal(&mut state, clone("", 100 * GIB)).0, Reason::Exhausted);
    apply(&mut state, clone("default", 2 * GIB)).expect("clone");
    apply(&mut state, clone("", 0)).expect("the same");
    apply(&mut state, clone("", 2 * GIB)).expect("the same");
    assert_eq!(refusal(&mut state, clone("", GIB)).0, Reason::AlreadyExists);
    let plain = create("copy", 9, 2 * GIB);
    assert!(refusal(&mut state, plain).1.contains("made from \"data@one\""));
    let (_, message) = refusal(&mut state, Kind::CreateVolume(clone_of(20, "data", 9)));
    assert!(message.contains("made from nothing"), "{message}");
}

#[test]
fn a_volume_is_rolled_back_while_nobody_uses_it() {
    let mut state = with_snapshot();
    let attach = open(&state, "node1");
    let session = opened(&mut state, attach);
    let live = log::Rollback {
        volume_id: volume(7).to_wire(),
        snapshot_id: volume(20).to_wire(),
        live_sessions: vec![session.id],
    };
    let (reason, message) = refusal(&mut state, Kind::Rollback(live));
    assert_eq!(reason, Reason::Precondition);
    assert!(message.contains("volume \"data\" is attached on node1"), "{message}");
    apply(&mut state, publish_as(7, false)).expect("publish");
    assert!(refusal(&mut state, rollback(7, 20)).1.contains("is published to node1"));
    let unpublish = log::Unpublish { volume_id: volume(7).to_wire(), node: String::new() };
    apply(&mut state, Kind::Unpublish(unpublish)).expect("unpublish");
    let before = state.volumes[&volume(7)].epoch;
    apply(&mut state, resize(7, 2 * GIB)).expect("grown since");

    apply_as(&mut state, request(1), rollback(7, 20)).expect("roll back");
    let epoch = before.next_attachment();
    let found = &state.volumes[&volume(7)];
    assert_eq!((found.epoch, found.restoring, found.size), (epoch, Some(volume(20)), 2 * GIB));
    assert!(found.sessions.is_empty() && found.source.is_none());
    // A retry changes nothing; another one has to wait.
    apply_as(&mut state, request(1), rollback(7, 20)).expect("retry");
    assert_eq!(state.volumes[&volume(7)].epoch, epoch);
    assert_eq!(refusal(&mut state, rollback(7, 20)).0, Reason::NotReady);
    apply(&mut state, restored(7, epoch)).expect("restored");
    apply(&mut state, rollback(7, 20)).expect("again");
    // A volume that nobody wants needs the snapshot no more.
    apply(&mut state, delete(7)).expect("delete");
    apply(&mut state, delete(20)).expect("delete");
}

fn any_command() -> impl Strategy<Value = Kind> {
    let id = || 7u8..13;
    let any_id = || 7u8..33;
    let name = || prop::sample::select(vec!["a", "b"]);
    let ids = || prop::collection::vec(17u8..33, 1..3);
    prop_oneof![
        (id(), name()).prop_map(|(n, name)| create(name, n, GIB)),
        (id(), name(), id()).prop_map(|(of, name, n)| begin(&[(of, name, n + 10)])),
        (id(), id(), name())
            .prop_map(|(a, b, name)| begin(&[(a, name, a + 20), (b, name, b + 20)])),
        ids().prop_map(|of| taken(&of)),
        ids().prop_map(|of| abandon(&of)),
        (any_id(), name(), id())
            .prop_map(|(of, name, n)| { Kind::CreateVolume(clone_of(of, name, n)) }),
        (id(), any_id()).prop_map(|(of, to)| rollback(of, to)),
        (any_id(), 0u64..4).prop_map(|(n, at)| restored(n, Epoch::of_attachment(at))),
        (any_id(), any::<bool>()).prop_map(|(n, read_only)| open_as(n, read_only)),
        (any_id(), any::<bool>()).prop_map(|(n, read_only)| publish_as(n, read_only)),
        any_id().prop_map(delete),
        any_id().prop_map(|n| Kind::ForgetVolume(volume(n).to_wire())),
    ]
}

/// Whether an id that the command brings is in use: the service makes up fresh ones.
fn reuses_an_id(state: &State, command: &Kind) -> bool {
    let used =
        |raw: &Bytes| VolumeId::from_wire(raw).is_some_and(|id| state.volumes.contains_key(&id));
    match command {
        Kind::CreateVolume(create) => used(&create.volume_id),
        Kind::BeginSnapshots(begin) => begin.snapshots.iter().any(|new| used(&new.snapshot_id)),
        _ => false,
    }
}

proptest! {
    #[test]
    fn whatever_is_commanded_the_state_reads_back_and_keeps_its_promises(
        commands in prop::collection::vec(any_command(), 1..80)
    ) {
        let mut state = ready();
        for command in commands {
            if reuses_an_id(&state, &command) {
                continue;
            }
            let _ = apply(&mut state, command);
            prop_assert_eq!(&State::decode(&state.encode()).expect("its own bytes"), &state);
            for (id, found) in state.volumes.iter().filter(|(_, found)| !found.deleting) {
                prop_assert_eq!(state.volume_by_name(&found.name).map(|(id, _)| id), Some(*id));
                if let Some(from) = found.restoring {
                    let source = &state.volumes[&from];
                    let taken = source.snapshot.as_ref().is_some_and(|snapshot| snapshot.ready);
                    prop_assert!(taken && !source.deleting);
                    prop_assert!(found.sessions.is_empty() && found.publications.is_empty());
                }
                if found.snapshot.is_some() {
                    prop_assert!(found.sessions.values().all(|session| session.read_only));
                    prop_assert!(found.restoring.is_none() && found.name.contains('@'));
                }
            }
        }
    }
}

#[test]
fn a_volume_has_a_bounded_number_of_snapshots() {
    let mut state = with_volume();
    let begin = |n: u128| {
        let snapshot_id = VolumeId::from_bytes((1000 + n).to_be_bytes()).to_wire();
        let volume_id = volume(7).to_wire();
        let snapshot = log::BeginSnapshot { volume_id, name: format!("n{n}"), snapshot_id };
        Kind::BeginSnapshots(log::BeginSnapshots { snapshots: vec![snapshot] })
    };
    (0..256).for_each(|n| drop(apply(&mut state, begin(n)).expect("room")));
    let (reason, message) = refusal(&mut state, begin(256));
    assert_eq!(reason, Reason::Exhausted);
    assert!(message.contains("256 snapshots of the volume of \"data@n256\""), "{message}");
    // What was taken before is still there.
    let last = VolumeId::from_bytes(1255u128.to_be_bytes()).to_wire();
    apply(&mut state, Kind::SnapshotsReady(log::VolumeIds { ids: vec![last] })).expect("ready");
    apply(&mut state, begin(255)).expect("done");
}
