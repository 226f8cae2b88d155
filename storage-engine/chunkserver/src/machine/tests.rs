//! The state machine over a real store, against a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;

use curve_store::{
    ChunkHead, CopyOf, FormatOptions, Group, SimDisk, Store, StoreOptions, Written, format,
};
use curve_types::{
    BLOCK_SIZE, ChunkIndex, ChunkKey, ClusterId, CopysetId, DeviceId, Epoch, SHARDS_PER_POOL,
    SessionId, VolumeId,
};
use curve_wire::chunk::{Writer, decode_reply};
use proptest::prelude::*;

use super::*;

const DISK: u64 = 64 << 20;
/// Commands touch this much of each chunk.
const SPAN: u32 = 6 * BLOCK_SIZE as u32;

/// One replica of copyset 1 on a disk in memory.
struct Rig {
    disk: Arc<SimDisk>,
    store: Store,
    group: Group,
    machine: BlockMachine,
    /// Of the last command.
    index: u64,
}

/// Of a chunk: when it was changed last, what it is a copy of, and when its blocks were written.
type ChunkHistory = (ChunkKey, u64, Option<CopyOf>, Vec<(Range<u32>, Vec<Written>)>);

/// From one command's index to the next: several share the unit in which the store remembers when
/// a block was written, and some do not.
const STEP: u64 = 25;

impl Rig {
    fn new() -> Self {
        let disk = SimDisk::new(DISK);
        let options = FormatOptions {
            cluster: ClusterId::random(),
            device: DeviceId::random(),
            name: "test".into(),
            size: DISK,
        };
        format(&disk, &options).expect("format");
        let disk = Arc::new(disk);
        let (store, _) = Store::open(disk.clone(), StoreOptions::default()).expect("open");
        let group = store.create_group(CopysetId(1), Box::new(|_| {})).expect("create");
        let machine =
            BlockMachine::open(SharedState::default(), DigestSlot::default(), None).expect("empty");
        Self { disk, store, group, machine, index: 0 }
    }

    /// As it is after a restart.
    fn reopened(self) -> Self {
        let Self { disk, store, group, machine, index } = self;
        let (sender, done) = mpsc::channel();
        store.checkpoint(Box::new(move |result| drop(sender.send(result))));
        done.recv().expect("called").expect("durable");
        let state = machine.state();
        drop((group, store));
        let (store, found) = Store::open(disk.clone(), StoreOptions::default()).expect("open");
        let machine =
            BlockMachine::open(SharedState::default(), DigestSlot::default(), Some(state))
                .expect("valid");
        Self { disk, store, group: found[0].group.clone(), machine, index }
    }

    fn run(&mut self, command: &Command) -> ChunkReply {
        let answer = self.answer(command);
        assert!(answer.division.is_none(), "{command:?}");
        decode_reply(&answer.reply).expect("an answer")
    }

    fn answer(&mut self, command: &Command) -> Answer {
        let (header, payload) = command.encode();
        self.index += STEP;
        let apply = self.group.begin_apply(self.index).expect("apply");
        let position = LogPosition { index: self.index, ..LogPosition::default() };
        self.machine.apply(&apply, position, header, payload).expect("no disk error")
    }

    fn digest(&mut self) -> Option<u64> {
        assert_eq!(self.run(&Command::Digest { scrub: self.index }), Ok(Bytes::new()));
        let digest = &self.machine.digest;
        digest.make();
        digest.of(self.index - STEP).expect("made").value
    }

    fn read(&self, key: ChunkKey) -> Bytes {
        self.group.read(key, 0, SPAN).expect("read")
    }

    /// All that is known of when chunks and their blocks were written.
    fn history(&self) -> Vec<ChunkHistory> {
        let view = self.group.view().expect("view");
        let of = |key: ChunkKey| {
            // What two chunks share is not part of it: a replica may have got it as bytes.
            let ChunkHead { changed, copy, .. } = view.delta(key, None).head;
            let runs = view.block_ranges(key).into_iter();
            let written = runs.map(|run| (run.clone(), view.written(key, run)));
            (key, changed, copy, written.collect())
        };
        view.chunks().into_iter().map(of).collect()
    }
}

