//! A damaged block gets its bytes back from a replica that still has them.
//!
//! A checksum detects damage but does not name a version of a block: two versions may share one. So
//! it is the log that says whether a peer's bytes are the right ones. All replicas have the same
//! block at the same applied position; if this one's has not changed from a position at or before
//! the peer's to one at or after it, the peer's bytes are those that were here.

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, BLOCKS_PER_CHUNK, ChunkKey};

use crate::chunk::Place;
use crate::codec::crc32c;
use crate::{ChunkView, Group, StoreError};

/// What came of a repair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repair {
    /// The block reads again.
    Done,
    /// It was overwritten or dropped since the view: nothing is left to repair.
    Superseded,
    /// The bytes are from before the view: ask again.
    TooOld,
    /// The bytes are of a position that is not applied here yet: offer them again.
    TooNew,
    /// The bytes are of the same version and not those that the checksum was made of. Never taken.
    Differs,
}

impl Group {
    /// Replaces block `block` of a chunk, found damaged in `view`, by the bytes that a peer has at
    /// applied index `index`. Waits while the overlay is full. As with every change of chunks, a
    /// crash before the next checkpoint undoes it, so one is asked for at once: what was read seldom
    /// may be written as seldom, and no other would come.
    pub fn repair(
        &self,
        view: &ChunkView,
        key: ChunkKey,
        block: u32,
        index: u64,
        bytes: Bytes,
    ) -> Result<Repair, StoreError> {
        let len = bytes.len();
        if len as u64 != BLOCK_SIZE || u64::from(block) >= BLOCKS_PER_CHUNK {
            return Err(StoreError::invalid(format!("{len} bytes for block {block} of a chunk")));
        }
        let at = block as u16;
        let was = view.place(key, at);
        if !matches!(was, Place::Device(_) | Place::Lost(_)) {
            return Ok(Repair::Superseded);
        }
        if view.applied().is_none_or(|applied| applied.index > index) {
            return Ok(Repair::TooOld);
        }
        // Changes nothing that an entry wrote: no index belongs to it.
        let apply = self.begin_apply(0)?;
        let (applied, _) = self.inner.state()?;
        if applied.is_none_or(|applied| applied.index < index) {
            return Ok(Repair::TooNew);
        }
        let space = &self.inner.space;
        // The view's pin keeps the block's number from being given to another version.
        if !view.is_of(space) || space.place(key, at) != was {
            return Ok(Repair::Superseded);
        }
        // Of a lost block there is no checksum.
        if let Place::Device(addr) = was
            && crc32c(&bytes) != addr.crc
        {
            return Ok(Repair::Differs);
        }
        let Some(written) = space.written(key, at) else { return Ok(Repair::Superseded) };
        space.put(key, at, &bytes, &[written]);
        drop(apply);
        self.core().upkeep.request_checkpoint();
        Ok(Repair::Done)
    }
}
