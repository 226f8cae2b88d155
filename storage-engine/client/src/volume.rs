//! A volume as a block device: keeps IO to its limits, cuts it at chunk boundaries, numbers writes,
//! keeps overlapping writes apart, and sends each piece to the leader of its copyset (`submit`).

mod connections;
mod fate;
mod lease;
mod metrics;
mod qos;
mod range_lock;
mod sequence;
mod submit;

pub use metrics::VolumeMetrics;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use curve_types::{
    BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkIndex, ChunkKey, VolumeId, split_range,
};
use curve_wire::chunk::{
    Changes, ChunkRange, Command, KIND_CHANGES, KIND_PROPOSE, KIND_READ, Read, Writer,
};
use futures::future::{join_all, ready};
use futures::{StreamExt, stream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::fate::Fate;
use self::metrics::{OneVolume, OpMetrics};
use self::qos::{Admission, Direction, Throttle};
use self::range_lock::RangeLock;
use self::sequence::{Sequence, Ticket};
use self::submit::{Outgoing, Submitter};
use crate::{BlockDevice, BlockError, MdsClient, Session};

/// Data of one request: half of what a log entry may hold, so that its header fits too, and small
/// enough that a large IO keeps several replication streams busy.
const PIECE_LEN_MAX: u64 = 1 << 20;
/// Pieces of one request that are under way together: discards carry no data, so nothing else
/// bounds how many a request of terabytes makes.
const PIECES_IN_FLIGHT: usize = 64;
/// Length of the no-op that fences earlier incarnations: a discard of less than a block.
const BARRIER_LEN: u32 = 512;

/// Settings of an open volume.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// How long an operation may wait for its copyset before it fails. Long enough that a restart
    /// of every process pauses IO instead of failing it.
    pub io_deadline: Duration,
    /// Data of operations under way; more waits.
    pub in_flight_bytes_max: u64,
    pub metrics: VolumeMetrics,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            io_deadline: Duration::from_secs(60),
            in_flight_bytes_max: 64 << 20,
            metrics: VolumeMetrics::default(),
        }
    }
}

/// An open volume. Clones share it; when the last is dropped the session is no longer renewed.
#[derive(Clone)]
pub struct Volume {
    shared: Arc<Shared>,
    /// Held by every clone; ends with the last.
    _lease: Arc<LeaseTask>,
}

struct LeaseTask(JoinHandle<()>);

impl Drop for LeaseTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    mds: MdsClient,
    session: Session,
    options: VolumeOptions,
    /// Bytes; only grows.
    size: AtomicU64,
    fate: Fate,
    throttle: Throttle,
    sequence: Sequence,
    writes: RangeLock,
    /// In units of blocks, since a semaphore counts in 32 bits on some machines.
    in_flight: Semaphore,
    in_flight_blocks_max: u32,
    submitter: Submitter,
    metrics: OneVolume,
}

impl Volume {
    /// Of an open snapshot: the byte ranges, in order, that may hold other data than `base`, another
    /// snapshot of the same volume; without one, those that hold data. Whole blocks, and never too
    /// few.
    pub async fn changes(&self, base: Option<VolumeId>) -> Result<Vec<Range<u64>>, BlockError> {
        let size = self.shared.size.load(Ordering::Relaxed);
        let chunks = (0..size.div_ceil(CHUNK_SIZE) as u32).map(ChunkIndex);
        let asked = chunks.map(|index| self.shared.changes(index, base));
        let mut answers = stream::iter(asked).buffered(PIECES_IN_FLIGHT);
        let mut ranges = Vec::new();
        while let Some(found) = answers.next().await {
            found?.into_iter().for_each(|range| join_range(&mut ranges, range));
        }
        Ok(ranges)
    }

    /// Opens a volume with default settings.
    pub async fn open(mds: MdsClient, session: Session) -> Result<Self, BlockError> {
        Self::open_with(mds, session, VolumeOptions::default()).await
    }

