//! How long a device with many tables takes to open.

use std::fs::File;
use std::time::{Duration, Instant};

use curve_types::{
    BLOCKS_PER_CHUNK, ChunkIndex, ChunkKey, ClusterId, CopysetId, DeviceId, VolumeId,
};

use crate::checkpoint::{GroupMeta, Writer};
use crate::chunk::{BlockAddr, Chunk, TableBlock, Written};
use crate::disk::FileDisk;
use crate::root::{self, Root};
use crate::{FormatOptions, Store, StoreOptions, format_small};

const GROUPS: u32 = 8;
const CHUNKS_PER_GROUP: u32 = 3200;
/// Coprime to the number of blocks: so that its multiples meet each block, none next to the last.
const STRIDE: u64 = 15_485_863;

/// A sparse file whose checkpoint has the tables of 100 GiB, every block somewhere else than the
/// one before it.
fn device(disk: &FileDisk, size: u64) {
    let (cluster, device) = (ClusterId::random(), DeviceId::random());
    let options = FormatOptions { cluster, device, name: "test".into(), size };
    let superblock = format_small(disk, &options, 64 << 20, u64::MAX).expect("format");
    let blocks = u64::from(GROUPS * CHUNKS_PER_GROUP) * BLOCKS_PER_CHUNK;
    let mut writer = Writer::new(disk, &superblock, 1);
    writer.group_count(GROUPS as usize);
    let mut written = 0;
    for id in 1..=GROUPS {
        writer.group(CopysetId(id), &GroupMeta::default(), CHUNKS_PER_GROUP as usize);
        for index in 0..CHUNKS_PER_GROUP {
            let mut chunk = Chunk::default();
            for block in 0..BLOCKS_PER_CHUNK as u16 {
                let addr = BlockAddr { block: (written * STRIDE % blocks) as u32, crc: 7 };
                chunk.set_device(block, TableBlock { addr, written: Written(written as u32 % 97) });
                written += 1;
            }
            let volume = VolumeId::from_bytes([id as u8; 16]);
            writer.chunk(ChunkKey { volume, index: ChunkIndex(index) }, &chunk, None);
        }
    }
    let (frames, frames_crc) = writer.finish().expect("room in the slot");
    let root =
        Root { seq: 1, checkpoint_seq: 1, frames, frames_crc, head_seq: 1, ..Root::default() };
    root::write(disk, &superblock, &root).expect("write the root");
}

/// What this thread has had of a processor: other tests run beside it.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.expect("nanoseconds"))
}

#[test]
fn the_tables_of_100_gib_in_random_order_are_there_in_seconds() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("device");
    let size = 110 << 30;
    File::create(&path).and_then(|file| file.set_len(size)).expect("a sparse file");
    let disk = std::sync::Arc::new(FileDisk::open(&path).expect("open the file"));
    device(&disk, size);
    let (before, began) = (processor_time(), Instant::now());
    let (store, groups) = Store::open(disk, StoreOptions::default()).expect("open");
    let took = processor_time() - before;
    println!("opened in {:?}, {took:?} of a processor", began.elapsed());
    assert_eq!(groups.len(), GROUPS as usize);
    assert_eq!(store.usage().data_blocks_used, 100 << 30 >> 12);
    assert!(took < Duration::from_secs(5), "{took:?}");
}
