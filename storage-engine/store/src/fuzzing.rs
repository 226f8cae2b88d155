//! For fuzzers: devices that hold any bytes under valid checksums, as only a fault of ours or
//! another version could have written them. Opening one ends in an answer or an error, and what
//! was opened once opens again.

use std::sync::{Arc, LazyLock, mpsc};

use curve_types::{ClusterId, CopysetId, DeviceId};

use crate::codec::Put;
use crate::disk::SimDisk;
use crate::health::Device;
use crate::root::{self, Root};
use crate::superblock::format_small;
use crate::wal::format::{BatchBuilder, BatchHeader};
use crate::wal::ring::Ring;
use crate::{FormatOptions, Store, StoreOptions, Superblock, checkpoint};

const SIZE: u64 = 64 << 20;
const WAL_LEN: u64 = 1 << 20;
/// Few, so that the input names some that exist.
const BLOCKS: u64 = 64;

/// Opens a device whose log is the input: of each record kind and group in one byte, the length of
/// its body in the next, then the body.
pub fn open_log(data: &[u8]) {
    let (disk, superblock) = formatted();
    let device = Arc::new(Device::new(disk.clone()));
    let ring = Ring { device, offset: superblock.layout.wal_offset, len: WAL_LEN };
    let mut header = BatchHeader {
        lsn: 0,
        seq: 1,
        mark: 0,
        generation: 1,
        root_seq: 0,
        len: 0,
        records: 0,
        body_crc: 0,
    };
    let mut batch = BatchBuilder::new();
    let mut rest = data;
    while let [what, len, body @ ..] = rest {
        let (body, after) = body.split_at(body.len().min(usize::from(*len)));
        rest = after;
        // Four bits of kind, three of group, and whether a batch begins.
        if what >> 7 == 1 || batch.is_empty() {
            seal(&mut batch, &mut header, &superblock, &ring);
        }
        let group = CopysetId(u32::from(what >> 4 & 7));
        batch.record(what & 15, 0, group, |record| record.put(body));
    }
    seal(&mut batch, &mut header, &superblock, &ring);
    open_twice(&disk);
}

/// Writes the batch, if it has records, and starts the next.
fn seal(batch: &mut BatchBuilder, header: &mut BatchHeader, superblock: &Superblock, ring: &Ring) {
    if !batch.is_empty() {
        let bytes = batch.finish(superblock.salt(), header);
        if header.lsn + bytes.len() as u64 <= ring.len {
            let writes: Vec<(u64, &[u8])> = ring.writes(header.lsn, bytes).collect();
            ring.device.write_all("write log", &writes).expect("a simulated disk");
        }
        header.lsn += bytes.len() as u64;
        header.mark = header.seq;
        header.seq += 1;
    }
    batch.start();
}

/// Opens a device whose checkpoint is the input.
pub fn open_checkpoint(data: &[u8]) {
    let (disk, superblock) = formatted();
    let mut writer = checkpoint::Writer::new(&*disk, &superblock, 1);
    writer.put_bytes(data);
    let Ok((frames, frames_crc)) = writer.finish() else { return };
    let root =
        Root { seq: 1, checkpoint_seq: 1, frames, frames_crc, head_seq: 1, ..Root::default() };
    root::write(&*disk, &superblock, &root).expect("a simulated disk");
    open_twice(&disk);
}

/// A copy of a device that is formatted once.
fn formatted() -> (Arc<SimDisk>, Superblock) {
    static BLANK: LazyLock<(SimDisk, Superblock)> = LazyLock::new(|| {
        let disk = SimDisk::new(SIZE);
        let options = FormatOptions {
            cluster: ClusterId::from_bytes([1; 16]),
            device: DeviceId::from_bytes([2; 16]),
            name: "fuzzed".into(),
            size: SIZE,
        };
        let superblock = format_small(&disk, &options, WAL_LEN, BLOCKS).expect("format");
        (disk, superblock)
    });
    let (disk, superblock) = &*BLANK;
    (Arc::new(disk.after_crash(|| true)), superblock.clone())
}

fn open_twice(disk: &Arc<SimDisk>) {
    let Ok((store, groups)) = Store::open(disk.clone(), StoreOptions::default()) else { return };
    for found in &groups {
        // Payloads and blocks may be damaged, which is an answer too.
        let _ = found.group.entries(0..u64::MAX, usize::MAX);
        let view = found.group.view().expect("the group is there");
        for key in view.chunks() {
            for run in view.block_ranges(key) {
                let _ = view.read(key, run);
            }
        }
    }
    let (answer, answered) = mpsc::channel();
    store.checkpoint(Box::new(move |result| drop(answer.send(result))));
    answered.recv().expect("an answer").expect("a checkpoint of what was opened");
    drop((store, groups));
    Store::open(disk.clone(), StoreOptions::default()).expect("open again");
}
