//! Reads that no thread waits for: submitted through io_uring, announced by an eventfd.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use io_uring::{IoUring, opcode, types};

use super::uring;
use crate::aligned::PooledBuf;

/// Reads under way at most; the ring has as many places.
const DEPTH: u32 = 128;

/// Told how a read ended, with the filled buffer.
pub(crate) type ReadDone = Box<dyn FnOnce(io::Result<PooledBuf>) + Send>;

/// One file's reads under way. Whoever has `event` in its poll set calls `reap` when it is
/// readable.
pub struct AsyncReads {
    file: File,
    event: OwnedFd,
    inner: Mutex<Inner>,
}

struct Inner {
    ring: IoUring,
    /// By the completion's user data. The kernel writes into these buffers.
    waiting: Vec<Option<Waiting>>,
    free: Vec<usize>,
    closed: bool,
}

struct Waiting {
    buf: PooledBuf,
    offset: u64,
    done: ReadDone,
}

impl AsyncReads {
    /// None where io_uring is refused.
    pub(super) fn new(file: &File) -> Option<Self> {
        let open = || {
            let ring = uring::open(DEPTH, opcode::Read::CODE)?;
            let event = eventfd()?;
            ring.submitter().register_eventfd(event.as_raw_fd())?;
            let waiting = std::iter::repeat_with(|| None).take(DEPTH as usize).collect();
            let inner = Inner { ring, waiting, free: (0..DEPTH as usize).collect(), closed: false };
            io::Result::Ok(Self { file: file.try_clone()?, event, inner: Mutex::new(inner) })
        };
        open()
            .inspect_err(|error| tracing::info!(%error, "no io_uring here: reading with pread"))
            .ok()
    }

    /// Becomes readable, edge by edge, when reads have ended.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to fill `buf` from `offset`. False, and `done` is dropped, if this read must be made
    /// in another way.
    pub(crate) fn begin(&self, buf: PooledBuf, offset: u64, done: ReadDone) -> bool {
        self.inner().begin(&self.file, Waiting { buf, offset, done })
    }

    /// Calls back for every read that has ended.
    pub fn reap(&self) {
        let ended = self.inner().ended();
        ended.into_iter().for_each(|(waiting, result)| self.finish(waiting, result));
    }

    fn finish(&self, waiting: Waiting, result: i32) {
        let Waiting { mut buf, offset, done } = waiting;
        let read = match result {
            len if usize::try_from(len) == Ok(buf.len()) => Ok(()),
            // A short read says nothing of why: that comes with the next one.
            0.. => self.file.read_exact_at(&mut buf, offset),
            errno if [-libc::EINTR, -libc::EAGAIN].contains(&errno) => {
                self.file.read_exact_at(&mut buf, offset)
            }
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        done(read.map(|()| buf));
    }

    /// Begins no more, and waits for what is under way.
    pub fn close(&self) {
        loop {
            let ended = {
                let mut inner = self.inner();
                inner.closed = true;
                if inner.free.len() == inner.waiting.len() {
                    return;
                }
                // Interrupted or not, the loop looks again.
                let _ = inner.ring.submit_and_wait(1);
                inner.ended()
            };
            ended.into_iter().for_each(|(waiting, result)| self.finish(waiting, result));
        }
    }
}

/// The kernel may write into the buffers until then.
impl Drop for AsyncReads {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    #[expect(unsafe_code, reason = "the kernel fills the buffer behind the borrow checker's back")]
    fn begin(&mut self, file: &File, mut waiting: Waiting) -> bool {
        let Ok(len) = u32::try_from(waiting.buf.len()) else { return false };
        if self.closed {
            return false;
        }
        let Some(slot) = self.free.pop() else { return false };
        let descriptor = types::Fd(file.as_raw_fd());
        let read = opcode::Read::new(descriptor, waiting.buf.as_mut_ptr(), len)
            .offset(waiting.offset)
            .build()
            .user_data(slot as u64);
        self.waiting[slot] = Some(waiting);
        // SAFETY: the buffer lies in `waiting`, untouched, until the completion was seen, or is
        // leaked; the file is open as long as anything is under way: `close` waits for that.
        let pushed = unsafe { self.ring.submission().push(&read) };
        let submitted = pushed.map_err(io::Error::other).and_then(|()| self.submit());
        if let Err(error) = submitted {
            tracing::warn!(%error, "io_uring fails: reading with pread");
            self.closed = true;
            // The entry may still be in the queue, which waiting for others submits.
            if let Some(Waiting { buf, .. }) = self.waiting[slot].take() {
                std::mem::forget(buf);
            }
            self.free.push(slot);
            return false;
        }
        true
    }

    fn submit(&self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn ended(&mut self) -> Vec<(Waiting, i32)> {
        let Self { ring, waiting, free, .. } = self;
        let take = |completion: io_uring::cqueue::Entry| {
            let slot = completion.user_data() as usize;
            let ended = waiting.get_mut(slot)?.take()?;
            free.push(slot);
            Some((ended, completion.result()))
        };
        ring.completion().filter_map(take).collect()
    }
}

#[expect(unsafe_code, reason = "std has no eventfd")]
fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
