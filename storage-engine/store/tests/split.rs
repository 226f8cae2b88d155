//! Groups that are divided: what moves, what a crash at any moment leaves, and what stands in the
//! way.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::{Blob, checkpoint, chunk, durable, entry_of, node, open, sim_small};
use curve_store::{
    Group, LogEntry, LogPosition, NewGroup, RecoveredGroup, SimDisk, StateProvider, Store,
    StoreError, Vote,
};
use curve_types::{ChunkKey, CopysetId, VolumeId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const OLD: CopysetId = CopysetId(1);
const NEW: CopysetId = CopysetId(2);
/// Entry of the old group that divides it.
const SPLIT: u64 = 20;
const CHUNKS: u32 = 6;
const BLOCKS: u32 = 8;

fn key(n: u32) -> ChunkKey {
    chunk(VolumeId::from_bytes([7; 16]), n)
}

/// Those of odd number move.
fn moves(key: &ChunkKey) -> bool {
    key.index.0 % 2 == 1
}

/// Where the entry of either group writes: anywhere before the split, among its own chunks after.
fn target(group: CopysetId, index: u64) -> (ChunkKey, u32) {
    let n = index as u32;
    let chunk = match (group, index > SPLIT) {
        (_, false) => n % CHUNKS,
        (group, true) => 2 * (n % (CHUNKS / 2)) + u32::from(group == NEW),
    };
    (key(chunk), (n / 3 % BLOCKS) * 4096)
}

/// Half of them short enough for the log's record.
fn entry(group: CopysetId, index: u64) -> LogEntry {
    let fill = [(index * 2 + u64::from(group == NEW) + 1).to_le_bytes(); 512].concat();
    let len = if index.is_multiple_of(2) { 4096 } else { 1000 };
    entry_of(1, index, &fill[..len])
}

type Contents = BTreeMap<(ChunkKey, u32), Vec<u8>>;

fn write(contents: &mut Contents, group: CopysetId, index: u64) {
    let block = contents.entry(target(group, index)).or_insert_with(|| vec![0; 4096]);
    let payload = entry(group, index).payload;
    block[..payload.len()].copy_from_slice(&payload);
}

/// What both groups hold after so many entries of each, if the split is among those.
fn expected(old: u64, new: Option<u64>) -> BTreeMap<CopysetId, Contents> {
    let mut contents = Contents::new();
    (0..old.min(SPLIT)).for_each(|index| write(&mut contents, OLD, index));
    let Some(new) = new else { return [(OLD, contents)].into() };
    let (mut moved, mut kept): (Contents, Contents) =
        contents.into_iter().partition(|((key, _), _)| moves(key));
    (SPLIT + 1..old).for_each(|index| write(&mut kept, OLD, index));
    (SPLIT + 1..new).for_each(|index| write(&mut moved, NEW, index));
    [(OLD, kept), (NEW, moved)].into()
}

fn check(group: &Group, contents: &Contents) {
    let mut keys: Vec<ChunkKey> = contents.keys().map(|(key, _)| *key).collect();
    keys.dedup();
    assert_eq!(group.chunk_keys().expect("it exists"), keys);
    for ((key, offset), bytes) in contents {
        assert_eq!(group.read(*key, *offset, 4096).expect("read"), *bytes, "{key:?} {offset}");
    }
}

fn position(index: u64) -> LogPosition {
    entry(OLD, index).position
}

/// The state of a machine that has applied so far.
fn provide(group: &Group, applied: LogPosition) -> Arc<dyn StateProvider> {
    let provider: Arc<dyn StateProvider> = Arc::new(Blob(Some(applied), Bytes::from_static(b"s")));
    group.set_state_provider(&provider);
    provider
}

/// Its state moves with each entry.
struct Host {
    group: Group,
    provider: Option<Arc<dyn StateProvider>>,
}

impl Host {
    fn apply(
        &mut self,
        index: u64,
        done: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
    ) -> Result<(), StoreError> {
        let id = self.group.id();
        let entry = entry(id, index);
        let apply = self.group.begin_apply(index)?;
        if id == OLD && index == SPLIT {
            let vote = Vote { term: 1, node: Some(node()), committed: false };
            let state = Bytes::from_static(b"new");
            apply.split(NewGroup { id: NEW, vote, applied: entry.position, state }, moves, done);
        } else {
            let (key, offset) = target(id, index);
            apply.write_payload(entry.position, key, offset, entry.payload)?;
        }
        self.provider = Some(provide(&self.group, entry.position));
        drop(apply);
        Ok(())
    }
}

#[derive(Default)]
struct Acknowledged {
    old: u64,
    new: Option<u64>,
}

/// Brings both groups from where they are to the end of their work; stops at the disk's failure.
fn work(
    store: &Store,
    found: Vec<RecoveredGroup>,
    known: &mut Acknowledged,
) -> Result<(), StoreError> {
    let mut hosts = BTreeMap::new();
    for RecoveredGroup { group, applied, log_state, .. } in found {
        let mut host = Host { group: group.clone(), provider: None };
        host.provider = applied.map(|applied| provide(&group, applied));
        let next = log_state.last.map_or(0, |last| last.index + 1);
        let from = applied.map_or(0, |applied| applied.index + 1);
        hosts.insert(group.id(), (host, from, next));
    }
    if hosts.is_empty() {
        let group = durable(|done| store.create_group(OLD, done))?;
        hosts.insert(OLD, (Host { group, provider: None }, 0, 0));
    }
    let formed = Arc::new(AtomicBool::new(hosts.contains_key(&NEW)));
    for step in 0..2 * SPLIT {
        let id = if step % 2 == 1 && hosts.contains_key(&NEW) { NEW } else { OLD };
        let (host, from, next) = hosts.get_mut(&id).expect("it is there");
        if *next == *from {
            durable(|done| host.group.append(vec![entry(id, *next)], done))?;
            *next += 1;
        }
        let told = formed.clone();
        host.apply(*from, Box::new(move |result| told.store(result.is_ok(), Ordering::SeqCst)))?;
        *from += 1;
        match id {
            OLD => known.old = known.old.max(*next),
            _ => known.new = known.new.max(Some(*next)),
        }
        if formed.load(Ordering::SeqCst) && !hosts.contains_key(&NEW) {
            known.new = known.new.max(Some(SPLIT + 1));
            let group = store.group(NEW).expect("it is formed");
            hosts.insert(NEW, (Host { group, provider: None }, SPLIT + 1, SPLIT + 1));
        }
        if step % 7 == 6 {
            checkpoint(store)?;
        }
    }
    Ok(())
}

/// Opens, checks that what was acknowledged is there, in its group alone.
fn reopen(disk: &Arc<SimDisk>, known: &Acknowledged) -> (Store, Vec<RecoveredGroup>) {
    let (store, found) = open(disk);
    let new = found.iter().find(|found| found.group.id() == NEW);
    assert!(new.is_some() || known.new.is_none(), "it was formed");
    for found in &found {
        let id = found.group.id();
        let last = found.log_state.last.map_or(0, |last| last.index + 1);
        let acknowledged = if id == OLD { Some(known.old) } else { known.new };
        assert!(Some(last) >= acknowledged, "{id}: {last} of {acknowledged:?}");
        let applied = found.applied.map_or(0, |applied| applied.index + 1);
        assert_eq!(
            new.is_some(),
            found.applied >= Some(position(SPLIT)) || id == NEW && applied > SPLIT
        );
        let split = new.is_some().then_some(applied);
        check(&found.group, &expected(applied, split)[&id]);
    }
    (store, found)
}

#[test]
fn a_group_is_divided_whenever_the_power_goes() {
    for seed in 0..150 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = sim_small(64 << 20, 1 << 20, 2_000);
        let mut known = Acknowledged::default();
        let (mut store, mut found) = open(&disk);
        for crashes in 0..5 {
            // The last one comes when all is done.
            let after = if crashes < 4 { rng.random_range(0..90) } else { u64::MAX / 2 };
            disk.crash_at(disk.operations() + after);
            let worked = work(&store, found, &mut known);
            assert!(crashes < 4 || worked.is_ok(), "seed {seed}: {worked:?}");
            disk.crash_at(disk.operations());
            drop(store);
            let odds = *[0.0, 0.5, 1.0].get(rng.random_range(0..3)).expect("in range");
            disk = Arc::new(disk.after_crash(|| rng.random_bool(odds)));
            (store, found) = reopen(&disk, &known);
        }
        let last =
            |id| found.iter().find(|found| found.group.id() == id).expect("both").log_state.last;
        assert!(last(OLD).is_some_and(|last| last.index > SPLIT), "seed {seed}");
        assert!(last(NEW).is_some_and(|last| last.index > SPLIT), "seed {seed}");
    }
}