/// What the commands should have done.
#[derive(Default)]
struct Model {
    min_epoch: BTreeMap<VolumeId, u64>,
    seen: BTreeMap<(VolumeId, SessionId), (u64, u64)>,
    deleted: BTreeSet<VolumeId>,
    bytes: BTreeMap<ChunkKey, Vec<u8>>,
    /// With what each is of.
    snapshots: BTreeMap<VolumeId, VolumeId>,
    /// With what each is frozen for.
    frozen: BTreeMap<VolumeId, VolumeId>,
    restored: BTreeMap<VolumeId, u64>,
}

impl Model {
    fn copy(&mut self, from: VolumeId, to: VolumeId) {
        self.bytes.retain(|key, _| key.volume != to);
        for index in (0..2).map(ChunkIndex) {
            if let Some(bytes) = self.bytes.get(&ChunkKey { volume: from, index }).cloned() {
                self.bytes.insert(ChunkKey { volume: to, index }, bytes);
            }
        }
    }

    fn snapshot(&mut self, volume: VolumeId, snapshot: VolumeId) -> ChunkReply {
        let frozen_for = self.frozen.get(&volume).copied();
        match self.snapshots.get(&snapshot) {
            _ if self.deleted.contains(&snapshot) => Err(ChunkError::Deleted),
            Some(of) if *of != volume => Err(ChunkError::BadRequest),
            Some(_) if frozen_for == Some(snapshot) => Ok(Bytes::new()),
            Some(_) => Err(ChunkError::Thawed),
            None if frozen_for.is_some() => Err(ChunkError::Frozen),
            None => {
                self.snapshots.insert(snapshot, volume);
                self.frozen.insert(volume, snapshot);
                self.copy(volume, snapshot);
                Ok(Bytes::new())
            }
        }
    }

    fn restore(&mut self, volume: VolumeId, snapshot: VolumeId, epoch: u64) -> ChunkReply {
        if self.restored.get(&volume).is_some_and(|done| *done >= epoch) {
            return Ok(Bytes::new());
        }
        if !self.snapshots.contains_key(&snapshot) || self.snapshots.contains_key(&volume) {
            return Err(ChunkError::BadRequest);
        }
        self.restored.insert(volume, epoch);
        let fence = self.min_epoch.entry(volume).or_default();
        *fence = epoch.max(*fence);
        self.copy(snapshot, volume);
        Ok(Bytes::new())
    }

    fn run(&mut self, command: &Command) -> ChunkReply {
        let volume = command.volume().expect("commands about volumes only");
        if let Command::DeleteVolume { .. } = command {
            self.deleted.insert(volume);
            self.bytes.retain(|key, _| key.volume != volume);
            self.snapshots.remove(&volume);
            self.frozen.retain(|of, snapshot| *of != volume && *snapshot != volume);
            return Ok(Bytes::new());
        }
        if let Command::Thaw { snapshot, .. } = command {
            self.frozen.retain(|of, known| (*of, &*known) != (volume, snapshot));
            return Ok(Bytes::new());
        }
        if self.deleted.contains(&volume) {
            return Err(ChunkError::Deleted);
        }
        let (range, writer) = match command {
            Command::Fence { min_epoch, .. } => {
                let known = self.min_epoch.entry(volume).or_default();
                *known = min_epoch.0.max(*known);
                return Ok(Bytes::new());
            }
            Command::Revoke { session, min_epoch, .. } => {
                let seen = self.seen.entry((volume, *session)).or_default();
                *seen = if min_epoch.0 > seen.0 { (min_epoch.0, 0) } else { *seen };
                return Ok(Bytes::new());
            }
            Command::Write { range, writer, .. }
            | Command::WriteZeroes { range, writer }
            | Command::Discard { range, writer } => (range, writer),
            Command::Snapshot { snapshot, .. } => return self.snapshot(volume, *snapshot),
            Command::Restore { snapshot, epoch, .. } => {
                return self.restore(volume, *snapshot, epoch.0);
            }
            Command::DeleteVolume { .. }
            | Command::Thaw { .. }
            | Command::Digest { .. }
            | Command::Split { .. } => unreachable!("handled above"),
        };
        let fence = self.min_epoch.get(&volume).copied().unwrap_or(0);
        let seen = self.seen.get(&(volume, writer.session)).copied().unwrap_or((0, 0));
        let required = fence.max(seen.0);
        if writer.epoch.0 < required {
            return Err(ChunkError::Fenced { min_epoch: Epoch(required) });
        }
        if self.frozen.contains_key(&volume) {
            return Err(ChunkError::Frozen);
        }
        let floor = if writer.epoch.0 > seen.0 { writer.floor } else { seen.1.max(writer.floor) };
        self.seen.insert((volume, writer.session), (writer.epoch.0, floor));
        if writer.seq < floor {
            return Err(ChunkError::Stale);
        }
        let (start, end) = (range.offset as usize, (range.offset + range.len) as usize);
        let bytes = self.bytes.entry(range.key).or_insert_with(|| vec![0; SPAN as usize]);
        match command {
            Command::Write { data, .. } => bytes[start..end].copy_from_slice(data),
            Command::WriteZeroes { .. } => bytes[start..end].fill(0),
            _ => {
                let block = BLOCK_SIZE as usize;
                let (first, last) = (start.next_multiple_of(block), end / block * block);
                if first < last {
                    bytes[first..last].fill(0);
                }
            }
        }
        Ok(Bytes::new())
    }
}

