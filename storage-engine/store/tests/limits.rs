//! Full WAL, full device, full overlay, many laps of the ring, readers beside writers, installs.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Blob, chunk, durable, entry, open, open_with, options, put, sim, sim_small};
use curve_store::{LogPosition, StateProvider, StoreError, StoreOptions};
use curve_types::{CopysetId, VolumeId};

const GROUP: CopysetId = CopysetId(1);
const SIZE: u64 = 64 << 20;

#[test]
fn a_full_wal_refuses_after_pressure_and_goes_on_after_a_purge() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let pressed = Arc::new(AtomicUsize::new(0));
    let count = pressed.clone();
    store.on_wal_pressure(Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let mut index = 0;
    let error = loop {
        match durable(|done| group.append(vec![entry(1, index, 10_000)], done)) {
            Ok(()) => index += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::WalFull { .. }), "{error}");
    assert!(index > 60 && pressed.load(Ordering::SeqCst) > 0);
    assert_eq!(group.log_state().last.map(|p| p.index), Some(index - 1));
    // Votes and purges still find room.
    durable(|done| {
        group.save_vote(Default::default(), done);
        Ok(())
    })
    .expect("vote");
    let last = entry(1, index - 1, 0).position;
    let provider: Arc<dyn StateProvider> = Arc::new(Blob(Some(last), Bytes::new()));
    group.set_state_provider(&provider);
    durable(|done| group.purge(last, done)).expect("purge");
    common::checkpoint(&store).expect("checkpoint");
    durable(|done| group.append(vec![entry(1, index, 10_000)], done)).expect("room again");
    assert!(store.usage().wal_bytes_used < 100_000, "{:?}", store.usage());
    assert!(store.failure().is_none());
}

