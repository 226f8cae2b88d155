//! Blocks are written ahead of time where a file system wants that, and nothing else changes.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{chunk, durable, entry, open, sim_small};
use curve_store::{Disk, FileDisk, FormatOptions, Store, format};
use curve_types::{ClusterId, CopysetId, DeviceId, VolumeId};

/// Waits until no block from `from` to `to` is unwritten any more.
fn wait_until_written(disk: &dyn Disk, from: u64, to: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let left = || disk.next_unwritten(from).expect("answers").filter(|range| range.start < to);
    while let Some(range) = left() {
        assert!(Instant::now() < deadline, "bytes {range:?} are still unwritten");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// First byte of the data area, as the superblock's byte table says.
fn data_offset(superblock: &[u8]) -> u64 {
    u64::from_le_bytes(superblock[88..96].try_into().expect("eight bytes"))
}

#[test]
fn every_block_is_written_once_and_data_stays_what_it_is() {
    const BLOCKS: u64 = 4_000;
    let disk = sim_small(64 << 20, 1 << 20, BLOCKS);
    disk.make_sparse();
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
    let key = chunk(VolumeId::random(), 0);
    for index in 0..50u32 {
        let entry = entry(1, index.into(), 8192);
        durable(|done| group.append(vec![entry.clone()], done)).expect("append");
        let apply = group.begin_apply(1).expect("apply");
        let offset = index % 40 * 8192;
        apply.write_payload(entry.position, key, offset, entry.payload).expect("write");
    }
    let at = data_offset(&disk.peek(0, 4096));
    wait_until_written(&*disk, at, at + BLOCKS * 4096);
    // The last of them are given back only after they were written.
    std::thread::sleep(Duration::from_millis(50));
    let usage = store.usage();
    assert_eq!(usage.data_blocks_free + 100, usage.data_blocks_total, "{usage:?}");
    for index in 0..40u32 {
        let newest = if index < 10 { index + 40 } else { index };
        let want = entry(1, newest.into(), 8192).payload;
        assert_eq!(group.read(key, index * 8192, 8192).expect("read"), want);
    }
    let operations = disk.operations();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(disk.operations(), operations, "a device that was written is left alone");
}

#[test]
fn a_preallocated_file_is_written_ahead_of_time() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let size = 64 << 20;
    let disk = Arc::new(create(&dir.path().join("device"), size));
    let mut superblock = Bytes::from(std::fs::read(dir.path().join("device")).expect("read"));
    superblock.truncate(4096);
    let at = data_offset(&superblock);
    match disk.next_unwritten(at) {
        Ok(Some(range)) => assert_eq!(range.start, at),
        other => return eprintln!("no unwritten extents on this file system: {other:?}"),
    }
    let (store, _) = Store::open(disk.clone(), common::options()).expect("open");
    wait_until_written(&*disk, at, size);
    assert!(store.failure().is_none());
}

fn create(path: &Path, size: u64) -> FileDisk {
    let disk = FileDisk::open_or_create(path, size).expect("create");
    let options = FormatOptions {
        cluster: ClusterId::random(),
        device: DeviceId::random(),
        name: "test".into(),
        size,
    };
    format(&disk, &options).expect("format");
    disk
}
