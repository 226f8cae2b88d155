//! A reference host: a few groups whose state machines write chunks, and what must be found after
//! a crash. Everything that was acknowledged, and some prefix of the rest in order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use curve_store::{
    Apply, ChunkHead, CopyKind, Disk, Done, Group, Keep, LogEntry, LogPosition, RecoveredGroup,
    StateProvider, Store, StoreError, StoreOptions, Vote,
};
use curve_types::{ChunkKey, CopysetId, VolumeId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{checkpoint, chunk, durable, node, put};

const CHUNKS: u32 = 3;
/// A group's volume, and two that are copied from it and to it, and written as well.
const VOLUMES: u32 = 3;
const SPAN: u32 = 96 << 10;

/// A chunk of all volumes of a group, by number.
fn key_of(volume: VolumeId, number: u32) -> ChunkKey {
    chunk(sibling(volume, number / CHUNKS), number % CHUNKS)
}

fn sibling(volume: VolumeId, n: u32) -> VolumeId {
    let mut bytes = volume.to_bytes();
    bytes[15] ^= (n as u8) << 4;
    VolumeId::from_bytes(bytes)
}

/// A command of the state machine; unique by `salt`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    kind: u8,
    chunk: u32,
    offset: u32,
    len: u32,
    salt: u32,
    term: u64,
}

impl Command {
    fn random(rng: &mut SmallRng, term: u64) -> Self {
        let aligned = rng.random_bool(0.6);
        let mut offset = rng.random_range(0..SPAN);
        // The longest are never deferred where the log has its own device.
        let longest = if rng.random_bool(0.1) { 60_000 } else { 20_000 };
        let mut len = rng.random_range(1..(SPAN - offset).min(longest) + 1);
        if aligned {
            offset &= !4095;
            len = (len & !4095).max(4096);
        }
        let kinds = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5];
        let kind = kinds[rng.random_range(0..kinds.len())];
        let volume = if rng.random_bool(0.7) { 0 } else { rng.random_range(0..VOLUMES) };
        let chunk = volume * CHUNKS + rng.random_range(0..CHUNKS);
        Self { kind, chunk, offset, len, salt: rng.random(), term }
    }

    fn entry(&self, index: u64) -> LogEntry {
        let mut header = vec![self.kind];
        for v in [self.chunk, self.offset, self.len, self.salt] {
            header.extend(v.to_le_bytes());
        }
        let payload = if self.kind == 0 { self.data() } else { Vec::new() };
        LogEntry {
            position: LogPosition { term: self.term, node: node(), index },
            kind: 1,
            header: header.into(),
            payload: payload.into(),
        }
    }

    /// Whether it may change the block.
    fn touches(&self, chunk: u32, block: u32) -> bool {
        let blocks = self.offset / 4096..(self.offset + self.len).div_ceil(4096);
        self.kind >= 3 || (self.chunk == chunk && blocks.contains(&block))
    }

    /// Of a command that copies a volume: from where to where.
    fn copies(&self) -> (u32, u32) {
        let other = 1 + self.salt % (VOLUMES - 1);
        if self.kind == 4 { (0, other) } else { (other, 0) }
    }

    fn data(&self) -> Vec<u8> {
        (0..self.len).map(|i| ((i / 512) ^ self.salt ^ (self.salt >> 8)) as u8 | 1).collect()
    }

    fn apply_to_store(
        &self,
        apply: &Apply<'_>,
        volume: VolumeId,
        position: LogPosition,
    ) -> Result<(), StoreError> {
        let key = key_of(volume, self.chunk);
        match self.kind {
            0 => apply.write_payload(position, key, self.offset, Bytes::from(self.data())),
            1 => apply.write_zeroes(key, self.offset, self.len),
            2 => apply.discard(key, self.offset, self.len),
            3 => apply.delete_volume(key.volume),
            kind => {
                let (from, to) = self.copies();
                let kind = if kind == 4 { CopyKind::Snapshot } else { CopyKind::Clone };
                apply.copy_volume(sibling(volume, from), sibling(volume, to), kind);
                Ok(())
            }
        }
    }

    fn apply_to(&self, contents: &mut [Vec<u8>]) {
        let of = |volume: u32| (volume * CHUNKS) as usize..((volume + 1) * CHUNKS) as usize;
        if self.kind == 3 {
            contents[of(self.chunk / CHUNKS)].iter_mut().for_each(|bytes| bytes.fill(0));
            return;
        }
        if self.kind > 3 {
            let (from, to) = self.copies();
            for (from, to) in of(from).zip(of(to)) {
                contents[to] = contents[from].clone();
            }
            return;
        }
        let bytes = &mut contents[self.chunk as usize];
        let (from, to) = (self.offset as usize, (self.offset + self.len) as usize);
        match self.kind {
            0 => bytes[from..to].copy_from_slice(&self.data()),
            1 => bytes[from..to].fill(0),
            _ => {
                let (first, last) = (from.div_ceil(4096) * 4096, to / 4096 * 4096);
                if first < last {
                    bytes[first..last].fill(0);
                }
            }
        }
    }
}

