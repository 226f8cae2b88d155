//! Several writes at once, with one system call, through io_uring.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use io_uring::{IoUring, Probe, opcode, types};

/// Writes that are submitted at once; more follow when these are done.
const DEPTH: u32 = 64;

pub(super) struct Uring(IoUring);

/// A ring that knows the operation. An error where the kernel is too old for it, or where it or the
/// container's seccomp profile refuses io_uring.
pub(super) fn open(depth: u32, operation: u8) -> io::Result<IoUring> {
    let ring = IoUring::new(depth)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match probe.is_supported(operation) {
        true => Ok(ring),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

impl Uring {
    /// None where io_uring is refused.
    pub fn new() -> Option<Self> {
        open(DEPTH, opcode::Write::CODE)
            .inspect_err(|error| tracing::info!(%error, "no io_uring here: writing with pwrite"))
            .ok()
            .map(Self)
    }

    /// Writes everything. After an error the ring may still refer to buffers it never submitted:
    /// it must be dropped.
    pub fn write_all(&mut self, file: &File, writes: &[(u64, &[u8])]) -> io::Result<()> {
        writes.chunks(DEPTH as usize).try_for_each(|some| self.write_some(file, some))
    }

    #[expect(unsafe_code, reason = "the kernel reads the buffers behind the borrow checker's back")]
    fn write_some(&mut self, file: &File, writes: &[(u64, &[u8])]) -> io::Result<()> {
        let descriptor = types::Fd(file.as_raw_fd());
        for (number, (offset, buf)) in (0..).zip(writes) {
            let len = u32::try_from(buf.len()).map_err(io::Error::other)?;
            let write = opcode::Write::new(descriptor, buf.as_ptr(), len).offset(*offset);
            // SAFETY: the buffers are borrowed until `complete` has seen every submitted write end,
            // and the file is open as long.
            unsafe { self.0.submission().push(&write.build().user_data(number)) }
                .map_err(io::Error::other)?;
        }
        let mut results = vec![None; writes.len()];
        self.complete(&mut results)?;
        for ((offset, buf), result) in writes.iter().zip(results) {
            let written = match result {
                Some(written @ 0..) => written as usize,
                Some(errno) if [-libc::EINTR, -libc::EAGAIN].contains(&errno) => 0,
                Some(errno) => return Err(io::Error::from_raw_os_error(-errno)),
                None => return Err(io::Error::other("io_uring lost a write")),
            };
            if written < buf.len() {
                file.write_all_at(&buf[written..], offset + written as u64)?;
            }
        }
        Ok(())
    }

    /// Waits for as many completions as there are results. Err only if none is outstanding.
    fn complete(&mut self, results: &mut [Option<i32>]) -> io::Result<()> {
        let mut ended = 0;
        while ended < results.len() {
            let waited = self.0.submit_and_wait(results.len() - ended);
            for completion in self.0.completion() {
                if let Some(result) = results.get_mut(completion.user_data() as usize) {
                    *result = Some(completion.result());
                }
                ended += 1;
            }
            if let Err(error) = waited
                && error.kind() != io::ErrorKind::Interrupted
            {
                let unsubmitted = self.0.submission().len();
                if ended + unsubmitted >= results.len() {
                    return Err(error);
                }
                // The kernel is short of something while writes are under way: they will end.
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}
