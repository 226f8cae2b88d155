//! How much more than it can store a pool may promise, and how that is changed.

use curve_types::PoolId;
use prost::Message;

use super::*;

const POOL: PoolId = PoolId(1);
/// 95 % of the devices' 10 GiB.
const CAPACITY: u64 = 10 * GIB / 100 * 95;

fn overcommit(percent: u32) -> Kind {
    pool("default", percent)
}

fn pool(name: &str, overcommit_percent: u32) -> Kind {
    let (name, replicas) = (name.to_owned(), 3);
    Kind::CreatePool(log::CreatePool { name, replicas, overcommit_percent, ..Default::default() })
}

fn resize(n: u8, size: u64) -> Kind {
    Kind::ResizeVolume(log::ResizeVolume { volume_id: volume(n).to_wire(), size })
}

#[test]
fn without_overcommit_volumes_have_no_more_than_the_capacity() {
    let mut state = ready();
    assert_eq!(state.provisioned_limit(POOL), state.logical_capacity(POOL));
    apply(&mut state, create("data", 7, 9 * GIB)).expect("fits");
    let (reason, message) = refusal(&mut state, create("more", 8, GIB));
    assert_eq!(reason, Reason::Exhausted);
    let sentence = "pool \"default\" is full: 1 GiB more were asked for, its volumes have 9 GiB of \
                    9.5 GiB, which is 100 % (overcommit_percent) of its capacity of 9.5 GiB";
    assert_eq!(message, sentence);
}

#[test]
fn volumes_are_made_and_grown_up_to_the_overcommit_and_not_beyond() {
    let mut state = ready();
    apply(&mut state, overcommit(200)).expect("raised");
    assert!(state.logical_capacity(POOL).abs_diff(CAPACITY) < 4096);
    assert_eq!(state.provisioned_limit(POOL), state.logical_capacity(POOL) * 2);
    apply(&mut state, create("one", 7, 9 * GIB)).expect("fits");
    apply(&mut state, create("two", 8, 9 * GIB)).expect("is promised");
    apply(&mut state, resize(8, 10 * GIB)).expect("19 GiB in all");
    for kind in [create("three", 9, 1 << 20), resize(7, 9 * GIB + 512)] {
        let (reason, message) = refusal(&mut state, kind);
        assert_eq!(reason, Reason::Exhausted);
        let sentence = "have 19 GiB of 19 GiB, which is 200 % (overcommit_percent) of its capacity \
                        of 9.5 GiB";
        assert!(message.ends_with(sentence), "{message}");
    }
}

#[test]
fn a_clone_counts_with_its_whole_size() {
    let mut state = ready();
    apply(&mut state, create("data", 7, 6 * GIB)).expect("create");
    let (volume_id, name) = (volume(7).to_wire(), "one".to_owned());
    let begin = log::BeginSnapshot { volume_id, name, snapshot_id: volume(20).to_wire() };
    let begin = log::BeginSnapshots { snapshots: vec![begin] };
    apply(&mut state, Kind::BeginSnapshots(begin)).expect("begin");
    let ids = vec![volume(20).to_wire()];
    apply(&mut state, Kind::SnapshotsReady(log::VolumeIds { ids })).expect("ready");
    let clone = Kind::CreateVolume(log::CreateVolume {
        volume_id: volume(8).to_wire(),
        name: "copy".to_owned(),
        source_id: volume(20).to_wire(),
        ..Default::default()
    });
    assert_eq!(refusal(&mut state, clone.clone()).0, Reason::Exhausted);
    apply(&mut state, overcommit(150)).expect("raised");
    apply(&mut state, clone).expect("12 of 14.25 GiB");
}

#[test]
fn a_lowered_overcommit_keeps_what_is_there_and_refuses_more() {
    let mut state = ready();
    apply(&mut state, overcommit(300)).expect("raised");
    apply(&mut state, create("data", 7, 20 * GIB)).expect("create");
    apply(&mut state, overcommit(100)).expect("lowered");
    assert_eq!(state.volumes[&volume(7)].size, 20 * GIB);
    assert_eq!(refusal(&mut state, create("more", 8, 1 << 20)).0, Reason::Exhausted);
    assert_eq!(refusal(&mut state, resize(7, 21 * GIB)).0, Reason::Exhausted);
    apply(&mut state, resize(7, 20 * GIB)).expect("what it has");
    apply(&mut state, create("data", 8, 20 * GIB)).expect("the same volume again");
    let (volume_id, live_sessions) = (volume(7).to_wire(), Vec::new());
    let delete = log::DeleteVolume { volume_id, live_sessions };
    apply(&mut state, Kind::DeleteVolume(delete)).expect("delete");
}

#[test]
fn a_pool_asked_for_again_changes_its_overcommit_and_nothing_else() {
    let mut state = ready();
    let first = apply(&mut state, pool("fast", 200)).expect("create");
    assert_eq!(apply(&mut state, pool("fast", 0)).expect("again"), first);
    assert_eq!(state.pool_by_name("fast").expect("there").1.overcommit_percent, 200);
    assert_eq!(apply(&mut state, pool("fast", 150)).expect("lowered"), first);
    assert_eq!(state.pool_by_name("fast").expect("there").1.overcommit_percent, 150);
    let Kind::CreatePool(other) = pool("fast", 300) else { unreachable!() };
    let other = Kind::CreatePool(log::CreatePool { replicas: 5, ..other });
    assert_eq!(refusal(&mut state, other).0, Reason::AlreadyExists);
    apply(&mut state, pool("slow", 0)).expect("create");
    assert_eq!(state.pool_by_name("slow").expect("there").1.overcommit_percent, 100);
}

#[test]
fn a_pool_claims_of_shared_devices_what_it_promised_by_its_overcommit() {
    let mut state = ready();
    apply(&mut state, pool("second", 0)).expect("pool");
    let voters = [device(1), device(2), device(3)];
    let add = log::AddCopysets { pool: 2, placements: placements(8, &voters) };
    apply(&mut state, Kind::AddCopysets(add)).expect("copysets");
    apply(&mut state, overcommit(200)).expect("raised");
    apply(&mut state, create("data", 7, 8 * GIB)).expect("create");
    assert!(state.logical_capacity(PoolId(2)).abs_diff(CAPACITY - 4 * GIB) < 4096);
    apply(&mut state, overcommit(100)).expect("lowered");
    assert!(state.logical_capacity(PoolId(2)).abs_diff(CAPACITY - 8 * GIB) < 4096);
}

#[test]
fn an_overcommit_outlasts_a_restart_and_older_bytes_have_none() {
    let mut state = ready();
    apply(&mut state, overcommit(250)).expect("raised");
    let stored = state.encode();
    assert_eq!(State::decode(&stored).expect("its own bytes"), state);

    let mut older = log::StoredState::decode(stored).expect("a message");
    older.pools[0].spec.as_mut().expect("a pool").overcommit_percent = 0;
    let decoded = State::decode(&older.encode_to_vec()).expect("of an earlier version");
    assert_eq!(decoded.pools[&POOL].overcommit_percent, 100);
    older.pools[0].spec.as_mut().expect("a pool").overcommit_percent = 99;
    assert!(State::decode(&older.encode_to_vec()).is_err());
}