fn empty_contents() -> Vec<Vec<u8>> {
    vec![vec![0; SPAN as usize + 32_768]; (VOLUMES * CHUNKS) as usize]
}

fn contents_after(history: &[Command]) -> Vec<Vec<u8>> {
    let mut contents = empty_contents();
    history.iter().for_each(|command| command.apply_to(&mut contents));
    contents
}

/// One step in the disk's order.
#[derive(Clone, Debug)]
enum Step {
    Create,
    Remove,
    Vote(Vote),
    Append(u64, Command),
    Truncate(Option<u64>),
    Purge(LogPosition),
    Install(LogPosition),
}

/// What the log part of a group must be.
#[derive(Clone, Default, Debug)]
struct LogModel {
    vote: Option<Vote>,
    entries: BTreeMap<u64, Command>,
    purged: Option<LogPosition>,
}

impl LogModel {
    fn last(&self) -> Option<LogPosition> {
        let last = self.entries.iter().next_back();
        last.map(|(index, c)| c.entry(*index).position).or(self.purged)
    }

    fn step(logs: &mut BTreeMap<CopysetId, Self>, id: CopysetId, step: &Step) {
        match step {
            Step::Create => {
                logs.insert(id, Self::default());
            }
            Step::Remove => {
                logs.remove(&id);
            }
            _ => logs.get_mut(&id).expect("exists").change(step),
        }
    }

    fn change(&mut self, step: &Step) {
        match step {
            Step::Vote(vote) => self.vote = Some(*vote),
            Step::Append(index, command) => {
                self.entries.insert(*index, *command);
            }
            Step::Truncate(kept) => self.entries.retain(|i, _| kept.is_some_and(|k| *i <= k)),
            Step::Purge(upto) => self.purge(*upto),
            Step::Install(upto) => {
                let same = self.entries.get(&upto.index).is_some_and(|c| c.term == upto.term);
                if !same {
                    self.entries.clear();
                }
                self.purge(*upto);
            }
            Step::Create | Step::Remove => unreachable!("handled above"),
        }
    }

    fn purge(&mut self, upto: LogPosition) {
        if self.purged.is_none_or(|p| p.index < upto.index) {
            self.purged = Some(upto);
            self.entries.retain(|i, _| *i > upto.index);
        }
    }
}

/// The host's side of a group.
struct Machine {
    group: Group,
    volume: VolumeId,
    /// Committed commands; index i of the log is element i.
    history: Vec<Command>,
    state: Arc<MachineState>,
    term: u64,
}

#[derive(Default)]
struct MachineState(Mutex<Option<LogPosition>>);

impl StateProvider for MachineState {
    fn state(&self) -> (Option<LogPosition>, Bytes) {
        let applied = *self.0.lock().expect("lock");
        (applied, Bytes::from(format!("{applied:?}")))
    }
}

