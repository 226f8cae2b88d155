//! A log on a device of its own: how it is known to belong to the other one, and both as one disk.
//!
//! The log's device begins with two copies of a block that names the device it belongs to; the ring
//! begins at 64 KiB. In the addresses of the joined disk it lies after the end of the other device.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use curve_types::{BLOCK_SIZE, ByteSize, ClusterId, DeviceId};

use crate::aligned::AlignedBuf;
use crate::codec::{Get, Malformed, Put, seal};
use crate::disk::ALIGN;
use crate::superblock::{
    COPIES, HEAD_LEN, WAL_LEN_LEAST, WAL_LEN_MAX, WAL_LEN_MIN, begin_named, make_whole, open_named,
    plan_with_log, write_format,
};
use crate::{
    AsyncReads, DeviceState, Disk, FormatOptions, StoreError, Superblock, inspect, superblock,
};

/// First bytes of both copies.
pub(crate) const MAGIC: &[u8; 8] = b"CURVEWAL";
/// A log is at least this part of its device, up to `WAL_LEN_LEAST_MAX`: each quarter of it costs a
/// checkpoint of all tables.
const WAL_PART: u64 = 256;
const WAL_LEN_LEAST_MAX: u64 = 1 << 30;

/// What a log's device says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owner {
    cluster: ClusterId,
    device: DeviceId,
    wal_len: u64,
    /// False until the device that it belongs to is formatted: before, there is nothing in it.
    in_use: bool,
}

/// Formats a blank device, with its log on another blank one.
pub fn format_with_log(
    disk: Arc<dyn Disk>,
    log: Arc<dyn Disk>,
    options: &FormatOptions,
) -> Result<Arc<dyn Disk>, StoreError> {
    let wal_len = ring_len(&*log);
    let least = (options.size / WAL_PART).clamp(WAL_LEN_MIN, WAL_LEN_LEAST_MAX);
    if wal_len < least {
        let (is, min) = (ByteSize(log.len()), ByteSize(least + HEAD_LEN));
        return unusable(format!("the log's device is only {is} long, at least {min} are needed"));
    }
    let superblock = plan_with_log(&*disk, options, wal_len)?;
    format_planned(disk, log, superblock)
}

/// As `format_small`, with the log on another device: all of that, however short.
#[cfg(feature = "sim")]
pub fn format_small_with_log(
    disk: Arc<dyn Disk>,
    log: Arc<dyn Disk>,
    options: &FormatOptions,
    data_blocks_max: u64,
) -> Result<Arc<dyn Disk>, StoreError> {
    let mut superblock = plan_with_log(&*disk, options, ring_len(&*log))?;
    superblock.layout.data_blocks = superblock.layout.data_blocks.min(data_blocks_max);
    format_planned(disk, log, superblock)
}

/// Of the longest ring that the device holds.
fn ring_len(log: &dyn Disk) -> u64 {
    log.len().saturating_sub(HEAD_LEN).min(WAL_LEN_MAX) / BLOCK_SIZE * BLOCK_SIZE
}

fn format_planned(
    disk: Arc<dyn Disk>,
    log: Arc<dyn Disk>,
    superblock: Superblock,
) -> Result<Arc<dyn Disk>, StoreError> {
    check_blank_log(&*log)?;
    let owner = Owner { in_use: false, ..owner_of(&superblock) };
    write_owner(&*log, &owner)?;
    let joined = Joined::new(disk, log.clone(), superblock.size);
    write_format(&joined, superblock)?;
    write_owner(&*log, &Owner { in_use: true, ..owner })?;
    Ok(Arc::new(joined))
}

/// A formatted device together with its log.
pub fn with_log(disk: Arc<dyn Disk>, log: Arc<dyn Disk>) -> Result<Arc<dyn Disk>, StoreError> {
    let superblock: Superblock = superblock::load(&*disk)?;
    check_log(&*log, &superblock)?;
    // A damaged copy is made whole, and whatever was formatted is in use from now on.
    make_whole(&*log, &encode(&owner_of(&superblock)))?;
    Ok(Arc::new(Joined::new(disk, log, superblock.size)))
}

/// Whether this is the log of the formatted device.
pub fn check_log(log: &dyn Disk, device: &Superblock) -> Result<(), StoreError> {
    if !device.has_log_elsewhere() {
        return unusable("the device has its log on itself".to_owned());
    }
    match inspect_log(log)? {
        LogDevice::Of(owner) if Owner { in_use: true, ..owner } == owner_of(device) => Ok(()),
        LogDevice::Of(owner) => unusable(format!(
            "it is the log of device {} of cluster {} ({})",
            owner.device,
            owner.cluster,
            ByteSize(owner.wal_len)
        )),
        LogDevice::Blank => unusable("it is blank, and the device's log was not".to_owned()),
        LogDevice::Unusable { what } => unusable(what),
    }
}