fn volume(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 16])
}

fn key(n: u8, index: u32) -> ChunkKey {
    ChunkKey { volume: volume(n), index: ChunkIndex(index) }
}

fn writer(epoch: u64, seq: u64, floor: u64) -> Writer {
    Writer { session: SessionId(1), epoch: Epoch(epoch), seq, floor }
}

fn write(writer: Writer, fill: u8) -> Command {
    let range = ChunkRange { key: key(1, 0), offset: 0, len: BLOCK_SIZE as u32 };
    Command::Write { range, writer, data: Bytes::from(vec![fill; BLOCK_SIZE as usize]) }
}

#[test]
fn a_fence_refuses_lower_epochs_for_good() {
    let mut rig = Rig::new();
    let fence = |epoch| Command::Fence { volume: volume(1), min_epoch: Epoch(epoch) };
    assert_eq!(rig.run(&write(writer(5, 1, 1), 1)), Ok(Bytes::new()));
    assert_eq!(rig.run(&fence(7)), Ok(Bytes::new()));
    assert_eq!(rig.run(&fence(3)), Ok(Bytes::new()), "lowering is no error, and no effect");
    let fenced = Err(ChunkError::Fenced { min_epoch: Epoch(7) });
    assert_eq!(rig.run(&write(writer(6, 2, 2), 2)), fenced);
    assert_eq!(rig.read(key(1, 0))[0], 1);
    let state = rig.machine.state.read().expect("unpoisoned").clone();
    assert!(state.check_read(volume(1), SessionId(1), Epoch(6)).is_err());
    assert!(state.check_read(volume(1), SessionId(1), Epoch(7)).is_ok());
    assert_eq!(rig.run(&write(writer(7, 1, 1), 3)), Ok(Bytes::new()));
}

