//! Copies of volumes: what they cost, and that neither side sees what happens to the other.

mod common;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{Blob, checkpoint, chunk, durable, open, sim};
use curve_store::{CopyKind, Group, Keep, LogPosition, StateProvider, Store, StoreError, Written};
use curve_types::{CopysetId, VolumeId};

const BLOCK: u32 = 4096;
const BLOCKS: u32 = 1000;

fn id(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 16])
}

fn write(group: &Group, index: u64, volume: VolumeId, block: u32, byte: u8) {
    let apply = group.begin_apply(index).expect("apply");
    let data = Bytes::from(vec![byte; BLOCK as usize]);
    apply.write(chunk(volume, 0), block * BLOCK, data).expect("write");
}

fn copy(group: &Group, index: u64, from: u8, to: u8, kind: CopyKind) {
    group.begin_apply(index).expect("apply").copy_volume(id(from), id(to), kind);
}

fn delete(group: &Group, index: u64, volume: u8) {
    group.begin_apply(index).expect("apply").delete_volume(id(volume)).expect("delete");
}

fn byte(group: &Group, volume: u8, block: u32) -> u8 {
    group.read(chunk(id(volume), 0), block * BLOCK, BLOCK).expect("read")[77]
}

fn used(store: &Store) -> u64 {
    store.usage().data_blocks_used
}

/// A chunk of 1,000 blocks with their number as content, on the device.
fn full() -> (std::sync::Arc<curve_store::SimDisk>, Store, Group) {
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
    (0..BLOCKS).for_each(|block| write(&group, 1, id(1), block, block as u8));
    checkpoint(&store).expect("checkpoint");
    (disk, store, group)
}

#[test]
fn a_copy_takes_room_only_for_what_differs() {
    let (disk, store, group) = full();
    let blocks = u64::from(BLOCKS);
    copy(&group, 100, 1, 2, CopyKind::Snapshot);
    assert_eq!(used(&store), blocks);
    for block in 0..10 {
        write(&group, 200, id(1), block, 255);
    }
    assert_eq!(used(&store), blocks + 10);
    copy(&group, 300, 1, 3, CopyKind::Snapshot);
    copy(&group, 300, 2, 4, CopyKind::Clone);
    write(&group, 400, id(4), 5, 254);
    checkpoint(&store).expect("checkpoint");
    let before = store.usage();
    assert_eq!(before.data_blocks_used, blocks + 11);
    assert_eq!(before.data_blocks_free + blocks + 11, before.data_blocks_total);

    // The same after it was read back, and neither side sees the other's changes.
    drop((group, store));
    let (store, found) = open(&disk);
    let group = found[0].group.clone();
    assert_eq!(store.usage().data_blocks_used, blocks + 11);
    assert_eq!(store.usage().data_blocks_free, before.data_blocks_free);
    let at = |block| [1, 2, 3, 4].map(|volume| byte(&group, volume, block));
    assert_eq!(at(5), [255, 5, 255, 254]);
    assert_eq!(at(6), [255, 6, 255, 6]);
    assert_eq!(at(700), [700u32 as u8; 4]);
    let changes = |of: u8, base: Option<u8>| -> Vec<u16> {
        let changes = group.changes(chunk(id(of), 0), base.map(id)).expect("there");
        changes.iter().collect()
    };
    let first_ten: Vec<u16> = (0..10).collect();
    assert_eq!((changes(3, Some(2)), changes(2, Some(3))), (first_ten.clone(), first_ten));
    assert_eq!((changes(3, Some(1)), changes(4, Some(2))), (vec![], vec![5]));
    assert_eq!(changes(3, None).len(), BLOCKS as usize);
    assert_eq!((changes(3, Some(9)).len(), changes(9, Some(3)).len()), (1000, 1000));

    for (volume, left) in [(2, blocks + 10), (1, blocks + 10), (4, blocks), (3, 0)] {
        delete(&group, 500, volume);
        assert_eq!(used(&store), left, "after {volume}");
    }
    checkpoint(&store).expect("checkpoint");
    assert_eq!(store.usage().data_blocks_free, store.usage().data_blocks_total);
}

