//! What a host sees of a store that nothing happens to: log, chunk space, groups, reopening.

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Blob, chunk, durable, entry, entry_of, open, open_with, options, sim};
use curve_store::{Commits, LogPosition, LogState, StateProvider, StoreError, StoreOptions, Vote};
use curve_types::{ByteSize, CopysetId, DeviceId, VolumeId};

const GROUP: CopysetId = CopysetId(7);
const MS: Duration = Duration::from_millis(1);

#[test]
fn what_was_appended_is_read_back_before_and_after_reopening() {
    let disk = sim(64 << 20, 1 << 20);
    let (store, found) = open(&disk);
    assert!(found.is_empty());
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let vote = Vote { term: 3, node: Some(DeviceId::random()), committed: true };
    let entries: Vec<_> = (0..20).map(|i| entry(1, i, 100 + i as usize * 700)).collect();
    durable(|done| group.append(entries.clone(), done)).expect("append");
    durable(|done| {
        group.save_vote(vote, done);
        Ok(())
    })
    .expect("vote");
    assert_eq!(group.entries(0..100, usize::MAX).expect("read"), entries);
    assert_eq!(group.entries(5..7, usize::MAX).expect("read"), entries[5..7]);
    assert_eq!(group.entries(3..20, 1).expect("read"), entries[3..4]);
    drop((group, store));

    let (store, found) = open(&disk);
    let [found] = &found[..] else { panic!("one group: {found:?}") };
    assert_eq!((found.group.id(), found.vote), (GROUP, Some(vote)));
    assert_eq!(found.log_state, LogState { last_purged: None, last: Some(entries[19].position) });
    assert_eq!(found.group.entries(0..100, usize::MAX).expect("read"), entries);
    durable(|done| found.group.truncate_after(Some(9), done)).expect("truncate");
    durable(|done| found.group.append(vec![entry(2, 10, 5)], done)).expect("append");
    durable(|done| found.group.purge(entries[4].position, done)).expect("purge");
    assert_eq!(found.group.entries(0..100, usize::MAX).expect("read").len(), 6);
    let refused = found.group.append(vec![entry(2, 12, 5)], Box::new(|_| ()));
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    assert!(found.group.truncate_after(Some(3), Box::new(|_| ())).is_err());
    drop(store);
}

#[test]
fn entries_evicted_from_the_cache_come_from_the_wal() {
    let disk = sim(64 << 20, 4 << 20);
    let (store, _) =
        open_with(&disk, StoreOptions { log_cache_bytes_max: 10_000, ..common::options() });
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let other = durable(|done| store.create_group(CopysetId(8), done)).expect("create");
    let entries: Vec<_> = (0..200).map(|i| entry(1, i, 3000)).collect();
    for (i, entry) in entries.iter().enumerate() {
        durable(|done| group.append(vec![entry.clone()], done)).expect("append");
        if i % 3 == 0 {
            durable(|done| other.append(vec![entry_of(1, i as u64 / 3, &[9; 9000])], done))
                .expect("append");
        }
    }
    assert_eq!(group.entries(0..200, usize::MAX).expect("read"), entries);
    assert_eq!(group.entries(150..160, usize::MAX).expect("read"), entries[150..160]);
}

#[test]
fn chunks_survive_checkpoint_and_reopening() {
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let volume = VolumeId::random();
    let position = LogPosition { term: 1, node: DeviceId::random(), index: 5 };
    let provider: Arc<dyn StateProvider> =
        Arc::new(Blob(Some(position), Bytes::from_static(b"blob")));
    group.set_state_provider(&provider);
    let key = chunk(volume, 3);
    {
        let apply = group.begin_apply(1).expect("apply");
        apply.write(key, 100, Bytes::from(vec![1; 10_000])).expect("write");
        apply.write(key, 5000, Bytes::from(vec![2; 10])).expect("write");
        apply.write(chunk(volume, 9), 0, Bytes::from(vec![3; 4 << 20])).expect("write");
        apply.write_zeroes(key, 6000, 1000).expect("zeroes");
        apply.discard(chunk(volume, 9), 4000, 10_000).expect("discard");
        assert!(apply.write(key, 4 << 20, Bytes::from_static(b"x")).is_err());
    }
    let check = |group: &curve_store::Group| {
        let mut want = vec![0; 12_288];
        want[100..10_100].fill(1);
        want[5000..5010].fill(2);
        want[6000..7000].fill(0);
        assert_eq!(&group.read(key, 0, 12_288).expect("read")[..], &want[..]);
        assert_eq!(&group.read(key, 4999, 3).expect("read")[..], [1, 2, 2]);
        let other = group.read(chunk(volume, 9), 0, 4 << 20).expect("read");
        assert!(other[..4096].iter().chain(&other[12_288..]).all(|b| *b == 3));
        assert!(other[4096..12_288].iter().all(|b| *b == 0));
        assert_eq!(&group.read(chunk(volume, 1), 7, 3).expect("read")[..], [0; 3]);
    };
    check(&group);
    durable(|done| {
        store.checkpoint(done);
        Ok(())
    })
    .expect("checkpoint");
    check(&group);
    assert_eq!(store.usage().overlay_bytes, 0);
    assert_eq!(store.usage().data_blocks_used, 3 + 1022);
    drop((group, store));

    let (store, found) = open(&disk);
    assert_eq!((found[0].applied, &found[0].state[..]), (Some(position), &b"blob"[..]));
    check(&found[0].group);
    assert_eq!(store.usage().data_blocks_used, 3 + 1022);
    found[0].group.begin_apply(1).expect("apply").delete_volume(volume).expect("delete");
    assert_eq!(store.usage().data_blocks_used, 0);
    assert_eq!(&found[0].group.read(key, 100, 1).expect("read")[..], [0]);
}