/// Runs random work on a disk until it is told to stop or the disk fails.
pub struct Host {
    rng: SmallRng,
    store: Store,
    machines: BTreeMap<CopysetId, Machine>,
    logs: BTreeMap<CopysetId, LogModel>,
    steps: Vec<(CopysetId, Step)>,
    /// State of the log before `steps`.
    base: BTreeMap<CopysetId, LogModel>,
    /// How many of `steps` are acknowledged.
    acknowledged: Arc<AtomicUsize>,
    /// Groups that were created or found so far: each has terms of its own, so that a position is
    /// never one of two groups that had the same id.
    incarnations: u64,
}

pub fn crash_options() -> StoreOptions {
    StoreOptions { log_cache_bytes_max: 100_000, overlay_bytes_max: 1 << 20, ..super::options() }
}

impl Host {
    pub fn new(seed: u64, store: Store) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            store,
            machines: BTreeMap::new(),
            logs: BTreeMap::new(),
            steps: Vec::new(),
            base: BTreeMap::new(),
            acknowledged: Arc::default(),
            incarnations: 0,
        }
    }

    /// Notes a step and gives the callback that acknowledges it and all before it.
    fn note(&mut self, id: CopysetId, step: Step) -> Done {
        LogModel::step(&mut self.logs, id, &step);
        self.steps.push((id, step));
        let (count, acknowledged) = (self.steps.len(), self.acknowledged.clone());
        Box::new(move |result| {
            if result.is_ok() {
                let before = acknowledged.fetch_max(count, Ordering::SeqCst);
                assert!(before <= count, "callbacks out of order");
            }
        })
    }

    /// Works; Err is the disk's failure.
    pub fn work(&mut self, rounds: u32) -> Result<(), StoreError> {
        for _ in 0..rounds {
            if self.machines.len() < 3 {
                self.create()?;
            }
            let pick = self.rng.random_range(0..self.machines.len());
            let id = *self.machines.keys().nth(pick).expect("in range");
            match self.rng.random_range(0..100) {
                0..45 => self.append(id)?,
                45..75 => self.apply(id)?,
                75..80 => self.truncate(id)?,
                80..88 => self.purge(id)?,
                88..93 => self.vote(id),
                93 => checkpoint(&self.store)?,
                94..96 => self.store.checkpoint(Box::new(|_| ())),
                96..98 => self.install(id)?,
                98 => self.remove(id)?,
                _ => self.settle()?,
            }
        }
        Ok(())
    }

    fn create(&mut self) -> Result<(), StoreError> {
        let id =
            CopysetId((0..).find(|i| !self.machines.contains_key(&CopysetId(*i))).expect("one"));
        let done = self.note(id, Step::Create);
        let group = self.store.create_group(id, done)?;
        self.adopt(id, group, Vec::new(), None);
        Ok(())
    }

    fn adopt(
        &mut self,
        id: CopysetId,
        group: Group,
        history: Vec<Command>,
        applied: Option<LogPosition>,
    ) {
        self.incarnations += 1;
        let volume = VolumeId::from_bytes([id.0 as u8 + 1; 16]);
        let state = Arc::new(MachineState(Mutex::new(applied)));
        let provider: Arc<dyn StateProvider> = state.clone();
        group.set_state_provider(&provider);
        let term = self.incarnations * 1_000_000;
        self.machines.insert(id, Machine { group, volume, history, state, term });
    }

    fn append(&mut self, id: CopysetId) -> Result<(), StoreError> {
        let next = self.logs[&id].last().map_or(0, |p| p.index + 1);
        let machine = self.machines.get_mut(&id).expect("exists");
        machine.term += u64::from(self.rng.random_bool(0.1));
        let term = machine.term;
        let group = machine.group.clone();
        let mut entries = Vec::new();
        let mut done: Option<Done> = None;
        for index in next..next + self.rng.random_range(1..4) {
            let command = Command::random(&mut self.rng, term);
            entries.push(command.entry(index));
            done = Some(self.note(id, Step::Append(index, command)));
        }
        match group.append(entries.clone(), done.expect("one entry")) {
            Err(StoreError::WalFull { .. }) => {
                for _ in &entries {
                    self.steps.pop();
                    self.logs.get_mut(&id).expect("exists").entries.pop_last();
                }
                // Give room back: everything that was applied may go.
                self.machines.keys().copied().collect::<Vec<_>>().into_iter().try_for_each(
                    |id| {
                        self.apply(id)?;
                        self.purge(id)
                    },
                )?;
                checkpoint(&self.store)
            }
            other => other,
        }
    }

    /// Commits and applies part of what the log holds, possibly before it is durable.
    fn apply(&mut self, id: CopysetId) -> Result<(), StoreError> {
        let machine = self.machines.get_mut(&id).expect("exists");
        for _ in 0..self.rng.random_range(1..6) {
            let index = machine.history.len() as u64;
            let Some(command) = self.logs[&id].entries.get(&index) else { break };
            machine.apply(*command)?;
        }
        Ok(())
    }

    fn truncate(&mut self, id: CopysetId) -> Result<(), StoreError> {
        let first = self.machines[&id].history.len() as u64;
        let last = self.logs[&id].last().map_or(0, |p| p.index);
        if last < first {
            return Ok(());
        }
        let kept = self.rng.random_range(first..last + 1).checked_sub(1);
        let done = self.note(id, Step::Truncate(kept));
        self.machines[&id].group.truncate_after(kept, done)
    }

    fn purge(&mut self, id: CopysetId) -> Result<(), StoreError> {
        let machine = &self.machines[&id];
        let Some(last) = machine.history.len().checked_sub(1) else { return Ok(()) };
        let index = self.rng.random_range(last.saturating_sub(5)..last + 1);
        let position = machine.history[index].entry(index as u64).position;
        let group = machine.group.clone();
        let done = self.note(id, Step::Purge(position));
        group.purge(position, done)
    }

    fn vote(&mut self, id: CopysetId) {
        let voted = self.rng.random_bool(0.5).then(node);
        let vote = Vote { term: self.rng.random(), node: voted, committed: self.rng.random() };
        let done = self.note(id, Step::Vote(vote));
        self.machines[&id].group.save_vote(vote, done);
    }

    fn remove(&mut self, id: CopysetId) -> Result<(), StoreError> {
        let done = self.note(id, Step::Remove);
        self.machines.remove(&id);
        self.store.remove_group(id, done)
    }

    /// Waits for everything so far.
    fn settle(&mut self) -> Result<(), StoreError> {
        let Some(id) = self.machines.keys().next().copied() else { return Ok(()) };
        let done = self.note(id, Step::Vote(Vote::default()));
        let group = self.machines[&id].group.clone();
        durable(|answer| {
            group.save_vote(
                Vote::default(),
                Box::new(move |result| {
                    done(result.clone());
                    answer(result);
                }),
            );
            Ok(())
        })
    }

    /// A snapshot that reaches further than what is applied, sometimes within the own log.
    fn install(&mut self, id: CopysetId) -> Result<(), StoreError> {
        let machine = &self.machines[&id];
        let (group, volume, term) = (machine.group.clone(), machine.volume, machine.term + 500);
        let mut history = machine.history.clone();
        let own = self.rng.random_bool(0.5);
        for _ in 0..self.rng.random_range(1..8) {
            let held = self.logs[&id].entries.get(&(history.len() as u64)).copied();
            match held.filter(|_| own) {
                Some(command) => history.push(command),
                None => history.push(Command::random(&mut self.rng, term)),
            }
        }
        let index = history.len() - 1;
        let position = history[index].entry(index as u64).position;
        let install = group.begin_install()?;
        let new = &history[machine.history.len()..];
        let whole = self.rng.random_bool(0.3);
        let view = group.view()?;
        for (number, bytes) in (0..).zip(contents_after(&history)) {
            let key = key_of(volume, number);
            let touched = |block: u32| new.iter().any(|command| command.touches(number, block));
            let old: Vec<u32> = view.block_ranges(key).into_iter().flatten().collect();
            let kept: Vec<u32> = old.into_iter().filter(|b| !whole && !touched(*b)).collect();
            let head = match kept.is_empty() || (0..1024).any(touched) {
                true => (position.index, Keep::of_blocks(kept.iter().map(|block| *block as u16))),
                false => (view.delta(key, None).head.changed, Keep::All),
            };
            let head = ChunkHead { changed: head.0, keep: head.1, ..ChunkHead::default() };
            install.begin_chunk(key, head)?;
            for (block, piece) in (0..).zip(bytes.chunks(4096)) {
                if piece.iter().any(|b| *b != 0) && !kept.contains(&block) {
                    put(&install, key, block * 4096, piece.to_vec())?;
                }
            }
        }
        drop(view);
        if self.rng.random_bool(0.2) {
            return Ok(());
        }
        let state = Bytes::from(format!("{:?}", Some(position)));
        let done = self.note(id, Step::Install(position));
        let machine = self.machines.get_mut(&id).expect("exists");
        machine.history = history;
        machine.term = term + 1;
        let applied = machine.state.clone();
        durable(|answer| {
            let both: Done = Box::new(move |result| {
                if result.is_ok() {
                    *applied.0.lock().expect("lock") = Some(position);
                }
                done(result.clone());
                answer(result);
            });
            install.commit(position, state, both);
            Ok(())
        })
    }

    /// Reads some live content back while running.
    pub fn check_live(&self) {
        self.machines.values().for_each(|machine| {
            check_contents(&machine.group, machine.volume, &contents_after(&machine.history));
        });
    }

    /// Opens what the crash left and compares. Returns the host on that disk.
    pub fn after_crash(mut self, disk: Arc<dyn Disk>) -> Self {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        let (seed, incarnations) = (self.rng.random(), self.incarnations);
        let (steps, base) = (std::mem::take(&mut self.steps), std::mem::take(&mut self.base));
        let histories: BTreeMap<CopysetId, Vec<Command>> =
            self.machines.iter().map(|(id, m)| (*id, m.history.clone())).collect();
        drop(self);
        let (store, found) = Store::open(disk, crash_options()).expect("open after crash");
        let mut model = base;
        let mut matched = None;
        let mut why = String::new();
        for at in 0..=steps.len() {
            if at >= acknowledged {
                match compare(&model, &found) {
                    // The last match: a purge that recovery holds back until a checkpoint contains
                    // it looks like one that was lost, and takes effect with a later open.
                    Ok(()) => matched = Some(model.clone()),
                    Err(difference) => why += &format!("after step {at}: {difference}\n"),
                }
            }
            if let Some((id, step)) = steps.get(at) {
                LogModel::step(&mut model, *id, step);
            }
        }
        let logs = matched.unwrap_or_else(|| {
            panic!(
                "{acknowledged} of {} steps acknowledged, but found no match:\n{why}",
                steps.len()
            )
        });
        let mut host = Self { incarnations, ..Self::new(seed, store) };
        host.logs = logs.clone();
        host.base = logs;
        for found in found {
            host.resume(found, &histories);
        }
        host
    }

    fn resume(&mut self, found: RecoveredGroup, histories: &BTreeMap<CopysetId, Vec<Command>>) {
        let (id, group) = (found.group.id(), found.group);
        let log = &self.logs[&id];
        let mut history = histories.get(&id).cloned().unwrap_or_default();
        let count = found.applied.map_or(0, |p| p.index as usize + 1);
        let entries = group.entries(count as u64..u64::MAX, usize::MAX).expect("entries");
        let replayed = entries
            .iter()
            .zip(history.iter().skip(count))
            .take_while(|(e, c)| c.entry(e.position.index) == **e)
            .count();
        let applied_known = count == 0
            || (count <= history.len()
                && history[count - 1].entry(count as u64 - 1).position
                    == found.applied.expect("some"));
        // What was purged was applied, although recovery may show it again.
        let purged_known = log.purged.is_none_or(|p| {
            let known = history.get(p.index as usize);
            let known = known.is_some_and(|command| command.entry(p.index).position == p);
            let held = p.index < (count + replayed) as u64;
            assert!(held || !known, "copyset {id}: nothing applied or held up to {p}");
            known
        });
        if !applied_known || !purged_known {
            // An older incarnation (the removal was lost) or an install that came through without
            // an answer: its history is not known any more, only that it is consistent.
            durable(|done| self.store.remove_group(id, done)).expect("remove");
            LogModel::step(&mut self.logs, id, &Step::Remove);
            LogModel::step(&mut self.base, id, &Step::Remove);
            return;
        }
        if found.applied.is_some() {
            assert_eq!(&found.state[..], format!("{:?}", found.applied).as_bytes());
        }
        let volume = VolumeId::from_bytes([id.0 as u8 + 1; 16]);
        check_contents(&group, volume, &contents_after(&history[..count]));
        let last = log.last().map_or(0, |p| p.index as usize + 1);
        history.truncate(count + replayed);
        assert!(count + replayed <= last.max(count));
        self.adopt(id, group.clone(), history[..count].to_vec(), found.applied);
        let machine = self.machines.get_mut(&id).expect("just adopted");
        for command in &history[count..] {
            machine.apply(*command).expect("replay");
        }
        check_contents(&group, volume, &contents_after(&history));
    }

    /// Removes everything: all blocks must come back.
    pub fn end(self) {
        let Self { store, machines, .. } = self;
        for id in machines.keys() {
            durable(|done| store.remove_group(*id, done)).expect("remove");
        }
        drop(machines);
        checkpoint(&store).expect("checkpoint");
        // The last payloads are free once a mark covers the records that dropped them, and blocks
        // that are written ahead of time once that is done.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut usage = store.usage();
        while usage.data_blocks_free < usage.data_blocks_total && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            usage = store.usage();
        }
        assert_eq!((usage.data_blocks_used, usage.overlay_bytes), (0, 0), "{usage:?}");
        assert_eq!(usage.data_blocks_free, usage.data_blocks_total, "{usage:?}");
    }
}