#[test]
fn a_revoked_session_ends_alone_and_stays_ended() {
    let mut rig = Rig::new();
    let of = |session, epoch| Writer { session: SessionId(session), ..writer(epoch, 1, 1) };
    let revoke = Command::Revoke { volume: volume(1), session: SessionId(1), min_epoch: Epoch(8) };
    assert_eq!(rig.run(&write(of(1, 7), 1)), Ok(Bytes::new()));
    assert_eq!(rig.run(&revoke), Ok(Bytes::new()));
    assert_eq!(rig.run(&revoke), Ok(Bytes::new()), "again is no error");
    let fenced = Err(ChunkError::Fenced { min_epoch: Epoch(8) });
    assert_eq!(rig.run(&write(of(1, 7), 2)), fenced);
    assert_eq!(rig.run(&write(of(2, 7), 3)), Ok(Bytes::new()), "the other goes on");
    // As a replica has it that learned all this from a snapshot.
    let state = rig.machine.state.read().expect("unpoisoned").encode();
    let mut state = BlockState::decode(&state).expect("valid");
    assert!(state.check_read(volume(1), SessionId(1), Epoch(7)).is_err());
    assert!(state.check_read(volume(1), SessionId(2), Epoch(7)).is_ok());
    // However many sessions come and go at that epoch.
    for session in 3..600 {
        assert_eq!(state.admit(volume(1), &of(session, 7)), Ok(()), "session {session}");
    }
    assert!(state.admit(volume(1), &of(1, 7)).is_err());
    state.delete(volume(1));
    assert_eq!(state.revoke(volume(1), SessionId(2), Epoch(8)), Err(ChunkError::Deleted));
}

#[test]
fn a_delayed_duplicate_below_the_floor_is_stale() {
    let mut rig = Rig::new();
    let first = write(writer(1, 1, 1), 1);
    assert_eq!(rig.run(&first), Ok(Bytes::new()));
    assert_eq!(rig.run(&first), Ok(Bytes::new()), "a retry of what is unresolved is carried out");
    assert_eq!(rig.run(&write(writer(1, 2, 2), 2)), Ok(Bytes::new()));
    assert_eq!(rig.run(&first), Err(ChunkError::Stale));
    assert_eq!(rig.read(key(1, 0))[0], 2);
}

#[test]
fn a_new_incarnation_fences_the_last_one_and_counts_afresh() {
    let mut rig = Rig::new();
    assert_eq!(rig.run(&write(writer(1, 90, 90), 1)), Ok(Bytes::new()));
    assert_eq!(rig.run(&write(writer(2, 1, 1), 2)), Ok(Bytes::new()));
    let late = rig.run(&write(writer(1, 91, 91), 3));
    assert_eq!(late, Err(ChunkError::Fenced { min_epoch: Epoch(2) }));
    assert_eq!(rig.read(key(1, 0))[0], 2);
}

#[test]
fn a_split_moves_chunks_and_both_parts_know_what_was_known() {
    let mut rig = Rig::new();
    let moved = key(1, 0);
    let shard = chunk_shard(moved).0;
    let shards = ShardRange { first: shard, end: shard + 1 };
    let kept = (1..).map(|index| key(1, index)).find(|key| chunk_shard(*key).0 != shard);
    let kept = kept.expect("chunks lie in several shards");
    let to = |key, writer| {
        let range = ChunkRange { key, offset: 0, len: 1 };
        Command::Write { range, writer, data: Bytes::from_static(b"x") }
    };
    assert_eq!(rig.run(&to(moved, writer(3, 1, 1))), Ok(Bytes::new()));
    let split = |shards| Command::Split { to: CopysetId(2), shards };
    for wrong in [(5, 5), (6, 5), (0, SHARDS_PER_POOL + 1)] {
        let shards = ShardRange { first: wrong.0, end: wrong.1 };
        assert_eq!(rig.run(&split(shards)), Err(ChunkError::BadRequest), "{shards:?}");
    }
    let (of, snapshot) = (volume(1), volume(9));
    assert_eq!(rig.run(&Command::Snapshot { volume: of, snapshot }), Ok(Bytes::new()));
    assert_eq!(rig.run(&split(shards)), Err(ChunkError::Frozen));
    assert_eq!(rig.run(&Command::Thaw { volume: of, snapshot }), Ok(Bytes::new()));

    let answer = rig.answer(&split(shards));
    assert_eq!(decode_reply(&answer.reply), Ok(Ok(Bytes::new())));
    let Division { id, state, moves } = answer.division.expect("it is divided");
    assert_eq!((id, moves(&moved), moves(&kept)), (CopysetId(2), true, false));
    assert_eq!(rig.run(&split(shards)), Ok(Bytes::new()), "once");
    let overlapping = Command::Split { to: CopysetId(3), shards };
    assert_eq!(rig.run(&overlapping), Err(ChunkError::BadRequest));
    assert_eq!(rig.run(&to(moved, writer(3, 2, 1))), Err(ChunkError::Moved));
    assert_eq!(rig.run(&to(kept, writer(3, 2, 1))), Ok(Bytes::new()));
    let state = BlockState::decode(&state).expect("valid");
    let fenced = Err(ChunkError::Fenced { min_epoch: Epoch(3) });
    assert_eq!(state.check_write(of, &writer(2, 9, 9)), fenced);
    assert_eq!((state.check_moved(moved), state.has_left(id)), (Ok(()), false));

    let mut rig = rig.reopened();
    assert_eq!(rig.run(&to(moved, writer(3, 3, 1))), Err(ChunkError::Moved));
    assert_eq!(rig.run(&split(shards)), Ok(Bytes::new()));
}