    /// Opens a volume. A session may be opened once; a holder that restarts opens
    /// `session.next_incarnation()`, which fences what the previous holder left in flight.
    pub async fn open_with(
        mds: MdsClient,
        session: Session,
        options: VolumeOptions,
    ) -> Result<Self, BlockError> {
        let refused = |error: crate::SessionError| BlockError::Refused { why: error.to_string() };
        let credentials = session.credentials().map_err(refused)?;
        let metrics = options.metrics.of(session.volume);
        let topology = mds.topology();
        let submitter =
            Submitter::new(session.pool, topology, credentials, metrics.retries.clone());
        let blocks = (options.in_flight_bytes_max / BLOCK_SIZE).clamp(1, u64::from(u32::MAX) >> 4);
        let shared = Arc::new(Shared {
            size: AtomicU64::new(session.size),
            fate: Fate::new(),
            throttle: Throttle::new(session.limits, metrics.throttled.clone()),
            sequence: Sequence::default(),
            writes: RangeLock::default(),
            in_flight: Semaphore::new(blocks as usize),
            in_flight_blocks_max: blocks as u32,
            mds,
            session,
            options,
            submitter,
            metrics,
        });
        shared.submitter.ready(shared.deadline()).await?;
        if shared.session.epoch.incarnation() > 0 && !shared.session.read_only {
            shared.fence_earlier_incarnations().await?;
        }
        let task = tokio::spawn(lease::keep(Arc::downgrade(&shared)));
        Ok(Self { shared, _lease: Arc::new(LeaseTask(task)) })
    }

    pub fn session(&self) -> &Session {
        &self.shared.session
    }

    /// Asks the MDS for size and limits at once instead of with the next renewal, and returns the
    /// size.
    pub async fn refresh_size(&self) -> Result<u64, BlockError> {
        let renewed = lease::renew(&self.shared, self.shared.options.io_deadline).await;
        self.shared.fate.check()?;
        match renewed {
            Some(_) => Ok(self.size()),
            None => Err(BlockError::Unavailable { last: "the MDS did not answer".into() }),
        }
    }

    /// True once all IO fails for good.
    pub fn is_ended(&self) -> bool {
        self.shared.fate.check().is_err()
    }

    /// Resolves with the reason once all IO fails for good.
    pub async fn ended(&self) -> BlockError {
        self.shared.fate.ended().await
    }

    /// Ends the device: operations under way and later ones fail. The session itself stays open
    /// at the MDS until it is detached.
    pub fn close(&self) {
        self.shared.end(BlockError::Closed);
    }
}

#[async_trait]
impl BlockDevice for Volume {
    fn size(&self) -> u64 {
        self.shared.size.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.shared.session.read_only
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, BlockError> {
        let shared = &self.shared;
        let read = shared.read(offset, u64::from(len));
        shared.measured(&shared.metrics.read, u64::from(len), read).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), BlockError> {
        let (shared, len) = (&self.shared, data.len() as u64);
        let write = shared.change(offset, len, Change::Write(data));
        shared.measured(&shared.metrics.write, len, write).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        // Every write that was acknowledged is on a majority of disks.
        self.shared.fate.check()
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let shared = &self.shared;
        let discard = shared.change(offset, len, Change::Discard);
        shared.measured(&shared.metrics.discard, len, discard).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let shared = &self.shared;
        let write_zeroes = shared.change(offset, len, Change::Zero);
        shared.measured(&shared.metrics.write_zeroes, len, write_zeroes).await
    }
}

/// What a changing operation does to its range.
enum Change {
    Write(Bytes),
    Zero,
    Discard,
}

impl Change {
    /// The command for `range`, whose first byte lies `at` bytes into the operation.
    fn command(&self, range: ChunkRange, at: usize, writer: Writer) -> Command {
        match self {
            Self::Write(data) => {
                let data = data.slice(at..at + range.len as usize);
                Command::Write { range, writer, data }
            }
            Self::Zero => Command::WriteZeroes { range, writer },
            Self::Discard => Command::Discard { range, writer },
        }
    }

    /// Most bytes per request. Only a write carries data.
    fn piece_len_max(&self) -> u64 {
        match self {
            Self::Write(_) => PIECE_LEN_MAX,
            Self::Zero | Self::Discard => CHUNK_SIZE,
        }
    }
}

/// Adds a range behind all others.
fn join_range(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        _ if next.is_empty() => {}
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}

/// The part of an operation that one request carries.
struct Piece {
    range: ChunkRange,
    /// Bytes before it in the operation.
    at: usize,
}

impl Shared {
    fn deadline(&self) -> Instant {
        Instant::now() + self.options.io_deadline
    }

    /// Ends all IO for good.
    fn end(&self, error: BlockError) {
        if self.fate.seal(error.clone()) {
            self.metrics.fenced.set(i64::from(error == BlockError::Fenced));
            if error != BlockError::Closed {
                tracing::error!(session = ?self.session, %error, "the volume ends here");
            }
        }
    }

