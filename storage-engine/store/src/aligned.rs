//! Buffers aligned for O_DIRECT, reused through a small pool. The crate's only memory unsafety.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use crate::disk::ALIGN;

/// Capacities kept for reuse, with how many of each: many small ones for reads of a few blocks,
/// few large ones. At most 6.5 MiB in a process.
const CLASSES: [(usize, usize); 4] =
    [(4 << 10, 128), (16 << 10, 32), (128 << 10, 12), (1 << 20, 4)];

static POOL: [Mutex<Vec<AlignedBuf>>; CLASSES.len()] = [const { Mutex::new(Vec::new()) }; 4];

/// Bytes at an address that is a multiple of 4096. Every byte up to the capacity is initialized
/// (zero at first, possibly stale after reuse), so that the length may move freely below it.
pub(crate) struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its allocation, and shared access only reads it.
#[expect(unsafe_code, reason = "raw allocation")]
unsafe impl Send for AlignedBuf {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "raw allocation")]
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `len` bytes, from the pool if one fits. Its content is unspecified.
    pub fn take(len: usize) -> PooledBuf {
        let class = CLASSES.iter().position(|(capacity, _)| *capacity >= len);
        let reused =
            class.and_then(|i| POOL[i].lock().unwrap_or_else(PoisonError::into_inner).pop());
        let capacity = class.map_or(len, |i| CLASSES[i].0);
        let mut buf = reused.unwrap_or_else(|| Self::with_capacity(capacity));
        buf.len = len;
        PooledBuf(Some(buf))
    }

    /// An empty buffer outside the pool.
    #[expect(unsafe_code, reason = "raw allocation")]
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.max(1).next_multiple_of(ALIGN);
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout(capacity)) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout(capacity)) };
        Self { ptr, len: 0, capacity }
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Moves the length within the capacity; bytes that appear are unspecified.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "aligned buffer overflow");
        self.len = len;
    }

    /// Appends. The caller has sized the buffer for its content.
    pub fn put(&mut self, bytes: &[u8]) {
        let at = self.len;
        assert!(bytes.len() <= self.capacity - at, "aligned buffer overflow");
        self.len += bytes.len();
        self[at..].copy_from_slice(bytes);
    }

    /// Appends zeroes until the length is a multiple of 4096.
    pub fn pad(&mut self) {
        let at = self.len;
        self.len = at.next_multiple_of(ALIGN);
        self[at..].fill(0);
    }
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, ALIGN).expect("capacity below isize::MAX")
}

impl Drop for AlignedBuf {
    #[expect(unsafe_code, reason = "raw allocation")]
    fn drop(&mut self) {
        // SAFETY: allocated in `with_capacity` with the same layout.
        unsafe { dealloc(self.ptr.as_ptr(), layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    #[expect(unsafe_code, reason = "raw allocation")]
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity`, all of which is initialized and owned.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    #[expect(unsafe_code, reason = "raw allocation")]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// Goes back to the pool when dropped.
pub(crate) struct PooledBuf(Option<AlignedBuf>);

impl Drop for PooledBuf {
    fn drop(&mut self) {
        let Some(buf) = self.0.take() else { return };
        let Some(class) = CLASSES.iter().position(|(capacity, _)| *capacity == buf.capacity) else {
            return;
        };
        let mut free = POOL[class].lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < CLASSES[class].1 {
            free.push(buf);
        }
    }
}

impl Deref for PooledBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_keep_what_was_put() {
        for len in [1, 4096, 5000, 1 << 20, (1 << 20) + 4096] {
            let mut buf = AlignedBuf::take(len);
            assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
            buf.fill(7);
            assert_eq!(buf.iter().map(|b| *b as usize).sum::<usize>(), 7 * len);
        }
        let mut buf = AlignedBuf::with_capacity(8192);
        buf.put(b"abc");
        buf.pad();
        assert_eq!((buf.len(), &buf[..4]), (4096, &b"abc\0"[..]));
    }
}