impl Machine {
    fn apply(&mut self, command: Command) -> Result<(), StoreError> {
        let position = command.entry(self.history.len() as u64).position;
        let apply = self.group.begin_apply(position.index)?;
        command.apply_to_store(&apply, self.volume, position)?;
        *self.state.0.lock().expect("lock") = Some(position);
        self.history.push(command);
        Ok(())
    }
}

fn compare(model: &BTreeMap<CopysetId, LogModel>, found: &[RecoveredGroup]) -> Result<(), String> {
    let ids: Vec<CopysetId> = found.iter().map(|f| f.group.id()).collect();
    if ids != model.keys().copied().collect::<Vec<_>>() {
        return Err(format!("groups {ids:?} instead of {:?}", model.keys()));
    }
    for (found, log) in found.iter().zip(model.values()) {
        let id = found.group.id();
        let first = log.purged.map_or(0, |p| p.index + 1);
        let entries =
            found.group.entries(first..u64::MAX, usize::MAX).map_err(|e| e.to_string())?;
        let want: Vec<LogEntry> = log.entries.iter().map(|(i, c)| c.entry(*i)).collect();
        if entries != want {
            let brief = |list: &[LogEntry]| {
                list.iter().map(|e| (e.position.term, e.position.index)).collect::<Vec<_>>()
            };
            return Err(format!("{id}: log {:?} instead of {:?}", brief(&entries), brief(&want)));
        }
        let state = found.log_state;
        if state.last != log.last() {
            return Err(format!("{id}: last {:?} instead of {:?}", state.last, log.last()));
        }
        if state.last_purged.map(|p| p.index) > log.purged.map(|p| p.index) {
            return Err(format!(
                "{id}: purged {:?}, asked for {:?}",
                state.last_purged, log.purged
            ));
        }
        if found.vote != log.vote {
            return Err(format!("{id}: vote {:?} instead of {:?}", found.vote, log.vote));
        }
    }
    Ok(())
}

fn check_contents(group: &Group, volume: VolumeId, want: &[Vec<u8>]) {
    for (number, want) in want.iter().enumerate() {
        let key = key_of(volume, number as u32);
        let got = group.read(key, 0, want.len() as u32).expect("read");
        if let Some(at) = got.iter().zip(want).position(|(a, b)| a != b) {
            panic!(
                "copyset {} chunk {key} differs at byte {at}: {} for {}",
                group.id(),
                got[at],
                want[at]
            );
        }
    }
}