/// A store whose old group has applied the entries before the split.
fn prepared() -> (Arc<SimDisk>, Store, Host) {
    let disk = sim_small(64 << 20, 1 << 20, 2_000);
    let (store, _) = open(&disk);
    let group = durable(|done| store.create_group(OLD, done)).expect("create");
    let mut host = Host { group, provider: None };
    for index in 0..=SPLIT {
        durable(|done| host.group.append(vec![entry(OLD, index)], done)).expect("append");
        if index < SPLIT {
            host.apply(index, Box::new(|_| ())).expect("apply");
        }
    }
    (disk, store, host)
}

fn split(host: &mut Host) -> Result<(), StoreError> {
    durable(|done| host.apply(SPLIT, done))
}

#[test]
fn who_reads_the_old_group_as_it_was_still_can() {
    let (_disk, store, mut host) = prepared();
    let view = host.group.view().expect("view");
    split(&mut host).expect("split");
    let group = store.group(NEW).expect("formed");
    let mut new = Host { group, provider: None };
    for index in SPLIT + 1..SPLIT + 60 {
        durable(|done| new.group.append(vec![entry(NEW, index)], done)).expect("append");
        new.apply(index, Box::new(|_| ())).expect("apply");
        checkpoint(&store).expect("checkpoint");
        durable(|done| new.group.purge(position(index), done)).expect("purge");
    }
    assert!(store.usage().data_blocks_pinned > 0);
    for ((key, offset), bytes) in &expected(SPLIT, None)[&OLD] {
        let read = view.read(*key, offset / 4096..offset / 4096 + 1).expect("read");
        assert_eq!(read, *bytes);
    }
    drop(view);
    checkpoint(&store).expect("checkpoint");
    assert_eq!(store.usage().data_blocks_pinned, 0);
}

