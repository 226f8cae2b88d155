//! A log on a device of its own: what is where, what a loss of power leaves, and what is refused.

mod common;

use std::sync::Arc;

use common::{chunk, durable, entry_of, format_options, options};
use curve_store::{Disk, LogEntry, SimDisk, Store, StoreError, format, format_with_log, with_log};
use curve_types::{CopysetId, VolumeId};

const GROUP: CopysetId = CopysetId(1);
const BLOCK: usize = 4096;
const LOG: u64 = 16 << 20;

fn disk(len: u64) -> Arc<SimDisk> {
    Arc::new(SimDisk::new(len))
}

const SIZE: u64 = 64 << 20;

/// A device and its log, formatted.
fn pair() -> (Arc<SimDisk>, Arc<SimDisk>) {
    let (data, log) = (disk(64 << 20), disk(LOG));
    format_with_log(data.clone(), log.clone(), &format_options(SIZE)).expect("format");
    (data, log)
}

fn open(data: &Arc<SimDisk>, log: &Arc<SimDisk>) -> (Store, Vec<curve_store::RecoveredGroup>) {
    let disk = with_log(data.clone(), log.clone()).expect("they belong together");
    Store::open(disk, options()).expect("open")
}

/// An entry of whole blocks, each like no other.
fn blocks_entry(index: u64, blocks: usize) -> LogEntry {
    let block = |b: usize| [(index * 512 + b as u64 + 1).to_le_bytes(); BLOCK / 8].concat();
    entry_of(1, index, &(0..blocks).flat_map(block).collect::<Vec<u8>>())
}

fn refusal<T>(result: Result<T, StoreError>) -> String {
    result.err().expect("refused").to_string()
}

#[test]
fn short_payloads_go_to_the_log_alone_and_reach_the_data_later() {
    let (data, log) = pair();
    let (store, _) = open(&data, &log);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let (short, long) = (blocks_entry(0, 2), blocks_entry(1, 16));
    let synced = data.operations();
    durable(|done| group.append(vec![short.clone()], done)).expect("append");
    assert_eq!(data.operations(), synced, "only the log is waited for");
    durable(|done| group.append(vec![long.clone()], done)).expect("append");
    assert!(data.operations() > synced);
    let first = |entry: &LogEntry| entry.payload[..BLOCK].to_vec();
    assert!(data.find(&first(&short)).is_empty());
    assert_eq!(data.find(&first(&long)).len(), 1);
    assert!(log.find(&first(&long)).is_empty());

    let key = chunk(VolumeId::from_bytes([5; 16]), 0);
    for (entry, offset) in [(&short, 0), (&long, 1 << 20)] {
        let apply = group.begin_apply(1).expect("apply");
        let payload = entry.payload.clone();
        apply.write_payload(entry.position, key, offset, payload).expect("write");
    }
    common::checkpoint(&store).expect("checkpoint");
    assert_eq!(data.find(&first(&short)).len(), 1);
    drop((group, store));
    let (_store, found) = open(&data, &log);
    for (entry, offset) in [(short, 0), (long, 1 << 20)] {
        let len = entry.payload.len() as u32;
        assert_eq!(found[0].group.read(key, offset, len).expect("read"), entry.payload);
    }
}

#[test]
fn what_was_acknowledged_survives_a_loss_of_power_on_both() {
    let (mut data, mut log) = pair();
    let mut entries = Vec::new();
    for round in 0..40u64 {
        let (store, mut found) = open(&data, &log);
        let group = match found.pop() {
            Some(found) => found.group,
            None => durable(|done| store.create_group(GROUP, done)).expect("create"),
        };
        assert_eq!(group.entries(0..round, usize::MAX).expect("all of them"), entries);
        let entry = blocks_entry(round, [1, 16, 3, 64][round as usize % 4]);
        durable(|done| group.append(vec![entry.clone()], done)).expect("append");
        entries.push(entry);
        // Nothing of what was not synced is there afterwards.
        let left = [&data, &log].map(|disk| Arc::new(disk.after_crash(|| false)));
        drop((group, store));
        [data, log] = left;
    }
}