/// Whether a device that is blank may have its log here: nothing is lost by that. What is left of a
/// format that was cut short does not count.
pub fn check_blank_log(log: &dyn Disk) -> Result<(), StoreError> {
    match inspect_log(log)? {
        LogDevice::Blank | LogDevice::Of(Owner { in_use: false, .. }) => Ok(()),
        LogDevice::Of(owner) => unusable(format!("it holds the log of device {}", owner.device)),
        LogDevice::Unusable { what } => unusable(what),
    }
}

/// Of a device that is in use.
fn owner_of(superblock: &Superblock) -> Owner {
    Owner {
        cluster: superblock.cluster,
        device: superblock.device,
        wal_len: superblock.layout.wal_len,
        in_use: true,
    }
}

/// Durably, one copy after the other.
fn write_owner(log: &dyn Disk, owner: &Owner) -> Result<(), StoreError> {
    for offset in COPIES {
        let io = |step| move |source| StoreError::io(step, offset, source);
        log.write_at(&encode(owner), offset).map_err(io("write the log's owner"))?;
        log.sync().map_err(io("sync the log's owner"))?;
    }
    Ok(())
}

fn unusable<T>(what: String) -> Result<T, StoreError> {
    Err(StoreError::Unusable { what })
}

enum LogDevice {
    Blank,
    Of(Owner),
    Unusable { what: String },
}

fn inspect_log(log: &dyn Disk) -> Result<LogDevice, StoreError> {
    let mut damage = None;
    for offset in COPIES {
        let mut copy = AlignedBuf::take(ALIGN);
        if offset + ALIGN as u64 > log.len() {
            break;
        }
        log.read_at(&mut copy, offset)
            .map_err(|source| StoreError::io("read the log's owner", offset, source))?;
        if !copy.starts_with(MAGIC) {
            continue;
        }
        match decode(&copy) {
            Ok(owner) if log.len() < HEAD_LEN + owner.wal_len => {
                let (is, was) = (ByteSize(log.len()), ByteSize(HEAD_LEN + owner.wal_len));
                let what = format!("it is cut short to {is}, its log needs {was}");
                return Ok(LogDevice::Unusable { what });
            }
            Ok(owner) => return Ok(LogDevice::Of(owner)),
            Err(malformed) => damage = Some(malformed.0),
        }
    }
    if let Some(why) = damage {
        return Ok(LogDevice::Unusable { what: format!("its owner is unreadable: {why}") });
    }
    Ok(match inspect(log)? {
        DeviceState::Blank => LogDevice::Blank,
        DeviceState::Foreign { what } => LogDevice::Unusable { what: format!("it holds {what}") },
        DeviceState::Damaged { what } => LogDevice::Unusable { what },
        DeviceState::Formatted(found) => {
            let what = format!("it is device {} ({})", found.device, found.name);
            LogDevice::Unusable { what }
        }
    })
}

fn encode(owner: &Owner) -> AlignedBuf {
    let mut buf = begin_named(MAGIC);
    buf.put(&owner.cluster.to_bytes());
    buf.put(&owner.device.to_bytes());
    buf.put_u64(owner.wal_len);
    buf.put_u32(u32::from(owner.in_use));
    seal(buf)
}

fn decode(block: &[u8]) -> Result<Owner, Malformed> {
    let fields = &mut open_named(block, MAGIC)?;
    let cluster = ClusterId::from_bytes(fields.array()?);
    let device = DeviceId::from_bytes(fields.array()?);
    let wal_len = fields.u64()?;
    if !(WAL_LEN_LEAST..=WAL_LEN_MAX).contains(&wal_len) || !wal_len.is_multiple_of(BLOCK_SIZE) {
        return Err(Malformed("the log's length is out of range"));
    }
    let in_use = match fields.u32()? {
        0 => false,
        1 => true,
        _ => return Err(Malformed("its state is neither 0 nor 1")),
    };
    Ok(Owner { cluster, device, wal_len, in_use })
}

/// Two disks with one range of addresses.
struct Joined {
    data: Side,
    log: Side,
    /// Where the log's ring begins.
    split: u64,
}

struct Side {
    disk: Arc<dyn Disk>,
    /// Something was written since the last sync began.
    written: AtomicBool,
    /// Held by the sync under way: whoever finds nothing to sync waits for it.
    synced: Mutex<Synced>,
}