/// 256 whole tables are 3 MB, and a slot holds less. What is in the checkpoint is the chain of
/// differences, from whatever end it is taken apart.
#[test]
fn many_snapshots_of_a_chunk_fit_into_a_checkpoint() {
    let (disk, store, group) = full();
    for n in 2..=255 {
        copy(&group, u64::from(n) * 100, 1, n, CopyKind::Snapshot);
        write(&group, u64::from(n) * 100 + 1, id(1), u32::from(n), 0);
    }
    checkpoint(&store).expect("checkpoint");
    let first = store.usage().checkpoint_bytes;
    assert!(first <= 256 << 10, "{first} bytes");
    drop((group, store));
    let (store, found) = open(&disk);
    let group = found[0].group.clone();
    let check = |n: u8| {
        let next = u32::from(n);
        assert_eq!((byte(&group, n, next), byte(&group, n, next - 1)), (n, 0), "snapshot {n}");
    };
    (3..=255).for_each(check);
    // Every second goes, and the volume itself: others are based on them.
    (2..=255).step_by(2).for_each(|n| delete(&group, 30_000, n));
    delete(&group, 30_001, 1);
    checkpoint(&store).expect("checkpoint");
    assert!(store.usage().checkpoint_bytes <= 256 << 10);
    (3..=255).step_by(2).for_each(check);
    // A rollback, and a snapshot of what was rolled back: no chain may lead back to itself.
    copy(&group, 30_002, 101, 1, CopyKind::Clone);
    copy(&group, 30_003, 1, 2, CopyKind::Snapshot);
    checkpoint(&store).expect("checkpoint");
    drop((group, store));
    let (_store, found) = open(&disk);
    let group = found[0].group.clone();
    assert_eq!([1, 2, 101].map(|volume| byte(&group, volume, 101)), [101; 3]);
}

#[test]
fn what_a_copy_got_counts_as_written_by_it() {
    let (disk, store, group) = full();
    copy(&group, 6400, 1, 2, CopyKind::Snapshot);
    write(&group, 12_800, id(1), 0, 1);
    let history = |group: &Group| {
        let view = group.view().expect("view");
        let key = |volume| chunk(id(volume), 0);
        let changed = [1, 2].map(|volume| view.delta(key(volume), None).head.changed);
        let written = [1, 2].map(|volume| view.written(key(volume), 0..2));
        (changed, written)
    };
    let [old, copied, new] = [1, 6400, 12_800].map(Written::at);
    let expected = ([12_800, 6400], [vec![new, old], vec![copied, copied]]);
    assert_eq!(history(&group), expected);
    checkpoint(&store).expect("checkpoint");
    drop((group, store));
    let (_store, found) = open(&disk);
    assert_eq!(history(&found[0].group), expected);
    // A replica from before the copy needs all of it.
    let view = found[0].group.view().expect("view");
    let delta = view.delta(chunk(id(2), 0), Some(6300));
    assert_eq!((delta.head.keep, &delta.runs[0]), (Keep::Nothing, &(0..1)));
    assert_eq!(delta.runs.len(), 1);
    assert_eq!(delta.head.shared.map(|shared| shared.iter().count()), Some(BLOCKS as usize - 1));
}

/// Blocks that are still on their way to the device when they are copied.
#[test]
fn blocks_in_memory_are_copied_too() {
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
    (0..20).for_each(|block| write(&group, 1, id(1), block, 7));
    copy(&group, 2, 1, 2, CopyKind::Snapshot);
    write(&group, 3, id(1), 0, 8);
    assert_eq!(store.usage().overlay_bytes, 40 * u64::from(BLOCK));
    checkpoint(&store).expect("checkpoint");
    assert_eq!((store.usage().overlay_bytes, used(&store)), (0, 21));
    assert_eq!([1, 2].map(|volume| byte(&group, volume, 0)), [8, 7]);
    delete(&group, 4, 1);
    drop((group, store));
    let (store, found) = open(&disk);
    let group = found[0].group.clone();
    assert_eq!([1, 2].map(|volume| byte(&group, volume, 19)), [7, 7]);
    assert_eq!(used(&store), 21, "the deletion came after the checkpoint");
}