#[test]
fn a_snapshot_freezes_until_it_is_thawed_and_is_taken_once() {
    let mut rig = Rig::new();
    let (of, snapshot) = (volume(1), volume(9));
    let take = Command::Snapshot { volume: of, snapshot };
    let thaw = Command::Thaw { volume: of, snapshot };
    assert_eq!(rig.run(&write(writer(1, 1, 1), 1)), Ok(Bytes::new()));
    assert_eq!(rig.run(&take), Ok(Bytes::new()));
    assert_eq!(rig.run(&take), Ok(Bytes::new()), "again is no error while it lasts");
    assert_eq!(rig.run(&write(writer(1, 2, 2), 2)), Err(ChunkError::Frozen));
    let other = Command::Snapshot { volume: of, snapshot: volume(8) };
    assert_eq!(rig.run(&other), Err(ChunkError::Frozen), "one at a time");
    assert_eq!(rig.run(&thaw), Ok(Bytes::new()));
    assert_eq!(rig.run(&write(writer(1, 2, 2), 2)), Ok(Bytes::new()));
    assert_eq!(rig.run(&take), Err(ChunkError::Thawed), "it would be of another time");
    assert_eq!((rig.read(key(1, 0))[0], rig.read(key(9, 0))[0]), (2, 1));
    let range = ChunkRange { key: key(9, 0), offset: 0, len: 1 };
    let into = Command::Discard { range, writer: writer(9, 9, 9) };
    assert_eq!(rig.run(&into), Err(ChunkError::Forbidden), "nobody writes a snapshot");

    // The second freeze ends with its snapshot's deletion.
    assert_eq!(rig.run(&other), Ok(Bytes::new()));
    assert_eq!(rig.run(&Command::DeleteVolume { volume: volume(8) }), Ok(Bytes::new()));
    assert_eq!(rig.run(&write(writer(1, 3, 3), 3)), Ok(Bytes::new()));
    assert_eq!(rig.run(&other), Err(ChunkError::Deleted));

    let back = Command::Restore { volume: of, snapshot, epoch: Epoch(5) };
    assert_eq!(rig.run(&back), Ok(Bytes::new()));
    assert_eq!(rig.read(key(1, 0))[0], 1);
    let fenced = Err(ChunkError::Fenced { min_epoch: Epoch(5) });
    assert_eq!(rig.run(&write(writer(1, 4, 4), 4)), fenced);
    assert_eq!(rig.run(&write(writer(6, 1, 1), 4)), Ok(Bytes::new()));
    assert_eq!(rig.run(&back), Ok(Bytes::new()), "a delayed duplicate is done");
    assert_eq!(rig.read(key(1, 0))[0], 4, "and changes nothing");
    let from_nothing = Command::Restore { volume: of, snapshot: volume(7), epoch: Epoch(9) };
    assert_eq!(rig.run(&from_nothing), Err(ChunkError::BadRequest));
}

