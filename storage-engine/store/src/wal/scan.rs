//! Reading the WAL back at open, and telling a torn tail from damage.

use curve_types::BLOCK_SIZE;
use curve_types::planted::{self, Bug};

use crate::StoreError;
use crate::aligned::{AlignedBuf, PooledBuf};
use crate::root::Root;
use crate::wal::format::{BATCH_MAX, BatchHeader, RawRecord, records};
use crate::wal::ring::Ring;

/// Bytes read at once.
const WINDOW: usize = 4 << 20;
const BLOCK: usize = BLOCK_SIZE as usize;

/// Where the valid log ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct End {
    pub lsn: u64,
    pub seq: u64,
    pub generation: u64,
    /// Something after the end was begun and never acknowledged.
    pub cut: bool,
}

/// A sliding view of the ring. `lsn` is where `buf` begins.
struct Window<'a> {
    ring: &'a Ring,
    buf: PooledBuf,
    lsn: u64,
}

impl Window<'_> {
    /// The bytes from `lsn` on, at least `len` of them. Never more than a ring's length from the
    /// scan's start is asked for.
    fn at(&mut self, lsn: u64, len: usize) -> Result<&[u8], StoreError> {
        let held = self.lsn..self.lsn + self.buf.len() as u64;
        if lsn < held.start || lsn + len as u64 > held.end {
            let want = WINDOW.max(len.next_multiple_of(BLOCK)).min(self.ring.len as usize);
            self.buf = AlignedBuf::take(want);
            self.ring.read(lsn, &mut self.buf)?;
            self.lsn = lsn;
        }
        Ok(&self.buf[(lsn - self.lsn) as usize..])
    }
}

/// Feeds every valid record from the root's tail on to `visit` (with the batch's position, the
/// record's place in it and its length), and finds the end. Damage before the end of what was
/// acknowledged is an error. Only the last batch can have been written without its payloads:
/// `whole` is asked of that one.
pub(crate) fn scan(
    ring: &Ring,
    salt: u64,
    root: &Root,
    whole: impl Fn(&RawRecord<'_>) -> Result<bool, StoreError>,
    mut visit: impl FnMut(u64, u32, u32, &RawRecord<'_>) -> Result<(), StoreError>,
) -> Result<End, StoreError> {
    let mut window = Window { ring, buf: AlignedBuf::take(0), lsn: 0 };
    let mut end = End { lsn: root.tail_lsn, seq: 0, generation: 0, cut: false };
    if root.tail_lsn == root.head_lsn {
        end.seq = root.head_seq;
        end.generation = root.generation;
    }
    loop {
        // The ring never holds more than its length: reading on would meet the tail again.
        if end.lsn - root.tail_lsn >= ring.len {
            return Ok(end);
        }
        let Some(header) = next_batch(&mut window, salt, &end)? else { break };
        let covered =
            header.end() <= root.head_lsn || is_followed(&mut window, salt, root, &header)?;
        let bytes = window.at(end.lsn, header.len as usize)?;
        let Ok(found) = records(&header, bytes) else { break };
        if !covered && !all(found.iter().map(|(_, _, record)| whole(record)))? {
            break;
        }
        if !covered && planted::has(Bug::TruncateAcknowledged) {
            break;
        }
        for (at, len, record) in &found {
            visit(end.lsn, *at, *len, record)?;
        }
        if header.root_seq > root.seq {
            return Err(StoreError::corrupt(format!(
                "the newest root ({}) is unreadable, the other one ({}) is outdated",
                header.root_seq, root.seq
            )));
        }
        end.lsn = header.end();
        end.seq = header.seq + 1;
        end.generation = header.generation;
        if end.lsn == root.head_lsn && end.seq != root.head_seq {
            return Err(StoreError::corrupt("the log's batches are not those its root counted"));
        }
    }
    if end.lsn < root.head_lsn {
        return Err(StoreError::corrupt(format!(
            "log batch {} at position {} is unreadable, but everything before {} was durable",
            end.seq, end.lsn, root.head_lsn
        )));
    }
    judge_tail(&mut window, salt, root, &mut end)?;
    Ok(end)
}

fn all(answers: impl Iterator<Item = Result<bool, StoreError>>) -> Result<bool, StoreError> {
    for answer in answers {
        if !answer? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a batch was begun after this one, which is done only once this one is durable.
fn is_followed(
    window: &mut Window<'_>,
    salt: u64,
    root: &Root,
    header: &BatchHeader,
) -> Result<bool, StoreError> {
    if header.end() - root.tail_lsn >= window.ring.len {
        return Ok(false);
    }
    let after =
        End { lsn: header.end(), seq: header.seq + 1, generation: header.generation, cut: false };
    Ok(next_batch(window, salt, &after)?.is_some())
}

/// The header at the end so far, if it continues the log.
fn next_batch(
    window: &mut Window<'_>,
    salt: u64,
    end: &End,
) -> Result<Option<BatchHeader>, StoreError> {
    let ring_len = window.ring.len;
    let header = BatchHeader::decode(salt, window.at(end.lsn, BLOCK)?);
    Ok(header.filter(|h| {
        let continues = end.seq == 0 || h.seq == end.seq;
        h.lsn == end.lsn
            && continues
            && h.generation >= end.generation
            && u64::from(h.len) <= ring_len.min(BATCH_MAX as u64)
    }))
}

/// Looks at everything after the end. A later batch whose mark covers the missing one proves that
/// it was acknowledged: damage. Otherwise what is there was in flight when the power went.
fn judge_tail(
    window: &mut Window<'_>,
    salt: u64,
    root: &Root,
    end: &mut End,
) -> Result<(), StoreError> {
    let limit = root.tail_lsn + window.ring.len;
    let mut lsn = end.lsn;
    while lsn < limit {
        let header = BatchHeader::decode(salt, window.at(lsn, BLOCK)?);
        let later =
            header.filter(|h| h.lsn == lsn && h.seq >= end.seq && h.generation >= end.generation);
        if let Some(header) = later {
            if header.mark >= end.seq {
                return Err(StoreError::corrupt(format!(
                    "log batch {} at position {} is unreadable, but batch {} proves that it was \
                     acknowledged",
                    end.seq, end.lsn, header.seq
                )));
            }
            end.cut = true;
        }
        lsn += BLOCK_SIZE;
    }
    Ok(())
}