#[test]
fn a_removed_group_comes_back_empty() {
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    assert!(store.create_group(GROUP, Box::new(|_| ())).is_err());
    durable(|done| group.append(vec![entry(1, 0, 50)], done)).expect("append");
    group
        .begin_apply(1)
        .expect("apply")
        .write(chunk(VolumeId::random(), 0), 0, Bytes::from(vec![1; 8192]))
        .expect("write");
    common::checkpoint(&store).expect("checkpoint");
    durable(|done| store.remove_group(GROUP, done)).expect("remove");
    assert!(matches!(
        group.append(vec![entry(1, 1, 5)], Box::new(|_| ())),
        Err(StoreError::NoGroup(_))
    ));
    assert!(store.group(GROUP).is_none());
    let gone = group.read(chunk(VolumeId::random(), 0), 0, 1);
    assert!(matches!(gone, Err(StoreError::NoGroup(_))), "no zeroes: {gone:?}");
    assert!(matches!(group.view(), Err(StoreError::NoGroup(_))));
    let again = durable(|done| store.create_group(GROUP, done)).expect("create");
    durable(|done| again.append(vec![entry(4, 0, 60)], done)).expect("append");
    drop((group, again, store));
    for _ in 0..2 {
        let (store, found) = open(&disk);
        assert_eq!(found[0].group.entries(0..9, 999).expect("read"), [entry(4, 0, 60)]);
        assert_eq!((found[0].applied, store.usage().data_blocks_used), (None, 0));
        common::checkpoint(&store).expect("checkpoint");
        assert_eq!(store.usage().data_blocks_pending_free, 0);
    }
}

#[test]
fn reopening_changes_nothing() {
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    durable(|done| group.append((0..9).map(|i| entry(1, i, 300)).collect(), done)).expect("append");
    drop((group, store));
    for _ in 0..40 {
        let (store, found) = open(&disk);
        assert_eq!(found[0].log_state.last.map(|p| p.index), Some(8));
        assert_eq!(found[0].group.entries(0..9, 9999).expect("read").len(), 9);
        assert!(store.usage().wal_bytes_used < ByteSize(256 << 10).0);
    }
}

#[test]
fn a_view_stays_what_it_was_while_everything_is_overwritten() {
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let key = chunk(VolumeId::random(), 0);
    let fill = |byte: u8| {
        let apply = group.begin_apply(1).expect("apply");
        apply.write(key, 8192, Bytes::from(vec![byte; 1 << 20])).expect("write");
    };
    fill(1);
    common::checkpoint(&store).expect("checkpoint");
    let view = group.view().expect("view");
    for byte in 2..20 {
        fill(byte);
        common::checkpoint(&store).expect("checkpoint");
        assert_eq!(view.block_ranges(key), vec![2..258]);
        assert!(view.read(key, 0..258).expect("read")[8192..].iter().all(|b| *b == 1));
    }
    assert_eq!(view.chunks(), [key]);
    assert_eq!(store.usage().data_blocks_pinned, 256 * 18);
    drop(view);
    common::checkpoint(&store).expect("checkpoint");
    assert_eq!((store.usage().data_blocks_pinned, store.usage().data_blocks_pending_free), (0, 0));
}

#[test]
fn what_commits_take_is_told_also_while_one_hangs() {
    let disk = sim(64 << 20, 1 << 20);
    // No mark of an idle log is written in between.
    let idle_mark_after = Duration::from_secs(3600);
    let (store, _) = open_with(&disk, StoreOptions { idle_mark_after, ..options() });
    let group = durable(|done| store.create_group(GROUP, done)).expect("create");
    let before = store.commits();
    assert!(before.mean_since(&Commits::default()).is_some());
    assert_eq!(store.commits().mean_since(&before), None, "nothing is written");

    disk.set_sync_time(MS * 30);
    durable(|done| group.append(vec![entry(1, 0, 5)], done)).expect("append");
    let mean = store.commits().mean_since(&before).expect("one commit");
    assert!((MS * 30..MS * 200).contains(&mean), "{mean:?}");

    disk.set_sync_time(MS * 400);
    let (answer, answered) = std::sync::mpsc::channel();
    let done = Box::new(move |result| answer.send(result).expect("awaited"));
    group.append(vec![entry(1, 1, 5)], done).expect("append");
    std::thread::sleep(Duration::from_millis(200));
    let hanging = store.commits().mean_since(&before).expect("one is under way");
    assert!(hanging > MS * 100, "{hanging:?}");
    answered.recv().expect("an answer").expect("appended");
}
