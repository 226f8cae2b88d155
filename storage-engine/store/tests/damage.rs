//! Damage is told from a torn tail, and a disk that fails once is never trusted again.

mod common;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::{Blob, chunk, durable, entry, open, options, sim};
use curve_store::{Group, LogEntry, SimDisk, StateProvider, Store, StoreError, StoreOptions, Vote};
use curve_types::{CopysetId, VolumeId};

const GROUP: CopysetId = CopysetId(1);
const SIZE: u64 = 64 << 20;
/// Where the format puts the WAL.
const WAL_AT: u64 = 64 << 10;

/// A store with some acknowledged entries, whose log then went idle (or not).
fn with_entries(count: u64, idle: bool) -> Arc<SimDisk> {
    let disk = sim(SIZE, 1 << 20);
    let idle_mark_after = Duration::from_millis(if idle { 1 } else { 60_000 });
    let (store, _) = common::open_with(&disk, StoreOptions { idle_mark_after, ..options() });
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    for index in 0..count {
        durable(|done| group.append(vec![entry(1, index, 3000)], done)).expect("append");
    }
    if idle {
        std::thread::sleep(Duration::from_millis(50));
    }
    drop((group, store));
    disk
}

/// Device offset of the batch that holds this entry, found by its position and payload.
fn batch_of(disk: &SimDisk, index: u64) -> u64 {
    let entry = entry(1, index, 3000);
    let needle = [&entry.header[..], &entry.payload[..56]].concat();
    let holds = |at: &u64| {
        let block = disk.peek(*at, 4096);
        block.starts_with(b"CWAL") && block.windows(64).any(|window| window == &needle[..])
    };
    (WAL_AT..WAL_AT + (1 << 20)).step_by(4096).find(holds).expect("the batch is there")
}

fn copy(disk: &SimDisk) -> Arc<SimDisk> {
    Arc::new(disk.after_crash(|| true))
}

fn refusal(disk: &Arc<SimDisk>) -> StoreError {
    Store::open(disk.clone(), options()).err().expect("open is refused")
}

#[test]
fn a_flipped_bit_in_any_acknowledged_batch_is_corruption() {
    let disk = with_entries(12, true);
    for index in 0..12 {
        for (byte, bit) in [(5, 0), (30, 1), (70, 7), (90, 3), (2000, 4)] {
            let damaged = copy(&disk);
            damaged.flip_bit(batch_of(&disk, index) + byte, bit);
            let error = refusal(&damaged);
            assert!(
                matches!(&error, StoreError::Corrupt { what } if what.contains("batch")),
                "{error}"
            );
        }
    }
}

#[test]
fn a_large_damaged_stretch_is_corruption_too() {
    let disk = with_entries(40, true);
    let damaged = copy(&disk);
    for index in 10..35 {
        damaged.flip_bit(batch_of(&disk, index) + 8, 0);
    }
    assert!(matches!(refusal(&damaged), StoreError::Corrupt { .. }));
}

#[test]
fn a_damaged_last_batch_that_no_mark_covers_is_cut() {
    let disk = with_entries(12, false);
    let damaged = copy(&disk);
    damaged.flip_bit(batch_of(&disk, 11) + 2000, 0);
    let (store, found) = open(&damaged);
    assert_eq!(found[0].log_state.last.map(|p| p.index), Some(10));
    // What was cut never comes back, even when the same space is written again.
    durable(|done| found[0].group.append(vec![entry(2, 11, 10)], done)).expect("append");
    drop((found, store));
    let (_store, found) = open(&damaged);
    let entries = found[0].group.entries(11..99, 9999).expect("read");
    assert_eq!(entries, [entry(2, 11, 10)]);
}

#[test]
fn a_damaged_entry_is_reported_when_it_is_read_back() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = common::open_with(&disk, StoreOptions { log_cache_bytes_max: 0, ..options() });
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    durable(|done| group.append(vec![entry(1, 0, 3000)], done)).expect("append");
    durable(|done| group.append(vec![entry(1, 1, 3000)], done)).expect("append");
    disk.flip_bit(batch_of(&disk, 0) + 1500, 2);
    assert!(matches!(group.entries(0..1, 9999), Err(StoreError::Corrupt { .. })));
    assert_eq!(group.entries(1..2, 9999).expect("read").len(), 1);
}

