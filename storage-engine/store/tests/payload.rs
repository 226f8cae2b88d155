//! Payloads that are written once: where they are, when their blocks are free, and what a crash
//! or damage makes of them.

mod common;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::{Blob, chunk, durable, entry, entry_of, node, open, open_with, options, sim};
use curve_store::{Group, LogEntry, LogPosition, SimDisk, StateProvider, Store, StoreError};
use curve_store::{StoreOptions, Vote};
use curve_types::{ChunkKey, CopysetId, VolumeId};

const GROUP: CopysetId = CopysetId(1);
const SIZE: u64 = 64 << 20;
const BLOCK: usize = 4096;

/// A log that never goes idle and keeps nothing in memory.
fn strict() -> StoreOptions {
    StoreOptions { idle_mark_after: Duration::from_secs(600), log_cache_bytes_max: 0, ..options() }
}

fn start(disk: &Arc<SimDisk>) -> (Store, Group) {
    let (store, _) = open_with(disk, strict());
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    (store, group)
}

/// An entry of whole blocks, each like no other.
fn blocks_entry(index: u64, blocks: usize) -> LogEntry {
    let block = |b: usize| [(index * 512 + b as u64 + 1).to_le_bytes(); BLOCK / 8].concat();
    entry_of(1, index, &(0..blocks).flat_map(block).collect::<Vec<u8>>())
}

fn key() -> ChunkKey {
    chunk(VolumeId::from_bytes([5; 16]), 0)
}

fn append(group: &Group, entry: &LogEntry) {
    durable(|done| group.append(vec![entry.clone()], done)).expect("append");
}

fn apply(group: &Group, entry: &LogEntry, offset: u32) {
    let apply = group.begin_apply(1).expect("apply");
    apply.write_payload(entry.position, key(), offset, entry.payload.clone()).expect("write");
}

/// Makes the last checkpoint contain everything up to `position`, and drops it from the log.
fn purge(store: &Store, group: &Group, position: LogPosition) {
    let provider: Arc<dyn StateProvider> = Arc::new(Blob(Some(position), Bytes::new()));
    group.set_state_provider(&provider);
    durable(|done| group.purge(position, done)).expect("purge");
    common::checkpoint(store).expect("checkpoint");
}

/// A batch of its own, which covers those before it by a mark.
fn next_batch(group: &Group) {
    durable(|done| {
        group.save_vote(Vote::default(), done);
        Ok(())
    })
    .expect("vote");
}

/// Offsets of the blocks on the device that hold exactly these bytes.
fn places(disk: &SimDisk, bytes: &[u8]) -> Vec<u64> {
    let all = (0..SIZE).step_by(BLOCK);
    all.filter(|at| disk.peek(*at, 8) == bytes[..8] && disk.peek(*at, BLOCK) == bytes).collect()
}

#[test]
fn a_payload_is_written_once() {
    let disk = sim(SIZE, 1 << 20);
    let (store, group) = start(&disk);
    let entry = blocks_entry(0, 3);
    append(&group, &entry);
    assert_eq!(group.entries(0..1, 9999).expect("read back"), std::slice::from_ref(&entry));
    apply(&group, &entry, 8192);
    assert_eq!(store.usage().overlay_bytes, 0);
    purge(&store, &group, entry.position);
    next_batch(&group);
    let usage = store.usage();
    assert_eq!((usage.data_blocks_logged, usage.data_blocks_used), (0, 3), "{usage:?}");
    drop((group, store));
    let (_store, found) = open(&disk);
    assert_eq!(found[0].group.read(key(), 8192, 3 * BLOCK as u32).expect("read"), entry.payload);
    for block in entry.payload.chunks(BLOCK) {
        assert_eq!(places(&disk, block).len(), 1);
    }
}

#[test]
fn an_entry_that_is_applied_twice_ends_in_the_same_bytes() {
    let disk = sim(SIZE, 1 << 20);
    let (store, group) = start(&disk);
    let [first, second] = [blocks_entry(0, 2), blocks_entry(1, 2)];
    durable(|done| group.append(vec![first.clone(), second.clone()], done)).expect("append");
    for _ in 0..3 {
        apply(&group, &first, 0);
        apply(&group, &second, BLOCK as u32);
        common::checkpoint(&store).expect("checkpoint");
    }
    let want = [&first.payload[..BLOCK], &second.payload].concat();
    assert_eq!(group.read(key(), 0, 3 * BLOCK as u32).expect("read"), want);
    assert_eq!(store.usage().data_blocks_used, 3);
}

#[test]
fn a_payload_in_a_place_of_another_shape_is_written_there() {
    let disk = sim(SIZE, 1 << 20);
    let (store, group) = start(&disk);
    let entry = blocks_entry(0, 2);
    append(&group, &entry);
    apply(&group, &entry, 100);
    purge(&store, &group, entry.position);
    next_batch(&group);
    assert_eq!(group.read(key(), 100, 2 * BLOCK as u32).expect("read"), entry.payload);
    let usage = store.usage();
    assert_eq!((usage.data_blocks_logged, usage.data_blocks_used), (0, 3), "{usage:?}");
}

