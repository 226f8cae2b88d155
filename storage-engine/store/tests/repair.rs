//! A peer's bytes replace a damaged block only when the log says that they are what was there.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Blob, checkpoint, chunk, durable, node, open, sim};
use curve_store::{ChunkView, Group, LogPosition, Repair, SimDisk, Store, StoreError};
use curve_types::{ChunkKey, CopysetId, VolumeId};

const BLOCK: u32 = 3;

struct Damaged {
    store: Store,
    group: Group,
    key: ChunkKey,
    disk: Arc<SimDisk>,
    /// Kept: the store holds it weakly.
    provider: Arc<Blob>,
}

fn position(index: u64) -> LogPosition {
    LogPosition { term: 1, node: node(), index }
}

fn bytes() -> Bytes {
    (0..4096u32).map(|i| (i * 7 + 3) as u8).collect::<Vec<u8>>().into()
}

/// A checkpointed block of which one bit flipped; index 5 is applied.
fn damaged() -> Damaged {
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
    let provider = Arc::new(Blob(Some(position(5)), Bytes::new()));
    let as_provider: Arc<dyn curve_store::StateProvider> = provider.clone();
    group.set_state_provider(&as_provider);
    let key = chunk(VolumeId::random(), 1);
    write(&group, key, bytes());
    checkpoint(&store).expect("checkpoint");
    let copies = disk.find(&bytes());
    let [at] = copies[..] else { panic!("one copy on the device, not {copies:?}") };
    disk.flip_bit(at + 100, 4);
    Damaged { store, group, key, disk, provider }
}

fn write(group: &Group, key: ChunkKey, bytes: Bytes) {
    let apply = group.begin_apply(1).expect("apply");
    apply.write(key, BLOCK * 4096, bytes).expect("write");
}

impl Damaged {
    fn view(&self) -> ChunkView {
        self.group.view().expect("view")
    }

    /// Offers what a peer has at an applied index.
    fn offer(&self, view: &ChunkView, index: u64, bytes: Bytes) -> Repair {
        self.group.repair(view, self.key, BLOCK, index, bytes).expect("repair")
    }

    fn read(&self) -> Result<Bytes, StoreError> {
        self.group.read(self.key, BLOCK * 4096, 4096)
    }

    fn is_damaged(&self) -> bool {
        matches!(self.read(), Err(StoreError::BadBlock { block: BLOCK, .. }))
    }
}

#[test]
fn a_peers_bytes_of_the_same_version_are_taken_and_kept() {
    let node = damaged();
    assert!(node.is_damaged());
    let view = node.view();
    assert_eq!(node.offer(&view, 4, bytes()), Repair::TooOld);
    assert_eq!(node.offer(&view, 6, bytes()), Repair::TooNew);
    assert!(node.is_damaged());
    let roots = node.store.usage().roots_written;
    assert_eq!(node.offer(&view, 5, bytes()), Repair::Done);
    assert_eq!(node.read().expect("read"), bytes());
    assert_eq!(node.offer(&view, 5, bytes()), Repair::Superseded);

    drop(view);
    // Nothing else is written that a checkpoint could come from.
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.store.usage().roots_written == roots {
        assert!(Instant::now() < deadline, "the repair is in no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    let Damaged { key, disk, .. } = node;
    let (_store, recovered) = open(&Arc::new(disk.after_crash(|| false)));
    let read = recovered[0].group.read(key, BLOCK * 4096, 4096).expect("read");
    assert_eq!(read, bytes());
}

#[test]
fn bytes_that_differ_are_refused() {
    let node = damaged();
    let view = node.view();
    assert_eq!(node.offer(&view, 5, vec![1; 4096].into()), Repair::Differs);
    assert!(node.is_damaged());
    for (block, bytes) in [(BLOCK, bytes().slice(1..)), (1024, bytes())] {
        let refused = node.group.repair(&view, node.key, block, 5, bytes);
        assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    }
}

/// Also when what was written since has the same checksum, being the same bytes.
#[test]
fn a_block_that_was_written_meanwhile_keeps_its_newer_bytes() {
    for newer in [Bytes::from(vec![9; 4096]), bytes()] {
        let node = damaged();
        let view = node.view();
        write(&node.group, node.key, newer.clone());
        checkpoint(&node.store).expect("checkpoint");
        assert_eq!(node.offer(&view, 5, bytes()), Repair::Superseded);
        assert_eq!(node.read().expect("read"), newer);
    }
    let node = damaged();
    let view = node.view();
    let apply = node.group.begin_apply(1).expect("apply");
    apply.discard(node.key, 0, 1 << 20).expect("discard");
    drop(apply);
    assert_eq!(node.offer(&view, 5, bytes()), Repair::Superseded);
    assert!(node.read().expect("read").iter().all(|byte| *byte == 0));
}

/// The log goes on; only the block's other bytes are to be had from a peer.
#[test]
fn a_damaged_block_of_which_a_part_is_written_is_lost_until_repaired() {
    let node = damaged();
    let before = node.view();
    let part = |at: u32, bytes: &'static [u8]| {
        let apply = node.group.begin_apply(1).expect("apply");
        apply.write(node.key, BLOCK * 4096 + at, Bytes::from_static(bytes)).expect("write");
    };
    part(10, b"new");
    assert!(matches!(node.read(), Err(StoreError::LostBlock { block: BLOCK, .. })));
    assert_eq!(node.offer(&before, 5, bytes()), Repair::Superseded);

    let between = node.view();
    part(20, b"newer");
    checkpoint(&node.store).expect("checkpoint");
    assert_eq!(node.offer(&between, 5, bytes()), Repair::Superseded, "it was written since");

    let Damaged { store, group, key, disk, provider } = node;
    drop((group, store, before, between));
    let (store, recovered) = open(&disk);
    let node = Damaged { store, group: recovered[0].group.clone(), key, disk, provider };
    let as_provider: Arc<dyn curve_store::StateProvider> = node.provider.clone();
    node.group.set_state_provider(&as_provider);
    assert!(matches!(node.read(), Err(StoreError::LostBlock { block: BLOCK, .. })));
    let mut whole = bytes().to_vec();
    whole[10..13].copy_from_slice(b"new");
    whole[20..25].copy_from_slice(b"newer");
    for at in [40, 50] {
        let view = node.view();
        let apply = node.group.begin_apply(1).expect("apply");
        apply.write(node.key, BLOCK * 4096 + at, Bytes::from_static(b"later")).expect("write");
        drop(apply);
        let offered = whole.clone().into();
        assert_eq!(node.offer(&view, 5, offered), Repair::Superseded, "it was written since");
        whole[at as usize..at as usize + 5].copy_from_slice(b"later");
    }
    let view = node.view();
    assert_eq!(node.offer(&view, 5, whole.clone().into()), Repair::Done);
    assert_eq!(node.read().expect("read"), whole);
}