#[test]
fn a_deleted_volume_does_not_come_back() {
    let mut rig = Rig::new();
    assert_eq!(rig.run(&write(writer(1, 1, 1), 1)), Ok(Bytes::new()));
    assert_eq!(rig.run(&Command::DeleteVolume { volume: volume(1) }), Ok(Bytes::new()));
    assert_eq!(rig.run(&Command::DeleteVolume { volume: volume(1) }), Ok(Bytes::new()));
    assert_eq!(rig.run(&write(writer(9, 2, 2), 2)), Err(ChunkError::Deleted));
    let fence = Command::Fence { volume: volume(1), min_epoch: Epoch(10) };
    assert_eq!(rig.run(&fence), Err(ChunkError::Deleted));
    assert!(rig.read(key(1, 0)).iter().all(|byte| *byte == 0));
}

#[test]
fn malformed_commands_in_the_log_are_answered() {
    let mut rig = Rig::new();
    let apply = rig.group.begin_apply(STEP).expect("apply");
    let answer =
        rig.machine.apply(&apply, LogPosition::default(), Bytes::from_static(b"x"), Bytes::new());
    let reply = decode_reply(&answer.expect("no disk error").reply).expect("an answer");
    assert_eq!(reply, Err(ChunkError::BadRequest));
}

#[test]
fn sessions_and_deletions_are_bounded() {
    let mut state = BlockState::default();
    for n in 1..=400 {
        let writer = Writer { session: SessionId(n), epoch: Epoch(n), seq: 1, floor: 1 };
        assert_eq!(state.admit(volume(1), &writer), Ok(()));
    }
    assert!(state.check_read(volume(1), SessionId(1), Epoch(1)).is_err(), "the oldest are fenced");
    assert!(state.check_read(volume(1), SessionId(400), Epoch(400)).is_ok());
    (0..5000u64).for_each(|_| state.delete(VolumeId::random()));
    assert!(state.encode().len() < 80 << 10);
    assert_eq!(BlockState::decode(&state.encode()), Ok(state));
}

#[test]
fn too_many_sessions_at_one_epoch_fence_nobody() {
    let mut state = BlockState::default();
    let writer = |n, epoch| Writer { session: SessionId(n), epoch: Epoch(epoch), seq: 2, floor: 2 };
    for n in 1..=400 {
        assert_eq!(state.admit(volume(1), &writer(n, 7)), Ok(()), "session {n}");
    }
    for n in [1, 200, 400] {
        assert_eq!(state.check_read(volume(1), SessionId(n), Epoch(7)), Ok(()), "session {n}");
    }
    assert!(state.encode().len() < 8 << 10, "the oldest are forgotten");
    // Those that are remembered keep their floors, and their incarnations fence no others.
    let late = Writer { seq: 1, floor: 1, ..writer(390, 7) };
    assert_eq!(state.admit(volume(1), &late), Err(ChunkError::Stale));
    assert_eq!(state.admit(volume(1), &writer(400, 8)), Ok(()));
    assert_eq!(state.admit(volume(1), &writer(401, 9)), Ok(()));
    assert_eq!(state.admit(volume(1), &writer(399, 7)), Ok(()));
}

#[test]
fn every_cut_of_a_state_is_refused() {
    let mut state = BlockState::default();
    state.fence(volume(1), Epoch(4)).expect("not deleted");
    state.admit(volume(2), &writer(1, 1, 1)).expect("not fenced");
    state.delete(volume(3));
    assert_eq!(state.snapshot(volume(2), volume(4)), Ok(true));
    assert_eq!(state.restore(volume(1), volume(4), Epoch(5)), Ok(true));
    let whole = state.encode();
    assert_eq!(BlockState::decode(&whole).as_ref(), Ok(&state));
    for len in 0..whole.len() {
        assert!(BlockState::decode(&whole[..len]).is_err(), "{len} bytes");
    }
    assert!(BlockState::decode(&[&whole[..], b"x"].concat()).is_err());
    let twice = [&[2, 2, 0, 0, 0][..], &[0; 68], &[0; 68], &[0; 4]].concat();
    assert!(BlockState::decode(&twice).is_err(), "the same volume twice");
}