#[test]
fn payloads_past_the_logs_share_go_into_its_records() {
    let disk = sim(SIZE, 8 << 20);
    let (store, group) = start(&disk);
    let most = store.usage().data_blocks_logged_max;
    let entries: Vec<LogEntry> = (0..most / 256 + 2).map(|i| blocks_entry(i, 256)).collect();
    for entry in &entries {
        append(&group, entry);
        apply(&group, entry, (entry.position.index as u32 % 4) << 20);
    }
    let usage = store.usage();
    assert!(usage.data_blocks_logged <= most && usage.log_sixteenths() >= 8, "{usage:?}");
    assert!(usage.wal_bytes_used > 1 << 20, "{usage:?}");
    assert_eq!(group.entries(0..99, usize::MAX).expect("read back"), entries);
    let last = entries.last().expect("some");
    let at = (last.position.index as u32 % 4) << 20;
    assert_eq!(group.read(key(), at, 1 << 20).expect("read"), last.payload);
}

#[test]
fn a_torn_payload_of_the_last_batch_is_cut() {
    let disk = sim(SIZE, 1 << 20);
    let (store, group) = start(&disk);
    let entries = [blocks_entry(0, 2), blocks_entry(1, 2)];
    for entry in &entries {
        append(&group, entry);
    }
    drop((group, store));
    let [at] = places(&disk, &entries[1].payload[BLOCK..])[..] else { panic!("one place") };
    disk.flip_bit(at + 77, 3);
    let (store, found) = open(&disk);
    assert_eq!(found[0].log_state.last, Some(entries[0].position));
    let group = &found[0].group;
    assert_eq!(group.entries(0..9, usize::MAX).expect("read back"), entries[..1]);
    assert_eq!(store.usage().data_blocks_logged, 2);
    append(group, &entries[1]);
}

#[test]
fn a_damaged_payload_that_was_acknowledged_is_reported() {
    let disk = sim(SIZE, 1 << 20);
    let (store, group) = start(&disk);
    let entry = blocks_entry(0, 2);
    append(&group, &entry);
    next_batch(&group);
    drop((group, store));
    let [at] = places(&disk, &entry.payload[..BLOCK])[..] else { panic!("one place") };
    disk.flip_bit(at, 0);
    let (store, found) = open(&disk);
    assert_eq!(found[0].log_state.last, Some(entry.position));
    let read = found[0].group.entries(0..9, usize::MAX);
    assert!(matches!(&read, Err(StoreError::Corrupt { what }) if what.contains("payload")));
    assert!(store.failure().is_none());
}

/// The batch is the last one of the log until another follows, and whether its payloads are whole
/// decides whether it counts: they must not be overwritten before.
#[test]
fn a_payload_dropped_by_its_own_batch_is_free_only_after_the_next_one() {
    let disk = sim(SIZE, 1 << 20);
    let (store, group) = start(&disk);
    let (told, ended) = mpsc::channel();
    let inner = group.clone();
    // What a callback queues is taken into one batch.
    let both = move |result: Result<(), StoreError>| {
        result.expect("durable");
        inner.append(vec![blocks_entry(1, 2)], Box::new(|_| ())).expect("append");
        let done = Box::new(move |result| told.send(result).expect("the test waits"));
        inner.truncate_after(Some(0), done).expect("truncate");
    };
    group.append(vec![entry(1, 0, 10)], Box::new(both)).expect("append");
    ended.recv_timeout(Duration::from_secs(10)).expect("comes").expect("durable");
    assert_eq!(store.usage().data_blocks_logged, 2);
    next_batch(&group);
    assert_eq!(store.usage().data_blocks_logged, 0);
}

#[test]
fn a_purge_past_the_logs_end_frees_its_payloads() {
    let disk = sim(SIZE, 1 << 20);
    let (store, group) = start(&disk);
    append(&group, &blocks_entry(0, 2));
    let upto = LogPosition { term: 2, node: node(), index: 9 };
    durable(|done| group.purge(upto, done)).expect("purge");
    next_batch(&group);
    assert_eq!(store.usage().data_blocks_logged, 0);
    assert_eq!(store.usage().data_blocks_free, store.usage().data_blocks_total);
}

/// A mark that finds no room is still owed: until there is one, a recovery reads what the last
/// batch dropped.
#[test]
fn a_full_log_keeps_what_its_last_batch_dropped() {
    let disk = sim(SIZE, 1 << 20);
    let idle_mark_after = Duration::from_millis(1);
    let (store, _) = open_with(&disk, StoreOptions { idle_mark_after, ..strict() });
    let [group, dropped] = [GROUP, CopysetId(2)]
        .map(|id| durable(|done| store.create_group(id, done)).expect("create"));
    append(&dropped, &blocks_entry(0, 2));
    let mut votes = (0u64..).map(|term| {
        durable(|done| {
            group.save_vote(Vote { term, ..Vote::default() }, done);
            Ok(())
        })
    });
    let full = votes.find_map(Result::err);
    assert!(matches!(full, Some(StoreError::WalFull { .. })), "{full:?}");
    durable(|done| store.remove_group(CopysetId(2), done)).expect("there is room for that");
    // The mark is tried meanwhile.
    std::thread::sleep(Duration::from_millis(50));
    durable(|done| group.append(Vec::new(), done)).expect("nothing");
    assert_eq!(store.usage().data_blocks_logged, 2);
}
