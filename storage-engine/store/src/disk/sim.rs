//! A disk in memory for tests: forgets what was not synced, tears what was in flight, fails on
//! demand, and counts operations so that a crash can be put at each of them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{ALIGN, Disk};

/// Shared: a copy of a disk is cheap.
type Block = Arc<[u8; ALIGN]>;

#[derive(Clone, Default)]
struct State {
    /// Blocks that survive anything, sparse; others are zero.
    durable: BTreeMap<u64, Block>,
    /// Writes since the last sync, in order.
    volatile: Vec<(u64, Block)>,
    /// The newest of both.
    visible: BTreeMap<u64, Block>,
    /// Writes and syncs so far.
    operations: u64,
    /// The power goes when this operation begins: it and all later ones fail.
    crash_at: Option<u64>,
    /// This operation fails with EIO, once.
    fail_at: Option<u64>,
    /// Reads that touch this block fail with EIO.
    bad_block: Option<u64>,
    /// What a sync takes beside its work.
    sync_time: Duration,
    /// It tells which blocks were never written.
    is_sparse: bool,
}

/// Cheap to create at any length; only written blocks take memory.
pub struct SimDisk {
    len: u64,
    state: Mutex<State>,
}

impl SimDisk {
    pub fn new(len: u64) -> Self {
        Self { len, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes and syncs so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The power goes when operation number `operation` (counted from 0) begins. An interrupted
    /// write may survive in part, like every write that was not synced.
    pub fn crash_at(&self, operation: u64) {
        self.lock().crash_at = Some(operation);
    }

    /// From now on it is like a preallocated file: it tells which blocks were never written.
    pub fn make_sparse(&self) {
        self.lock().is_sparse = true;
    }

    /// Operation number `operation` answers EIO and has no effect.
    pub fn fail_at(&self, operation: u64) {
        self.lock().fail_at = Some(operation);
    }

    /// Reads of the 4 KiB block at this offset answer EIO.
    pub fn fail_reads_of(&self, offset: u64) {
        self.lock().bad_block = Some(offset / ALIGN as u64);
    }

    /// Syncs that begin from now on take so long, in real time.
    pub fn set_sync_time(&self, time: Duration) {
        self.lock().sync_time = time;
    }

    /// What a restarted machine would find: everything synced, and of the rest each 4 KiB block
    /// for which `survives` says so (it is asked in the order of the writes).
    pub fn after_crash(&self, mut survives: impl FnMut() -> bool) -> Self {
        let state = self.lock();
        let mut durable = state.durable.clone();
        for (block, bytes) in &state.volatile {
            if survives() {
                durable.insert(*block, bytes.clone());
            }
        }
        let visible = durable.clone();
        let is_sparse = state.is_sparse;
        let state = State { durable, visible, is_sparse, ..State::default() };
        Self { len: self.len, state: Mutex::new(state) }
    }

    /// What a restarted process would find: all that was written, synced or not, and no faults.
    pub fn after_kill(&self) -> Self {
        let state = State {
            operations: 0,
            crash_at: None,
            fail_at: None,
            bad_block: None,
            sync_time: Duration::ZERO,
            ..self.lock().clone()
        };
        Self { len: self.len, state: Mutex::new(state) }
    }

    /// Where a reader sees this content of a block.
    pub fn find(&self, content: &[u8]) -> Vec<u64> {
        self.find_where(|block| block == content)
    }

    /// Where a reader sees a block of which `wanted` is true.
    pub fn find_where(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
        let state = self.lock();
        let found = state.visible.iter().filter(|(_, block)| wanted(&block[..]));
        found.map(|(number, _)| number * ALIGN as u64).collect()
    }

    /// Flips one bit, durably.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        let mut state = self.lock();
        let number = offset / ALIGN as u64;
        let State { durable, visible, .. } = &mut *state;
        for blocks in [durable, visible] {
            let block = blocks.entry(number).or_insert_with(zero_block);
            Arc::make_mut(block)[(offset % ALIGN as u64) as usize] ^= 1 << bit;
        }
    }

    /// A copy that is cut to (or grown to) another length.
    pub fn with_len(&self, len: u64) -> Self {
        let mut copy = self.after_crash(|| true);
        let past = len / ALIGN as u64;
        let state = copy.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.durable.retain(|block, _| *block < past);
        state.visible.retain(|block, _| *block < past);
        copy.len = len;
        copy
    }

    /// Bytes as a reader sees them, at any alignment.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let state = self.lock();
        let byte = |at: u64| {
            let block = state.visible.get(&(at / ALIGN as u64));
            block.map_or(0, |b| b[(at % ALIGN as u64) as usize])
        };
        (offset..offset + len as u64).map(byte).collect()
    }

    fn check(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let aligned = offset.is_multiple_of(ALIGN as u64)
            && buf.len().is_multiple_of(ALIGN)
            && (buf.as_ptr() as usize).is_multiple_of(ALIGN);
        match aligned && offset + buf.len() as u64 <= self.len {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("misaligned or outside: {} bytes at {offset} of {}", buf.len(), self.len),
            )),
        }
    }
}

impl State {
    /// Counts an operation; Err if it fails without effect, Ok(true) if the power goes during it.
    fn begin(&mut self) -> io::Result<bool> {
        let number = self.operations;
        self.operations += 1;
        match self.crash_at {
            Some(at) if number > at => return Err(power_loss()),
            Some(at) if number == at => return Ok(true),
            _ => {}
        }
        match self.fail_at {
            Some(at) if number == at => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(false),
        }
    }
}

fn zero_block() -> Block {
    Arc::new([0; ALIGN])
}

fn power_loss() -> io::Error {
    io::Error::other("simulated power loss")
}

impl Disk for SimDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(buf, offset)?;
        let state = self.lock();
        let first = offset / ALIGN as u64;
        for (number, target) in (first..).zip(buf.chunks_exact_mut(ALIGN)) {
            if state.bad_block == Some(number) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            match state.visible.get(&number) {
                Some(block) => target.copy_from_slice(&block[..]),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check(buf, offset)?;
        let mut state = self.lock();
        let crashed = state.begin()?;
        let first = offset / ALIGN as u64;
        for (number, source) in (first..).zip(buf.chunks_exact(ALIGN)) {
            let block: Block = Arc::new(source.try_into().expect("chunks of that size"));
            state.visible.insert(number, block.clone());
            state.volatile.push((number, block));
        }
        if crashed { Err(power_loss()) } else { Ok(()) }
    }

    fn next_unwritten(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let state = self.lock();
        let mut unwritten = (from / ALIGN as u64..self.len / ALIGN as u64)
            .skip_while(|block| state.visible.contains_key(block))
            .take_while(|block| state.is_sparse && !state.visible.contains_key(block));
        let Some(first) = unwritten.next() else { return Ok(None) };
        let last = unwritten.last().unwrap_or(first);
        Ok(Some(first * ALIGN as u64..(last + 1) * ALIGN as u64))
    }

    fn sync(&self) -> io::Result<()> {
        let sync_time = self.lock().sync_time;
        if !sync_time.is_zero() {
            std::thread::sleep(sync_time);
        }
        let mut state = self.lock();
        if state.begin()? {
            return Err(power_loss());
        }
        let volatile = std::mem::take(&mut state.volatile);
        state.durable.extend(volatile);
        Ok(())
    }
}
