//! Reads without a thread answer what reads with one do. Where io_uring is refused, all decline.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{checkpoint, chunk, durable};
use curve_store::{BegunRead, Fetched, FileDisk, FormatOptions, Group, Store, StoreError, format};
use curve_types::{ChunkKey, ClusterId, CopysetId, DeviceId, VolumeId};

const SIZE: u64 = 64 << 20;
const FILLED: u32 = 256 << 10;

/// A store on a real file, with one chunk whose first blocks hold data. The file is written
/// throughout, so that nothing writes it ahead of time while a test cuts it.
fn filled(path: &Path) -> (Store, Group, ChunkKey) {
    std::fs::write(path, vec![0; SIZE as usize]).expect("write");
    std::fs::File::open(path).and_then(|file| file.sync_all()).expect("sync");
    let disk = Arc::new(FileDisk::open_or_create(path, SIZE).expect("open"));
    let options = FormatOptions {
        cluster: ClusterId::random(),
        device: DeviceId::random(),
        name: "test".into(),
        size: SIZE,
    };
    format(&*disk, &options).expect("format");
    let (store, _) = Store::open(disk, common::options()).expect("open");
    let group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
    let key = chunk(VolumeId::random(), 3);
    let data: Vec<u8> = (0..FILLED).map(|i| (i / 4096 * 31 + i) as u8).collect();
    group.begin_apply(1).expect("apply").write(key, 0, data.into()).expect("write");
    checkpoint(&store).expect("checkpoint");
    (store, group, key)
}

type Answers = mpsc::Receiver<Fetched>;

fn begin(group: &Group, key: ChunkKey, offset: u32, len: u32) -> (BegunRead, Answers) {
    let (answer, answers) = mpsc::channel();
    let fetched = Box::new(move |fetched| drop(answer.send(fetched)));
    (group.begin_read(key, offset, len, fetched).expect("begin"), answers)
}

/// The answer to a read that needs the disk.
fn fetch(
    store: &Store,
    group: &Group,
    key: ChunkKey,
    offset: u32,
    len: u32,
) -> Result<Bytes, StoreError> {
    let Some(reads) = store.async_reads() else {
        assert!(matches!(begin(group, key, offset, len).0, BegunRead::Declined));
        return group.read(key, offset, len);
    };
    let (begun, answers) = begin(group, key, offset, len);
    assert!(matches!(begun, BegunRead::Pending));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        reads.reap();
        match answers.try_recv() {
            Ok(fetched) => return fetched.into_bytes(),
            Err(_) => assert!(Instant::now() < deadline, "no answer to {offset}+{len}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn reads_without_a_thread_answer_as_others_do() {
    let dir = tempfile::tempdir().expect("directory");
    let (store, group, key) = filled(&dir.path().join("device"));
    for (offset, len) in [(0, 4096), (0, FILLED), (8192, 65536), (100, 10), (4000, 8192), (1, 1)] {
        let fetched = fetch(&store, &group, key, offset, len).expect("fetch");
        assert_eq!(fetched, group.read(key, offset, len).expect("read"), "{offset}+{len}");
    }
    let Some(reads) = store.async_reads() else { return };

    // Holes and bytes in memory need no disk; what lies in several pieces needs a thread.
    group.begin_apply(1).expect("apply").write(key, 4096, vec![1; 4096].into()).expect("write");
    for (key, offset, len) in [(key, FILLED, 4096), (key, 4096, 100), (chunk(key.volume, 9), 0, 5)]
    {
        let BegunRead::Ready(bytes) = begin(&group, key, offset, len).0 else {
            panic!("{offset}+{len} of {key} was not answered at once")
        };
        assert_eq!(bytes, group.read(key, offset, len).expect("read"));
    }
    assert!(matches!(begin(&group, key, 0, 3 * 4096).0, BegunRead::Declined));

    // Closing answers what is under way, and declines the rest.
    let begun: Vec<Answers> = (2..60)
        .map(|block| begin(&group, key, block * 4096, 4096))
        .map(|(begun, answers)| {
            assert!(matches!(begun, BegunRead::Pending));
            answers
        })
        .collect();
    reads.close();
    for (answers, block) in begun.into_iter().zip(2..) {
        let bytes = answers.try_recv().expect("closing waits").into_bytes().expect("read");
        assert_eq!(bytes, group.read(key, block * 4096, 4096).expect("read"));
    }
    assert!(matches!(begin(&group, key, 0, 4096).0, BegunRead::Declined));
}

#[test]
fn a_damaged_block_is_named_and_a_device_that_ends_early_fails_the_store() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("device");
    let (store, group, key) = filled(&path);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
    // A fresh device's first blocks are the first of its data area.
    let mut superblock = [0; 4096];
    std::fs::File::open(&path).expect("open").read_exact_at(&mut superblock, 0).expect("read");
    let data = u64::from_le_bytes(superblock[88..96].try_into().expect("eight bytes"));
    file.write_all_at(&[0xff; 4096], data + 5 * 4096).expect("damage");
    file.sync_all().expect("sync");
    let error = fetch(&store, &group, key, 0, FILLED).expect_err("damaged");
    assert!(matches!(error, StoreError::BadBlock { block: 5, .. }), "{error}");
    assert!(fetch(&store, &group, key, 0, 4096).is_ok());

    file.set_len(data + 8192).expect("cut");
    let error = fetch(&store, &group, key, 4 * 4096, 4096).expect_err("nothing is there");
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(store.failure().is_some());
}
