//! A device file or raw partition, opened with O_DIRECT.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::reads::AsyncReads;
use super::uring::Uring;
use super::{Disk, extents};

/// A file or block device. Locked against a second opener for as long as it lives.
pub struct FileDisk {
    file: File,
    len: u64,
    /// None where there is no io_uring, or after it has failed.
    ring: Mutex<Option<Uring>>,
    /// None where there is no io_uring.
    reads: Option<Arc<AsyncReads>>,
}

impl FileDisk {
    /// Opens an existing file or block device.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(open_direct(path, false)?)
    }

    /// Opens the file, or creates it with `size` bytes allocated on the file system. An existing
    /// file is never resized.
    pub fn open_or_create(path: &Path, size: u64) -> io::Result<Self> {
        match Self::open(path) {
            Ok(disk) if disk.len > 0 => return Ok(disk),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = open_direct(path, true)?;
        let disk = Self::from_file(file)?;
        allocate(&disk.file, size)?;
        disk.file.sync_all()?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { len: size, ..disk })
    }

    fn from_file(file: File) -> io::Result<Self> {
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::Error(source) => source,
            std::fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the device is in use by another process",
            ),
        })?;
        let len = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        let reads = AsyncReads::new(&file).map(Arc::new);
        Ok(Self { file, len, ring: Mutex::new(Uring::new()), reads })
    }
}

/// Opens with O_DIRECT, or without it where the file system has none (tmpfs).
fn open_direct(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
    match options.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.custom_flags(libc::O_CLOEXEC).open(path)
        }
        other => other,
    }
}

#[expect(unsafe_code, reason = "std has no fallocate")]
fn allocate(file: &File, size: u64) -> io::Result<()> {
    let size = i64::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // SAFETY: the descriptor is open for the whole call; no memory is passed.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn write_all_at(&self, writes: &[(u64, &[u8])]) -> io::Result<()> {
        let mut slot = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        match (writes, slot.take()) {
            ([_, _, ..], Some(mut ring)) => {
                ring.write_all(&self.file, writes)?;
                *slot = Some(ring);
                Ok(())
            }
            (_, ring) => {
                *slot = ring;
                writes.iter().try_for_each(|(offset, buf)| self.write_at(buf, *offset))
            }
        }
    }

    fn next_unwritten(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        match self.file.metadata()?.is_file() {
            true => extents::next_unwritten(&self.file, from),
            false => Ok(None),
        }
    }

    fn async_reads(&self) -> Option<&Arc<AsyncReads>> {
        self.reads.as_ref()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