#[test]
fn only_the_log_that_belongs_to_the_device_is_taken() {
    let ((data, log), (_, other)) = (pair(), pair());
    let message = refusal(with_log(data.clone(), other));
    assert!(message.contains("it is the log of device"), "{message}");
    let message = refusal(with_log(data.clone(), disk(LOG)));
    assert!(message.contains("it is blank"), "{message}");
    let message = refusal(with_log(data.clone(), Arc::new(log.with_len(LOG / 2))));
    assert!(message.contains("cut short to 8 MiB"), "{message}");
    for len in [64 << 20, 128 << 20] {
        let message = refusal(Store::open(Arc::new(data.with_len(len)), options()));
        assert!(message.contains("its log lies on another device"), "{message}");
    }
    let message = refusal(Store::open(log.clone(), options()));
    assert!(message.contains("the log of a Curve device"), "{message}");
    let whole = disk(64 << 20);
    format(&*whole, &format_options(SIZE)).expect("format");
    let message = refusal(with_log(whole.clone(), log.clone()));
    assert!(message.contains("the device has its log on itself"), "{message}");
    // One damaged copy of its name is no loss, and is mended.
    for offset in [100, 4096 + 20] {
        log.flip_bit(offset, 3);
        with_log(data.clone(), log.clone()).expect("the other copy");
    }
    log.flip_bit(100, 3);
    log.flip_bit(4096 + 20, 3);
    let message = refusal(with_log(data, log));
    assert!(message.contains("its owner is unreadable: checksum"), "{message}");
}

#[test]
fn an_older_copy_of_the_log_is_refused() {
    let (data, log) = pair();
    let (store, _) = open(&data, &log);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    drop((group, store));
    let copy = Arc::new(log.after_kill());
    let (store, found) = open(&data, &log);
    durable(|done| found[0].group.append(vec![blocks_entry(0, 1)], done)).expect("append");
    drop((found, store));
    let disk = with_log(data.clone(), copy).expect("it is its log");
    let message = refusal(Store::open(disk, options()));
    assert!(message.contains("was durable"), "{message}");
    open(&data, &log);
}

#[test]
fn nothing_but_blank_devices_becomes_a_log() {
    let blank = || disk(64 << 20);
    let formatted = |log: Arc<SimDisk>| format_with_log(blank(), log, &format_options(SIZE));
    let message = refusal(formatted(pair().1));
    assert!(message.contains("it holds the log of device"), "{message}");
    let message = refusal(formatted(pair().0));
    assert!(message.contains("it is device"), "{message}");
    let message = refusal(formatted(disk(8 << 20)));
    assert!(message.contains("at least 8.1 MiB are needed"), "{message}");
    let foreign = disk(LOG);
    let mut block = Box::new(Block([0; BLOCK]));
    block.0[..4].copy_from_slice(b"XFSB");
    foreign.write_at(&block.0, 0).expect("write");
    let message = refusal(formatted(foreign));
    assert!(message.contains("an xfs file system"), "{message}");
    let message = refusal(format_with_log(pair().0, disk(LOG), &format_options(SIZE)));
    assert!(message.contains("it is already device"), "{message}");
}

/// Where a disk takes it from.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

#[test]
fn a_format_that_is_cut_short_is_done_again_or_is_whole() {
    let operations = {
        let (data, log) = pair();
        [data.operations(), log.operations()]
    };
    for side in [0, 1] {
        for at in 0..operations[side] {
            for survives in [false, true] {
                let disks = [disk(64 << 20), disk(LOG)];
                disks[side].crash_at(at);
                let [data, log] = &disks;
                let options = format_options(SIZE);
                assert!(format_with_log(data.clone(), log.clone(), &options).is_err());
                let left = disks.map(|disk| Arc::new(disk.after_crash(|| survives)));
                let [data, log] = left;
                let joined = match with_log(data.clone(), log.clone()) {
                    Ok(joined) => joined,
                    Err(_) => format_with_log(data, log, &options).expect("as good as blank"),
                };
                Store::open(joined, common::options()).expect("whole");
            }
        }
    }
}

#[test]
fn short_writes_do_not_wait_for_the_data_even_while_that_is_busy() {
    let (data, log) = pair();
    data.make_sparse();
    let (store, _) = open(&data, &log);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    data.set_sync_time(std::time::Duration::from_millis(500));
    common::checkpoint(&store).err();
    let began = std::time::Instant::now();
    for index in 0..20 {
        durable(|done| group.append(vec![blocks_entry(index, 1)], done)).expect("append");
    }
    assert!(began.elapsed() < std::time::Duration::from_millis(500), "{:?}", began.elapsed());
}

#[test]
fn a_sync_that_failed_is_not_made_up_for_by_the_next() {
    for side in [0, 1] {
        let (data, log) = pair();
        let (store, _) = open(&data, &log);
        let group = durable(|done| store.create_group(GROUP, done)).expect("create");
        let disks = [&data, &log];
        // The write goes well, the sync after it does not.
        disks[side].fail_at(disks[side].operations() + 1);
        let entry = blocks_entry(0, 16);
        durable(|done| group.append(vec![entry.clone()], done)).expect_err("not durable");
        durable(|done| group.append(vec![blocks_entry(1, 1)], done)).expect_err("failed for good");
    }
}