#[test]
fn many_small_entries_press_for_a_purge_long_before_the_wal_is_half_full() {
    const PRESSED: u64 = 1_600;
    let disk = sim(256 << 20, 8 << 20);
    let (store, _) = open_with(&disk, StoreOptions { log_entries_pressed: PRESSED, ..options() });
    let groups = [GROUP, CopysetId(2)]
        .map(|id| durable(|done| store.create_group(id, done)).expect("create"));
    let pressed = Arc::new(AtomicUsize::new(0));
    let count = pressed.clone();
    store.on_wal_pressure(Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    // The callback comes after the answer, so that a second one makes sure of it.
    let append = |from: u64, to: u64| {
        for group in &groups {
            let entries = (from..to).map(|index| entry(1, index, 8)).collect();
            durable(|done| group.append(entries, done)).expect("append");
            durable(|done| group.append(Vec::new(), done)).expect("nothing");
        }
        pressed.load(Ordering::SeqCst)
    };
    assert_eq!(append(0, 700), 0);
    assert_eq!(append(700, 800), 1, "{PRESSED} entries in both groups");
    assert_eq!(append(800, 840), 1, "not again at once");
    assert_eq!(append(840, 860), 2, "but after another sixteenth");
    let last = entry(1, 859, 0).position;
    let provider: Arc<dyn StateProvider> = Arc::new(Blob(Some(last), Bytes::new()));
    for group in &groups {
        group.set_state_provider(&provider);
        durable(|done| group.purge(last, done)).expect("purge");
    }
    common::checkpoint(&store).expect("checkpoint");
    assert_eq!(append(860, 1_600), 2, "a purge makes room for as many");
    assert!(store.usage().wal_bytes_used < store.usage().wal_bytes_total / 8);
}

#[test]
fn the_ring_is_reused_over_many_laps() {
    let disk = sim(SIZE, 1 << 20);
    let (mut store, _) = open(&disk);
    let mut group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let mut index = 0;
    for _ in 0..30 {
        for _ in 0..100 {
            let new = entry(1, index, 100 + (index * 37 % 9000) as usize);
            let provider: Arc<dyn StateProvider> = Arc::new(Blob(Some(new.position), Bytes::new()));
            group.set_state_provider(&provider);
            durable(|done| group.append(vec![new.clone()], done)).expect("append");
            if index % 10 == 0 {
                durable(|done| group.purge(new.position, done)).expect("purge");
                common::checkpoint(&store).expect("checkpoint");
            }
            index += 1;
        }
        assert!(store.usage().wal_bytes_used < 512 << 10);
        drop((group, store));
        let (again, found) = open(&disk);
        assert_eq!(found[0].log_state.last.map(|p| p.index), Some(index - 1));
        (group, store) = (found[0].group.clone(), again);
    }
}

#[test]
fn overwriting_forever_needs_no_more_than_the_reserve() {
    let disk = sim(SIZE, 8 << 20);
    let (store, _) = open_with(&disk, StoreOptions { overlay_bytes_max: 1 << 20, ..options() });
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let volume = VolumeId::random();
    let mut written = 0;
    while store.usage().admissible_blocks() >= 1024 {
        let apply = group.begin_apply(1).expect("apply");
        apply
            .write(chunk(volume, written), 0, Bytes::from(vec![written as u8; 4 << 20]))
            .expect("write");
        written += 1;
    }
    for round in 0..200u32 {
        let (number, offset) = (round * 7 % written, round * 13 % 7 * 524_288);
        let apply = group.begin_apply(1).expect("the overlay drains");
        apply
            .write(chunk(volume, number), offset, Bytes::from(vec![round as u8; 524_288]))
            .expect("write");
    }
    common::checkpoint(&store).expect("checkpoint");
    let usage = store.usage();
    assert!(usage.data_blocks_used * 100 / usage.data_blocks_total > 80, "{usage:?}");
}

/// What a view held back at the last checkpoint may be free since.
#[test]
fn blocks_that_a_dropped_view_held_are_found_when_room_is_scarce() {
    const BLOCKS: u64 = 2_000;
    let disk = sim_small(SIZE, 8 << 20, BLOCKS);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let volume = VolumeId::random();
    let write = |index: u32, blocks: usize, byte: u8| {
        for at in (0..blocks).step_by(50) {
            let apply = group.begin_apply(1).expect("the overlay drains");
            let data = Bytes::from(vec![byte; 50 * 4096]);
            apply.write(chunk(volume, index), at as u32 * 4096, data).expect("write");
        }
    };
    write(0, 800, 1);
    common::checkpoint(&store).expect("checkpoint");
    let view = group.view().expect("view");
    write(0, 800, 2);
    common::checkpoint(&store).expect("checkpoint");
    assert_eq!(store.usage().data_blocks_pinned, 800);
    drop(view);
    write(1, 600, 3);
    common::checkpoint(&store).expect("room for all that is applied");
    assert_eq!(store.usage().data_blocks_used, 1_400);
    assert!(store.failure().is_none());
}

#[test]
fn a_device_filled_past_its_reserve_fails_instead_of_diverging() {
    let disk = sim(SIZE, 8 << 20);
    let (store, _) = open_with(&disk, StoreOptions { overlay_bytes_max: 1 << 20, ..options() });
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let volume = VolumeId::random();
    let ended = (0..100).find_map(|number| {
        let apply = group.begin_apply(1);
        apply.and_then(|a| a.write(chunk(volume, number), 0, Bytes::from(vec![1; 4 << 20]))).err()
    });
    assert!(matches!(ended, Some(StoreError::Failed { .. })), "{ended:?}");
    assert!(matches!(store.failure(), Some(StoreError::NoSpace { .. })));
}

#[test]
fn readers_see_whole_blocks_while_writer_and_checkpoints_run() {
    let disk = sim(SIZE, 4 << 20);
    let (store, _) = open_with(&disk, StoreOptions { overlay_bytes_max: 1 << 20, ..options() });
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let key = chunk(VolumeId::random(), 0);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (group, stop) = (group.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) {
                    let bytes = group.read(key, 0, 1 << 20).expect("read");
                    assert!(bytes.chunks(4096).all(|block| block.iter().all(|b| *b == block[0])));
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for round in 0..300u32 {
        let len = 4096 * (1 + round % 200);
        let apply = group.begin_apply(1).expect("apply");
        apply
            .write(key, round % 56 * 4096, Bytes::from(vec![round as u8; len as usize]))
            .expect("write");
        drop(apply);
        if round % 20 == 0 {
            common::checkpoint(&store).expect("checkpoint");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let reads: i32 = readers.into_iter().map(|r| r.join().expect("reader")).sum();
    assert!(reads > 10, "{reads}");
}

#[test]
fn an_installed_snapshot_replaces_state_and_log() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let (old, new) = (VolumeId::random(), VolumeId::random());
    durable(|done| group.append((0..10).map(|i| entry(1, i, 10)).collect(), done)).expect("append");
    group
        .begin_apply(1)
        .expect("apply")
        .write(chunk(old, 0), 0, Bytes::from(vec![1; 4096]))
        .expect("write");
    // The host learns of an install only afterwards.
    let before = LogPosition { term: 1, node: common::node(), index: 9 };
    let host: Arc<dyn StateProvider> = Arc::new(Blob(Some(before), Bytes::from_static(b"old")));
    group.set_state_provider(&host);
    drop(group.begin_install().expect("an install that is given up"));
    let install = group.begin_install().expect("install");
    put(&install, chunk(new, 5), 8192, vec![2; 1 << 20]).expect("put");
    assert!(put(&install, chunk(new, 5), 100, vec![2; 4096]).is_err());
    let position = LogPosition { term: 4, node: common::node(), index: 100 };
    durable(|done| {
        install.commit(position, Bytes::from_static(b"new"), done);
        Ok(())
    })
    .expect("commit");
    let check = |group: &curve_store::Group| {
        let state = group.log_state();
        assert_eq!((state.last_purged, state.last), (Some(position), Some(position)));
        assert_eq!(group.read(chunk(old, 0), 0, 1).expect("read")[0], 0);
        assert_eq!(group.read(chunk(new, 5), 8192 + (1 << 19), 1).expect("read")[0], 2);
    };
    check(&group);
    let view = group.view().expect("view");
    assert_eq!((view.applied(), &view.state()[..]), (Some(position), &b"new"[..]));
    drop((view, group, store));
    let (store, found) = open(&disk);
    check(&found[0].group);
    assert_eq!((found[0].applied, &found[0].state[..]), (Some(position), &b"new"[..]));
    durable(|done| found[0].group.append(vec![entry(5, 101, 10)], done)).expect("append");
    drop((found, store));
    let (store, found) = open(&disk);
    assert_eq!(found[0].group.entries(0..999, 9999).expect("read"), [entry(5, 101, 10)]);
    assert_eq!(store.usage().data_blocks_used, 256);
}

#[test]
fn an_install_without_room_is_refused_and_the_store_goes_on() {
    let disk = sim_small(SIZE, 1 << 20, 2_000);
    let (store, _) = open(&disk);
    let [group, other] = [GROUP, CopysetId(2)]
        .map(|id| durable(|done| store.create_group(id, done)).expect("create"));
    let (kept, arriving) = (chunk(VolumeId::random(), 0), VolumeId::random());
    let rewrite = |byte: u8| {
        let apply = other.begin_apply(1).expect("apply");
        apply.write(kept, 0, Bytes::from(vec![byte; 1 << 20])).expect("write");
        drop(apply);
        let read = other.read(kept, 0, 1 << 20).expect("read");
        assert!(read.iter().all(|b| *b == byte));
    };
    rewrite(1);
    let used = store.usage().data_blocks_used;
    let install = group.begin_install().expect("install");
    let one = |index| put(&install, chunk(arriving, index), 0, vec![9; 1 << 20]).err();
    let refused = (0..20).find_map(one);
    assert!(matches!(refused, Some(StoreError::NoSpace { .. })), "{refused:?}");
    assert!(store.usage().data_blocks_used > used, "some of it fitted");
    (2..12).for_each(rewrite);
    drop(install);
    assert_eq!(store.usage().data_blocks_used, used);
    common::checkpoint(&store).expect("checkpoint");
    let usage = store.usage();
    assert_eq!((usage.data_blocks_pending_free, usage.data_blocks_free), (0, 2_000 - used));
    let again = group.begin_install().expect("install");
    put(&again, chunk(arriving, 0), 0, vec![9; 1 << 20]).expect("room again");
    assert!(store.failure().is_none());
}

#[test]
fn an_idle_log_writes_one_mark_and_then_rests() {
    let disk = sim(SIZE, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    durable(|done| group.append(vec![entry(1, 0, 10)], done)).expect("append");
    std::thread::sleep(Duration::from_millis(100));
    let before = disk.operations();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(disk.operations(), before);
    let usage = store.usage();
    assert!(
        usage.wal_batches_written > usage.wal_records_written,
        "a batch without a record: {usage:?}"
    );
}

/// The group goes while the checkpoint that holds its snapshot is being written, and its id returns.
#[test]
fn an_install_into_a_group_that_was_removed_leaves_nothing() {
    let disk = sim_small(SIZE, 1 << 20, 2_000);
    let (store, _) = open(&disk);
    let [group, other] = [GROUP, CopysetId(2)]
        .map(|id| durable(|done| store.create_group(id, done)).expect("create"));
    let install = group.begin_install().expect("install");
    put(&install, chunk(VolumeId::random(), 0), 0, vec![9; 1 << 20]).expect("put");

    // The checkpoint waits for this group, having seen the other.
    let applying = other.begin_apply(1).expect("apply");
    let (answer, question) = std::sync::mpsc::channel();
    let position = LogPosition { term: 4, node: common::node(), index: 100 };
    install.commit(position, Bytes::new(), Box::new(move |result| drop(answer.send(result))));
    std::thread::sleep(Duration::from_millis(50));
    durable(|done| store.remove_group(GROUP, done)).expect("remove");
    drop(group);
    let anew = durable(|done| store.create_group(GROUP, done)).expect("create anew");
    let entries: Vec<_> = (0..3).map(|i| entry(1, i, 10)).collect();
    durable(|done| anew.append(entries.clone(), done)).expect("append");
    drop(applying);

    let result = question.recv_timeout(Duration::from_secs(60)).expect("the callback comes");
    assert!(matches!(result, Err(StoreError::NoGroup(GROUP))), "{result:?}");
    common::checkpoint(&store).expect("checkpoint");
    let usage = store.usage();
    let blocks = (usage.data_blocks_used, usage.data_blocks_pending_free, usage.data_blocks_free);
    assert_eq!(blocks, (0, 0, 2_000));
    drop((anew, other, store));
    let (_store, found) = open(&disk);
    assert_eq!(found[0].group.entries(0..9, 9999).expect("read"), entries);
}