#[test]
fn damaged_roots_and_checkpoints_are_refused_by_name() {
    let disk = with_entries(3, true);
    let (store, found) = open(&disk);
    let volume = VolumeId::random();
    found[0]
        .group
        .begin_apply(1)
        .expect("apply")
        .write(chunk(volume, 0), 0, Bytes::from(vec![1; 40_960]))
        .expect("write");
    common::checkpoint(&store).expect("checkpoint");
    // A batch that proves the newest root.
    durable(|done| found[0].group.append(vec![entry(1, 3, 10)], done)).expect("append");
    let newest = 2 * 4096 + store.usage().roots_written % 2 * 4096;
    drop((found, store));

    let damaged = copy(&disk);
    damaged.flip_bit(newest + 40, 3);
    assert!(matches!(refusal(&damaged), StoreError::Corrupt { what } if what.contains("root")));
    let damaged = copy(&disk);
    damaged.flip_bit(2 * 4096 + 40, 3);
    damaged.flip_bit(3 * 4096 + 40, 3);
    assert!(
        matches!(refusal(&damaged), StoreError::Corrupt { what } if what.contains("both roots"))
    );
    for byte in [3, 29, 100, 200] {
        // Layout keeps the planned place of the checkpoints: after an 8 MiB WAL.
        let slot = |n: u64| WAL_AT + (8 << 20) + n * slot_len(&disk);
        let damaged = copy(&disk);
        damaged.flip_bit(slot(0) + byte, 0);
        damaged.flip_bit(slot(1) + byte, 0);
        let error = refusal(&damaged);
        assert!(
            matches!(&error, StoreError::Corrupt { what } if what.contains("checkpoint")),
            "{error}"
        );
    }
}

/// As the superblock's byte table says.
fn slot_len(disk: &SimDisk) -> u64 {
    u64::from_le_bytes(disk.peek(80, 8).try_into().expect("eight bytes"))
}

#[test]
fn a_damaged_block_is_reported_and_leaves_the_rest_alone() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let key = chunk(VolumeId::random(), 0);
    group
        .begin_apply(1)
        .expect("apply")
        .write(key, 0, Bytes::from(vec![0xab; 40_960]))
        .expect("write");
    common::checkpoint(&store).expect("checkpoint");
    let data_at = u64::from_le_bytes(disk.peek(88, 8).try_into().expect("eight bytes"));
    disk.flip_bit(data_at + 3 * 4096 + 17, 5);
    assert!(matches!(group.read(key, 0, 40_960), Err(StoreError::BadBlock { block: 3, .. })));
    assert_eq!(group.read(key, 4 * 4096, 4096).expect("read")[0], 0xab);
    assert!(store.failure().is_none());
}

#[test]
fn after_an_io_error_every_call_is_refused_and_sync_is_never_retried() {
    for ahead in 0..2 {
        let disk = sim(SIZE, 1 << 20);
        let (store, _) = open(&disk);
        let group = durable(|done| store.create_group(GROUP, done)).expect("create");
        std::thread::sleep(Duration::from_millis(30));
        let (told, failure) = mpsc::channel();
        store.on_failure(Box::new(move |error| told.send(error).expect("test waits")));
        disk.fail_at(disk.operations() + ahead);
        let error = durable(|done| group.append(vec![entry(1, 0, 100)], done)).expect_err("EIO");
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        let told = failure.recv_timeout(Duration::from_secs(5)).expect("the callback comes");
        assert!(matches!(told, StoreError::Io { .. }));
        let operations = disk.operations();
        refused_everything(&store, &group);
        assert_eq!(disk.operations(), operations, "a failed disk is left alone");
    }
}

fn refused_everything(store: &Store, group: &Group) {
    let failed = |error: StoreError| matches!(error, StoreError::Failed { .. });
    assert!(failed(group.append(vec![entry(1, 1, 1)], Box::new(|_| ())).expect_err("append")));
    assert!(failed(
        durable(|done| {
            group.save_vote(Default::default(), done);
            Ok(())
        })
        .expect_err("vote")
    ));
    assert!(failed(group.begin_apply(1).err().expect("apply")));
    assert!(failed(group.read(chunk(VolumeId::random(), 0), 0, 1).expect_err("read")));
    assert!(failed(group.view().err().expect("view")));
    assert!(failed(common::checkpoint(store).expect_err("checkpoint")));
    assert!(failed(store.create_group(CopysetId(9), Box::new(|_| ())).expect_err("create")));
}

#[test]
fn an_unreadable_data_block_fails_the_store() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let key = chunk(VolumeId::random(), 0);
    group.begin_apply(1).expect("apply").write(key, 0, Bytes::from(vec![1; 4096])).expect("write");
    common::checkpoint(&store).expect("checkpoint");
    disk.fail_reads_of(u64::from_le_bytes(disk.peek(88, 8).try_into().expect("eight bytes")));
    assert!(matches!(group.read(key, 0, 4096), Err(StoreError::Io { .. })));
    assert!(store.failure().is_some());
}

