//! Which parts of a file were never written, as the file system says (FIEMAP, `linux/fiemap.h`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: u32 = 0xc020_660b;
const EXTENT_LAST: u32 = 0x1;
const EXTENT_UNWRITTEN: u32 = 0x800;
/// Extents that one call tells.
const EXTENTS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// The first unwritten range at or after `from`.
pub(super) fn next_unwritten(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    let mut from = from;
    loop {
        let extents = extents(file, from)?;
        if let Some(found) = extents.iter().find(|extent| extent.flags & EXTENT_UNWRITTEN != 0) {
            return Ok(Some(found.logical.max(from)..found.logical + found.length));
        }
        match extents.last() {
            Some(last) if last.flags & EXTENT_LAST == 0 => from = last.logical + last.length,
            _ => return Ok(None),
        }
    }
}

#[expect(unsafe_code, reason = "std has no FIEMAP")]
fn extents(file: &File, start: u64) -> io::Result<Vec<Extent>> {
    let mut map = Fiemap {
        start,
        length: u64::MAX - start,
        flags: 0,
        mapped_extents: 0,
        extent_count: EXTENTS as u32,
        reserved: 0,
        extents: [Extent::default(); EXTENTS],
    };
    // SAFETY: the kernel writes at most `extent_count` extents behind the header, which `map` has
    // room for, and both outlive the call.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP.into(), &raw mut map) };
    match answer {
        0 => Ok(map.extents[..EXTENTS.min(map.mapped_extents as usize)].to_vec()),
        _ => Err(io::Error::last_os_error()),
    }
}