#[test]
fn nonsense_is_no_snapshot_part() {
    let record = |kind: u8, first: u32, count: u32, rest: usize| {
        let key = [&[kind][..], &[1; 16], &[0; 4]].concat();
        let blocks = [&first.to_le_bytes()[..], &count.to_le_bytes()].concat();
        Bytes::from([key, blocks, vec![0; rest]].concat())
    };
    for (kind, first, count, rest) in
        [(0, 7, 7, 0), (1, 7, 7, 0), (2, 7, 7, 128), (3, 0, 1, 4100), (3, 1023, 1, 4100)]
    {
        let decoded = snapshot::decode(record(kind, first, count, rest)).expect("valid");
        assert_eq!(decoded.len(), 1, "{kind} {first}+{count}");
    }
    for (kind, first, count, rest) in [
        (2, 7, 7, 127),
        (3, 0, 0, 0),
        (3, 0, 1, 4099),
        (3, 0, 2, 4100),
        (3, 1024, 1, 4100),
        (3, u32::MAX, u32::MAX, 4100),
        (4, 0, 0, 0),
    ] {
        let error = snapshot::decode(record(kind, first, count, rest)).expect_err("nonsense");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{kind} {first}+{count}");
    }
    assert!(snapshot::decode(Bytes::from_static(b"short")).is_err());
}

/// Few values everywhere, so that commands meet.
fn any_command() -> impl Strategy<Value = Command> {
    let range = (1..3u8, 0..2u32, 0..SPAN - 1).prop_flat_map(|(volume, index, offset)| {
        (1..=SPAN - offset).prop_map(move |len| ChunkRange { key: key(volume, index), offset, len })
    });
    let writer =
        (1..3u64, 1..5u64, 0..12u64, 0..4u64).prop_map(|(session, epoch, floor, ahead)| Writer {
            session: SessionId(session),
            epoch: Epoch(epoch),
            seq: floor + ahead,
            floor,
        });
    let io = (range, writer, any::<u8>(), 0..4u8).prop_map(|(range, writer, fill, op)| match op {
        0 => Command::WriteZeroes { range, writer },
        1 => Command::Discard { range, writer },
        _ => Command::Write { range, writer, data: Bytes::from(vec![fill; range.len as usize]) },
    });
    let fence = (1..3u8, 1..5u64)
        .prop_map(|(n, epoch)| Command::Fence { volume: volume(n), min_epoch: Epoch(epoch) });
    let revoke = (1..3u8, 1..3u64, 1..5u64).prop_map(|(n, session, epoch)| Command::Revoke {
        volume: volume(n),
        session: SessionId(session),
        min_epoch: Epoch(epoch),
    });
    let id = prop_oneof![1..3u8, 10..13u8];
    let delete = id.prop_map(|n| Command::DeleteVolume { volume: volume(n) });
    let pair = || (1..3u8, 10..13u8).prop_map(|(of, snapshot)| (volume(of), volume(snapshot)));
    let snapshot = pair().prop_map(|(volume, snapshot)| Command::Snapshot { volume, snapshot });
    let thaw = pair().prop_map(|(volume, snapshot)| Command::Thaw { volume, snapshot });
    let restore = (pair(), 1..4u64).prop_map(|((volume, snapshot), epoch)| Command::Restore {
        volume,
        snapshot,
        epoch: Epoch(epoch),
    });
    prop_oneof![
        40 => io, 4 => fence, 4 => revoke, 1 => delete, 6 => snapshot, 8 => thaw, 3 => restore
    ]
}

/// Brings another replica up to date, as a Raft snapshot does; `since` is what it says it has. The
/// answer is how many bytes that took.
fn transfer(from: &Rig, to: &mut Rig, since: Option<u64>) -> io::Result<usize> {
    let view = from.group.view().expect("view");
    let mut source = from.machine.snapshot(view);
    if let Some(since) = since {
        source.since(since);
    }
    let mut sink = to.machine.begin_install();
    let install = to.group.begin_install().expect("install");
    let mut bytes = 0;
    while let Some(part) = source.next().expect("read") {
        assert!(part.len() <= 1 << 20);
        bytes += part.len();
        sink.put(&install, part)?;
    }
    let (sender, done) = mpsc::channel();
    let state = from.machine.state();
    let position = LogPosition { term: 1, node: DeviceId::random(), index: from.index };
    install.commit(
        position,
        state.clone(),
        Box::new(move |result| {
            let _ = sender.send(result);
        }),
    );
    done.recv().expect("called").expect("durable");
    to.machine.restore(state).expect("valid state");
    to.index = from.index;
    Ok(bytes)
}