    fn grow(&self, size: u64) {
        self.size.fetch_max(size, Ordering::Relaxed);
    }

    async fn measured<T>(
        &self,
        metrics: &OpMetrics,
        bytes: u64,
        operation: impl Future<Output = Result<T, BlockError>>,
    ) -> Result<T, BlockError> {
        let began = Instant::now();
        let result = operation.await;
        metrics.record(result.is_ok(), bytes, began.elapsed());
        if let Err(error @ (BlockError::Fenced | BlockError::Deleted)) = &result {
            self.end(error.clone());
        }
        result
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<Range<u64>, BlockError> {
        self.fate.check()?;
        let size = self.size.load(Ordering::Relaxed);
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(BlockError::OutOfRange { offset, len, size }),
        }
    }

    /// Requests for `range`, none longer than `piece_len_max`.
    fn pieces(&self, range: &Range<u64>, piece_len_max: u64) -> Vec<Piece> {
        let volume = self.session.volume;
        let mut pieces = Vec::new();
        for span in split_range(range.start, range.end - range.start) {
            let key = ChunkKey { volume, index: span.index };
            let end = span.offset + span.len;
            let mut offset = span.offset;
            while offset < end {
                // Cut at multiples, so that no block is split between two requests.
                let stop = (u64::from(offset) / piece_len_max + 1) * piece_len_max;
                let stop = stop.min(u64::from(end)) as u32;
                let at = u64::from(key.index.0) * CHUNK_SIZE + u64::from(offset) - range.start;
                let len = stop - offset;
                pieces.push(Piece { range: ChunkRange { key, offset, len }, at: at as usize });
                offset = stop;
            }
        }
        pieces
    }

    /// Waits for the volume's limits, first of all: what waits here keeps no memory, range or number
    /// from others.
    async fn admit(&self, direction: Direction, bytes: u64) -> Result<Admission<'_>, BlockError> {
        tokio::select! {
            biased;
            admission = self.throttle.admit(direction, bytes) => Ok(admission),
            error = self.fate.ended() => Err(error),
        }
    }

    async fn reserve(&self, bytes: u64) -> Reservation<'_> {
        let blocks = bytes.div_ceil(BLOCK_SIZE).clamp(1, u64::from(self.in_flight_blocks_max));
        let blocks = blocks as u32;
        let permit = self.in_flight.acquire_many(blocks).await.expect("never closed");
        self.metrics.in_flight_bytes.inc_by(i64::from(blocks) * BLOCK_SIZE as i64);
        Reservation { _permit: permit, shared: self, blocks }
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, BlockError> {
        let range = self.check_range(offset, len)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        drop(self.admit(Direction::Read, len).await?);
        let _reservation = self.reserve(len).await;
        let deadline = self.deadline();
        let pieces = self.pieces(&range, PIECE_LEN_MAX);
        if let [piece] = &pieces[..] {
            return self.read_piece(piece, deadline).await;
        }
        let parts = join_all(pieces.iter().map(|piece| self.read_piece(piece, deadline))).await;
        let mut data = BytesMut::with_capacity(len as usize);
        for part in parts {
            data.extend_from_slice(&part?);
        }
        Ok(data.freeze())
    }

    async fn changes(
        &self,
        index: ChunkIndex,
        base: Option<VolumeId>,
    ) -> Result<Vec<Range<u64>>, BlockError> {
        self.fate.check()?;
        let Session { id: session, epoch, volume, .. } = self.session;
        let key = ChunkKey { volume, index };
        let head = Changes { key, base, session, epoch }.encode();
        let request = Outgoing { kind: KIND_CHANGES, key, head, payload: Bytes::new() };
        let bitmap = self.submitter.submit(&request, self.deadline(), &self.fate).await?;
        if bitmap.len() != Changes::BITMAP_LEN {
            let why = format!("it sent {} bytes for the changes of a chunk", bitmap.len());
            return Err(BlockError::Refused { why });
        }
        let size = self.size.load(Ordering::Relaxed);
        let set = |block: &u64| bitmap[(block / 8) as usize] >> (block % 8) & 1 != 0;
        let offset = |block: u64| (u64::from(index.0) * CHUNK_SIZE + block * BLOCK_SIZE).min(size);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for block in (0..BLOCKS_PER_CHUNK).filter(set) {
            join_range(&mut ranges, offset(block)..offset(block + 1));
        }
        Ok(ranges)
    }

