//! Reading bytes of chunks: where the blocks are, and then the bytes, verified.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use curve_types::ChunkKey;

use super::{BLOCK, ChunkMap, Pin, Space, check_range};
use crate::StoreError;
use crate::aligned::{AlignedBuf, PooledBuf};
use crate::chunk::{BlockAddr, Chunk, Place};
use crate::data::{DataArea, first_bad};

impl Space {
    /// None once the space is retired: its tables are empty, which does not mean zeroes.
    pub fn read(
        self: &Arc<Self>,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        check_range(offset, u64::from(len))?;
        let Some((pin, places)) = self.locate(key, offset, len) else { return Ok(None) };
        let result = read_places(&self.data, places, key, offset, len);
        drop(pin);
        result.map(Some)
    }

    /// Where the blocks of a range are (None: all holes), kept from being reused by the pin. None
    /// once the space is retired.
    fn locate(
        self: &Arc<Self>,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Option<(Pin, Option<Vec<Place>>)> {
        let pin = self.pin();
        let tables = self.tables();
        // Places, not the chunk: holding the chunk would make a writer beside us copy it.
        let found = tables.chunks.get(&key).map(|chunk| places(chunk, offset, len));
        (!tables.retired).then_some((pin, found))
    }

    /// See `Group::begin_read`.
    pub fn begin_read(
        self: &Arc<Self>,
        key: ChunkKey,
        offset: u32,
        len: u32,
        fetched: Box<dyn FnOnce(Fetched) + Send>,
    ) -> Result<BegunRead, StoreError> {
        check_range(offset, u64::from(len))?;
        let Some(reads) = self.data.device.disk().async_reads() else {
            return Ok(BegunRead::Declined);
        };
        let Some((pin, places)) = self.locate(key, offset, len) else {
            return Ok(BegunRead::Declined);
        };
        let on_device = |place: &Place| matches!(place, Place::Device(_));
        if !places.as_ref().is_some_and(|places| places.iter().any(on_device)) {
            return read_places(&self.data, places, key, offset, len).map(BegunRead::Ready);
        }
        let Some(addrs) = neighbours(&places.unwrap_or_default()) else {
            return Ok(BegunRead::Declined);
        };
        let at = self.data.device_offset(addrs[0].block);
        let buf = AlignedBuf::take(addrs.len() * BLOCK as usize);
        let done = move |read| fetched(Fetched { pin, addrs, key, offset, len, read });
        Ok(match reads.begin(buf, at, Box::new(done)) {
            true => BegunRead::Pending,
            false => BegunRead::Declined,
        })
    }
}

/// How a read began.
pub enum BegunRead {
    /// Nothing of it was on the disk.
    Ready(Bytes),
    /// The callback will come, or has come.
    Pending,
    /// Use `Group::read`; the callback was dropped.
    Declined,
}

/// What the disk answered to a read.
pub struct Fetched {
    pin: Pin,
    addrs: Vec<BlockAddr>,
    key: ChunkKey,
    offset: u32,
    len: u32,
    read: io::Result<PooledBuf>,
}

impl Fetched {
    /// The bytes, verified.
    pub fn into_bytes(self) -> Result<Bytes, StoreError> {
        let Self { pin, addrs, key, offset, len, read } = self;
        let data = &pin.space.data;
        let buf = read.map_err(|source| {
            let at = data.device_offset(addrs[0].block);
            data.device.fail(StoreError::io("read data", at, source))
        })?;
        if let Some(bad) = first_bad(&addrs, &buf) {
            let block = offset / BLOCK + bad as u32;
            return Err(StoreError::BadBlock { key, block, device_block: addrs[bad].block });
        }
        let within = (offset % BLOCK) as usize..(offset % BLOCK + len) as usize;
        Ok(Bytes::from_owner(buf).slice(within))
    }
}

/// The blocks' addresses, if all of them lie on the device, one after the other.
fn neighbours(places: &[Place]) -> Option<Vec<BlockAddr>> {
    let mut addrs: Vec<BlockAddr> = Vec::with_capacity(places.len());
    for place in places {
        let Place::Device(addr) = place else { return None };
        if addrs.last().is_some_and(|last| last.block + 1 != addr.block) {
            return None;
        }
        addrs.push(*addr);
    }
    Some(addrs)
}

/// Where one block is.
pub(crate) fn place(chunks: &ChunkMap, key: ChunkKey, index: u16) -> Place {
    chunks.get(&key).map_or(Place::Hole, |chunk| chunk.place(index))
}

/// Where the blocks that `offset..offset + len` touches are.
pub(crate) fn places(chunk: &Chunk, offset: u32, len: u32) -> Vec<Place> {
    (offset / BLOCK..(offset + len).div_ceil(BLOCK)).map(|i| chunk.place(i as u16)).collect()
}

/// Reads bytes of one chunk (None: all holes). Whoever looked up the places still holds the pin.
pub(crate) fn read_places(
    data: &DataArea,
    places: Option<Vec<Place>>,
    key: ChunkKey,
    offset: u32,
    len: u32,
) -> Result<Bytes, StoreError> {
    let Some(places) = places.filter(|_| len > 0) else {
        return Ok(Bytes::from(vec![0; len as usize]));
    };
    let within = (offset % BLOCK) as usize..(offset % BLOCK + len) as usize;
    if let [Place::Memory(bytes)] = &places[..] {
        return Ok(bytes.slice(within));
    }
    let mut buf = AlignedBuf::take(places.len() * BLOCK as usize);
    let mut at = 0;
    while at < places.len() {
        let target = &mut buf[at * BLOCK as usize..];
        let run = match &places[at] {
            Place::Hole => {
                target[..BLOCK as usize].fill(0);
                1
            }
            Place::Memory(bytes) => {
                target[..BLOCK as usize].copy_from_slice(bytes);
                1
            }
            Place::Lost(_) => {
                return Err(StoreError::LostBlock { key, block: offset / BLOCK + at as u32 });
            }
            Place::Device(_) => {
                let on_device = |place: &Place| match place {
                    Place::Device(addr) => Some(*addr),
                    _ => None,
                };
                let addrs: Vec<BlockAddr> = places[at..].iter().map_while(on_device).collect();
                if let Some(bad) = data.read_verified(&addrs, target)? {
                    let block = offset / BLOCK + (at + bad) as u32;
                    let device_block = addrs[bad].block;
                    return Err(StoreError::BadBlock { key, block, device_block });
                }
                addrs.len()
            }
        };
        at += run;
    }
    Ok(Bytes::from_owner(buf).slice(within))
}