#[test]
fn a_group_that_is_there_gets_nothing() {
    let (disk, store, mut host) = prepared();
    let there = durable(|done| store.create_group(NEW, done)).expect("create");
    let error = split(&mut host).expect_err("it exists");
    assert!(error.to_string().contains("exists already"), "{error}");
    assert_eq!(there.chunk_keys().expect("keys"), []);
    checkpoint(&store).expect("checkpoint");
    let kept = expected(SPLIT, Some(0)).remove(&OLD).expect("it");
    check(&host.group, &kept);
    assert_eq!(store.usage().data_blocks_used, kept.len() as u64);
    drop((host, there, store));
    let (_store, found) = open(&disk);
    check(&found[0].group, &kept);
}

#[test]
fn what_left_a_group_that_is_removed_goes_with_it_or_stays_whole() {
    for _ in 0..20 {
        let (disk, store, mut host) = prepared();
        let (answer, answered) = std::sync::mpsc::channel();
        host.apply(SPLIT, Box::new(move |result| drop(answer.send(result)))).expect("apply");
        durable(|done| store.remove_group(OLD, done)).expect("remove");
        let formed = answered.recv().expect("an answer").is_ok();
        assert_eq!(store.group(NEW).is_some(), formed);
        checkpoint(&store).expect("checkpoint");
        let moved = expected(SPLIT, Some(SPLIT)).remove(&NEW).expect("it");
        let used = if formed { moved.len() as u64 } else { 0 };
        assert_eq!(store.usage().data_blocks_used, used);
        drop((host, store));
        let (_store, found) = open(&disk);
        assert_eq!(found.len(), usize::from(formed));
        found.iter().for_each(|found| check(&found.group, &moved));
    }
}