/// How the last sync ended. After one that failed nothing is known of what it should have made
/// durable, and the kernel tells of a failure once only: none is tried after it.
#[derive(Clone, Copy)]
enum Synced {
    Well,
    /// Also while a sync is under way, in case it panics.
    Failed(io::ErrorKind),
}

impl Side {
    /// What an earlier process has written may not be durable yet.
    fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, written: AtomicBool::new(true), synced: Mutex::new(Synced::Well) }
    }

    fn write(&self, write: impl FnOnce(&dyn Disk) -> io::Result<()>) -> io::Result<()> {
        let written = write(&*self.disk);
        // Also after an error: part of it may be there.
        self.written.store(true, Ordering::Release);
        written
    }

    fn is_written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    fn sync(&self) -> io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Synced::Failed(kind) = *synced {
            return Err(io::Error::new(kind, "an earlier sync of this disk failed"));
        }
        if self.written.swap(false, Ordering::AcqRel) {
            *synced = Synced::Failed(io::ErrorKind::Other);
            if let Err(error) = self.disk.sync() {
                *synced = Synced::Failed(error.kind());
                return Err(error);
            }
            *synced = Synced::Well;
        }
        Ok(())
    }
}

impl Joined {
    fn new(data: Arc<dyn Disk>, log: Arc<dyn Disk>, split: u64) -> Self {
        Self { data: Side::new(data), log: Side::new(log), split }
    }

    /// The disk at this address, and where there.
    fn side(&self, offset: u64) -> (&Side, u64) {
        match offset.checked_sub(self.split) {
            None => (&self.data, offset),
            Some(within) => (&self.log, HEAD_LEN + within),
        }
    }
}

impl Disk for Joined {
    fn len(&self) -> u64 {
        self.split + self.log.disk.len() - HEAD_LEN
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (side, offset) = self.side(offset);
        side.disk.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let (side, offset) = self.side(offset);
        side.write(|disk| disk.write_at(buf, offset))
    }

    fn write_all_at(&self, writes: &[(u64, &[u8])]) -> io::Result<()> {
        let of = |wanted: &Side| -> Vec<(u64, &[u8])> {
            let placed = writes.iter().map(|(offset, buf)| (self.side(*offset), *buf));
            let own = placed.filter(|((side, _), _)| std::ptr::eq(*side, wanted));
            own.map(|((_, offset), buf)| (offset, buf)).collect()
        };
        for side in [&self.data, &self.log] {
            let writes = of(side);
            if !writes.is_empty() {
                side.write(|disk| disk.write_all_at(&writes))?;
            }
        }
        Ok(())
    }

    /// Of the data only: the log was written once when it was formatted.
    fn next_unwritten(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let found = self.data.disk.next_unwritten(from)?;
        let within = |range: Range<u64>| range.start..range.end.min(self.split);
        Ok(found.map(within).filter(|range| !range.is_empty()))
    }

    fn async_reads(&self) -> Option<&Arc<AsyncReads>> {
        self.data.disk.async_reads()
    }

    fn has_log(&self) -> bool {
        true
    }

    fn sync_log(&self) -> io::Result<()> {
        self.log.sync()
    }

    /// Both at once, where a thread can be had: one for the time of a sync costs less than waiting
    /// for one after the other.
    fn sync(&self) -> io::Result<()> {
        if !self.data.is_written() || !self.log.is_written() {
            return self.log.sync().and_then(|()| self.data.sync());
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("curve-store-sync".to_owned());
            let data = thread.spawn_scoped(scope, || self.data.sync());
            let log = self.log.sync();
            let data = match data {
                Ok(data) => data.join().map_err(|_| io::Error::other("the sync panicked"))?,
                Err(_) => self.data.sync(),
            };
            log.and(data)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_of_an_owner_is_noticed() {
        let (cluster, device) = (ClusterId::random(), DeviceId::random());
        let owner = Owner { cluster, device, wal_len: 64 << 20, in_use: true };
        let whole = encode(&owner);
        assert_eq!(decode(&whole), Ok(owner));
        for bit in (64..ALIGN * 8).step_by(61) {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_no_ring_has_are_refused() {
        let owner = |wal_len| Owner {
            cluster: ClusterId::random(),
            device: DeviceId::random(),
            wal_len,
            in_use: false,
        };
        for wal_len in [0, WAL_LEN_LEAST - BLOCK_SIZE, WAL_LEN_LEAST + 1, u64::MAX] {
            decode(&encode(&owner(wal_len))).expect_err("a wrong length");
        }
    }
}