    async fn read_piece(&self, piece: &Piece, deadline: Instant) -> Result<Bytes, BlockError> {
        let Session { id: session, epoch, .. } = self.session;
        let head = Read { range: piece.range, session, epoch }.encode();
        let key = piece.range.key;
        let request = Outgoing { kind: KIND_READ, key, head, payload: Bytes::new() };
        let data = self.submitter.submit(&request, deadline, &self.fate).await?;
        if data.len() != piece.range.len as usize {
            let why = format!("it sent {} bytes, {} were asked for", data.len(), piece.range.len);
            return Err(BlockError::Refused { why });
        }
        Ok(data)
    }

    async fn change(&self, offset: u64, len: u64, change: Change) -> Result<(), BlockError> {
        let range = self.check_range(offset, len)?;
        if self.session.read_only {
            return Err(BlockError::ReadOnly);
        }
        if len == 0 {
            return Ok(());
        }
        let data = matches!(change, Change::Write(_)).then_some(len);
        let admission = self.admit(Direction::Write, data.unwrap_or(0)).await?;
        // Whole blocks: two writes to halves of one block are each a read-modify-write of it.
        let locked = range.start / BLOCK_SIZE * BLOCK_SIZE..range.end.next_multiple_of(BLOCK_SIZE);
        let locking = self.writes.lock(locked);
        // Not before this write has its place: the next must not come before it.
        drop(admission);
        let _locked = locking.await;
        let _reservation = self.reserve(data.unwrap_or(BLOCK_SIZE)).await;
        let (change, failed) = (&change, &AtomicBool::new(false));
        let pieces = stream::iter(self.pieces(&range, change.piece_len_max()));
        let due = pieces.take_while(|_| ready(!failed.load(Ordering::Relaxed)));
        let sent = due.map(|piece| async move {
            let outcome = self.change_piece(piece, change).await;
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            outcome
        });
        // Those under way are waited for even if one fails: a piece must not be in flight once the
        // range lock is released, unless its outcome is given up.
        let outcomes: Vec<_> = sent.buffer_unordered(PIECES_IN_FLIGHT).collect().await;
        outcomes.into_iter().collect()
    }

    async fn change_piece(&self, piece: Piece, change: &Change) -> Result<(), BlockError> {
        let ticket = self.sequence.begin();
        let command = change.command(piece.range, piece.at, self.writer(&ticket));
        self.propose(&command, piece.range.key, self.deadline()).await
    }

    fn writer(&self, ticket: &Ticket<'_>) -> Writer {
        let Session { id: session, epoch, .. } = self.session;
        Writer { session, epoch, seq: ticket.seq, floor: ticket.floor }
    }

    async fn propose(
        &self,
        command: &Command,
        key: ChunkKey,
        deadline: Instant,
    ) -> Result<(), BlockError> {
        let (head, payload) = command.encode();
        let request = Outgoing { kind: KIND_PROPOSE, key, head, payload };
        self.submitter.submit(&request, deadline, &self.fate).await.map(|_| ())
    }

    /// Makes every copyset of the volume know this incarnation, so that it refuses earlier ones.
    async fn fence_earlier_incarnations(&self) -> Result<(), BlockError> {
        let volume = self.session.volume;
        let chunks = (0..curve_types::SHARDS_PER_VOLUME).map(ChunkIndex);
        let keys = chunks.map(|index| ChunkKey { volume, index });
        let deadline = self.deadline();
        let barrier = |key| async move {
            let ticket = self.sequence.begin();
            let range = ChunkRange { key, offset: 0, len: BARRIER_LEN };
            let command = Command::Discard { range, writer: self.writer(&ticket) };
            self.propose(&command, key, deadline).await
        };
        let mut fenced = BTreeMap::new();
        loop {
            let copysets = self.submitter.one_per_copyset(keys.clone());
            if copysets == fenced {
                return Ok(());
            }
            let barriers = join_all(copysets.values().map(|key| barrier(*key))).await;
            barriers.into_iter().collect::<Result<(), BlockError>>()?;
            // A copyset that was split meanwhile may have sent its barrier to the other part.
            fenced = copysets;
        }
    }
}

/// In-flight bytes of one operation.
struct Reservation<'a> {
    _permit: SemaphorePermit<'a>,
    shared: &'a Shared,
    blocks: u32,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.shared.metrics.in_flight_bytes.dec_by(i64::from(self.blocks) * BLOCK_SIZE as i64);
    }
}