#[test]
fn a_log_that_is_cut_before_damage_owes_what_it_lost() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let placed = |term, index: u64| common::entry_of(term, index, &[index as u8 + 1; 4096]);
    let append = |group: &Group, entry: LogEntry| {
        durable(|done| group.append(vec![entry], done)).expect("append");
    };
    (0..10).for_each(|index| append(&group, placed(1, index)));
    assert_eq!(group.find_damage().expect("read"), None);
    // Until the idle log is marked.
    std::thread::sleep(Duration::from_millis(50));
    drop((group, store));
    for index in [6, 8] {
        let [at] = disk.find(&placed(1, index).payload)[..] else { panic!("one copy") };
        disk.flip_bit(at + 77, 3);
    }

    let (store, found) = open(&disk);
    let group = found[0].group.clone();
    let damaged = placed(1, 6).position;
    assert_eq!((group.find_damage().expect("read"), group.owes()), (Some(damaged), None));
    durable(|done| group.cut_damage(damaged, done)).expect("cut");
    assert_eq!(group.find_damage().expect("read"), None);
    let again = group.cut_damage(damaged, Box::new(|_| ()));
    assert!(matches!(again, Err(StoreError::Invalid { .. })), "{again:?}");
    drop((found, group, store));

    let last = placed(1, 9).position;
    let owes = |disk: &Arc<SimDisk>| {
        let (store, mut found) = open(disk);
        let group = found.remove(0).group;
        assert_eq!(group.log_state().last, Some(placed(1, 5).position));
        assert_eq!(group.owes(), Some(last));
        (store, group)
    };
    let (store, group) = owes(&disk);
    // The record leaves the WAL; then the checkpoint says so.
    for _ in 0..40 {
        durable(|done| {
            group.save_vote(Vote::default(), done);
            Ok(())
        })
        .expect("vote");
        common::checkpoint(&store).expect("checkpoint");
    }
    drop((group, store));
    let later = copy(&disk);
    let (store, group) = owes(&disk);
    (6..9).for_each(|index| append(&group, placed(1, index)));
    assert_eq!(group.owes(), Some(last));
    append(&group, placed(1, 9));
    assert_eq!(group.owes(), None);
    drop((group, store));
    let (_store, found) = open(&disk);
    assert_eq!(found[0].group.owes(), None);

    // A leader of a later term was elected without this replica's vote: nothing else can follow.
    let (_store, group) = owes(&later);
    append(&group, placed(2, 6));
    assert_eq!(group.owes(), None);
}

#[test]
fn a_purge_that_no_checkpoint_contains_does_not_outlive_a_cut() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let placed = |index: u64| common::entry_of(1, index, &[index as u8 + 1; 4096]);
    for index in 0..10 {
        durable(|done| group.append(vec![placed(index)], done)).expect("append");
    }
    let applied: Arc<dyn StateProvider> = Arc::new(Blob(Some(placed(4).position), Bytes::new()));
    group.set_state_provider(&applied);
    common::checkpoint(&store).expect("checkpoint");
    durable(|done| group.purge(placed(9).position, done)).expect("purge");
    std::thread::sleep(Duration::from_millis(50));
    // As if all were applied by then, and the process died before a checkpoint said so.
    let disk = Arc::new(disk.after_crash(|| false));
    let [at] = disk.find(&placed(5).payload)[..] else { panic!("one copy") };
    disk.flip_bit(at + 77, 3);

    let (store, found) = open(&disk);
    assert_eq!(found[0].group.log_state().last, Some(placed(9).position));
    durable(|done| found[0].group.cut_damage(placed(5).position, done)).expect("cut");
    drop((found, store));
    // With the record in the WAL, and in the checkpoint only.
    for _ in 0..2 {
        let (store, found) = open(&disk);
        let group = &found[0].group;
        assert_eq!(group.log_state().last, Some(placed(4).position));
        assert_eq!(group.owes(), Some(placed(9).position));
        common::checkpoint(&store).expect("checkpoint");
    }
    let (store, found) = open(&disk);
    durable(|done| found[0].group.append((5..10).map(placed).collect(), done)).expect("append");
    drop((found, store));
    let (_store, found) = open(&disk);
    let log = found[0].group.log_state();
    assert_eq!((log.last_purged, log.last), (Some(placed(4).position), Some(placed(9).position)));
    assert_eq!(found[0].group.entries(5..10, 1 << 20).expect("read").len(), 5);
}