/// Each clone of a volume was copied from a snapshot that is gone since: all are based on what is
/// left. When that goes, or is overwritten, the room that their tables take must not grow with
/// their number.
#[test]
fn clones_of_a_volume_that_goes_stay_small_in_checkpoints() {
    let (disk, store, group) = full();
    for n in 10..90 {
        copy(&group, 100 * u64::from(n), 1, 2, CopyKind::Snapshot);
        copy(&group, 100 * u64::from(n) + 1, 2, n, CopyKind::Clone);
        delete(&group, 100 * u64::from(n) + 2, 2);
    }
    checkpoint(&store).expect("checkpoint");
    let small = store.usage().checkpoint_bytes;
    assert!(small <= 256 << 10, "{small} bytes");
    // Trimmed to nothing, which leaves no chunk to be based on.
    let apply = group.begin_apply(20_000).expect("apply");
    apply.discard(chunk(id(1), 0), 0, 4 << 20).expect("discard");
    drop(apply);
    checkpoint(&store).expect("checkpoint");
    assert_eq!(store.usage().checkpoint_bytes, small);
    (10..60).for_each(|n| delete(&group, 20_001, n));
    checkpoint(&store).expect("checkpoint");
    assert_eq!(store.usage().checkpoint_bytes, small);
    drop((group, store));
    let (_store, found) = open(&disk);
    assert!((60..90).all(|n| byte(&found[0].group, n, 700) == 700u32 as u8));
}

/// A copy made again would be of what its original is by then.
#[test]
fn no_checkpoint_shows_tables_with_a_state_from_before() {
    let (disk, store, group) = full();
    let at = |index| LogPosition { term: 1, node: common::node(), index };
    let provider: Arc<dyn StateProvider> = Arc::new(Blob(Some(at(1)), Bytes::new()));
    group.set_state_provider(&provider);
    checkpoint(&store).expect("checkpoint");
    write(&group, 2, id(1), 0, 99);
    drop(provider);
    let refused = checkpoint(&store).expect_err("nobody says how far the tables are");
    assert!(matches!(refused, StoreError::HostGone(CopysetId(1))), "{refused}");
    assert!(store.failure().is_none());
    group.leave_state((Some(at(2)), Bytes::new()));
    checkpoint(&store).expect("checkpoint");
    drop((group, store));
    let (_store, found) = open(&disk);
    assert_eq!((found[0].applied, byte(&found[0].group, 1, 0)), (Some(at(2)), 99));
}

/// The flusher takes blocks of a copy and of its original part by part, while the original is
/// written.
#[test]
fn a_copy_stays_whole_while_its_original_is_written_and_flushed() {
    let (_disk, store, group) = full();
    for round in 1..=12 {
        let index = 1000 * u64::from(round);
        (0..BLOCKS).for_each(|block| write(&group, index, id(1), block, round));
        copy(&group, index + 1, 1, 2, CopyKind::Snapshot);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..BLOCKS).for_each(|block| write(&group, index + 2, id(1), block, 200));
            });
            checkpoint(&store).expect("checkpoint");
        });
        checkpoint(&store).expect("checkpoint");
        let copied = group.read(chunk(id(2), 0), 0, BLOCKS * BLOCK).expect("read");
        assert!(copied.iter().all(|byte| *byte == round), "round {round}");
    }
    (1..=2).for_each(|volume| delete(&group, 50_000, volume));
    checkpoint(&store).expect("checkpoint");
    let usage = store.usage();
    assert_eq!((usage.data_blocks_used, usage.data_blocks_free), (0, usage.data_blocks_total));
}

/// Its last user lets go of a provider while a checkpoint asks it.
#[test]
fn a_provider_may_end_while_it_is_asked() {
    struct Leaving {
        group: Group,
        at: LogPosition,
        /// What keeps it alive.
        user: Mutex<Option<Arc<Leaving>>>,
    }
    impl StateProvider for Leaving {
        fn state(&self) -> (Option<LogPosition>, Bytes) {
            drop(self.user.lock().expect("lock").take());
            (Some(self.at), Bytes::new())
        }
    }
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.group.leave_state((Some(self.at), Bytes::new()));
        }
    }
    let (_disk, store, group) = full();
    let at = LogPosition { term: 1, node: common::node(), index: 1 };
    let leaving = Arc::new(Leaving { group: group.clone(), at, user: Mutex::default() });
    let provider: Arc<dyn StateProvider> = leaving.clone();
    group.set_state_provider(&provider);
    drop(provider);
    let user = leaving.clone();
    *leaving.user.lock().expect("lock") = Some(user);
    drop(leaving);
    checkpoint(&store).expect("checkpoint");
    checkpoint(&store).expect("of what it left");
}