fn write_block(seq: u64, index: u32, block: u32) -> Command {
    let offset = block * BLOCK_SIZE as u32;
    let range = ChunkRange { key: key(1, index), offset, len: BLOCK_SIZE as u32 };
    let data = Bytes::from(vec![seq as u8; BLOCK_SIZE as usize]);
    Command::Write { range, writer: writer(1, seq, seq), data }
}

#[test]
fn a_replica_that_was_away_is_sent_what_changed() {
    let (mut rig, mut away) = (Rig::new(), Rig::new());
    for seq in 0..600 {
        let command = write_block(seq, seq as u32 % 3, seq as u32 / 3);
        for replica in [&mut rig, &mut away] {
            replica.run(&command).expect("accepted");
        }
    }
    let since = away.index;
    rig.index += 1000;
    rig.run(&write_block(600, 1, 5)).expect("accepted");

    let all = transfer(&rig, &mut Rig::new(), None).expect("whole");
    assert!(all > 600 * 4096, "{all} bytes");
    // One block is new, and three share the unit of the last that the replica has.
    let sent = transfer(&rig, &mut away, Some(since)).expect("fits");
    assert!((4096..5 * 4100 + 600).contains(&sent), "{sent} bytes");
    assert_eq!(away.history(), rig.history());
    for index in 0..3 {
        let read = |rig: &Rig| rig.group.read(key(1, index), 0, 200 * 4096).expect("read");
        assert_eq!(read(&away), read(&rig), "chunk {index}");
    }

    // One that does not have what it says is told so, and stays what it is.
    let mut blank = Rig::new();
    let error = transfer(&rig, &mut blank, Some(since)).expect_err("nothing is there");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(blank.history().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn replicas_agree_with_the_model_and_with_each_other(
        before in prop::collection::vec(any_command(), 1..40),
        after in prop::collection::vec(any_command(), 0..20),
        common in any::<prop::sample::Index>(),
        restarts in any::<[bool; 3]>(),
    ) {
        let restart = |rig: Rig, n: usize| if restarts[n] { rig.reopened() } else { rig };
        let (mut rig, mut model) = (Rig::new(), Model::default());
        for command in &before {
            prop_assert_eq!(rig.run(command), model.run(command));
        }
        let mut other = Rig::new();
        let common = common.index(before.len() + 1);
        for command in &before[..common] {
            let _ = other.run(command);
        }
        let since = (common > 0).then_some(other.index);
        (rig, other) = (restart(rig, 0), restart(other, 1));
        transfer(&rig, &mut other, since).expect("fits");
        other = restart(other, 2);
        prop_assert_eq!(rig.history(), other.history());
        for command in &after {
            let expected = model.run(command);
            prop_assert_eq!(&rig.run(command), &expected);
            prop_assert_eq!(&other.run(command), &expected);
        }
        prop_assert_eq!(rig.machine.state(), other.machine.state());
        let digest = rig.digest();
        prop_assert!(digest.is_some());
        prop_assert_eq!(digest, other.digest());
        for key in [1, 2, 10, 11, 12].into_iter().flat_map(|n| [key(n, 0), key(n, 1)]) {
            let expected = model.bytes.get(&key).cloned();
            let expected = expected.unwrap_or_else(|| vec![0; SPAN as usize]);
            prop_assert_eq!(&rig.read(key)[..], &expected[..]);
            prop_assert_eq!(&other.read(key)[..], &expected[..]);
        }
        // Bytes that no command writes, under checksums that are right.
        let apply = other.group.begin_apply(other.index).expect("apply");
        let bytes: Bytes = (0..BLOCK_SIZE).map(|at| at as u8).collect();
        apply.write(key(1, 0), 0, bytes).expect("fits");
        drop(apply);
        prop_assert_ne!(digest, other.digest());
    }
}
