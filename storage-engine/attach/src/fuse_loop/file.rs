//! A FUSE file system of one file, the volume. Requests are handed to the tokio runtime as they
//! come and answered when the volume has answered; the kernel caches none of the file's bytes.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use curve_client::{BlockDevice, BlockError};
use curve_types::BLOCK_SIZE;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, SessionACL,
    WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::errno;

const FILE_INODE: INodeNo = INodeNo(2);
/// Sizes and attributes are asked for anew each time: the volume may have grown.
const TTL: Duration = Duration::ZERO;
/// Longest write and read of one request; the kernel's own limit is 256 pages of 4 KiB.
const IO_LEN_MAX: u32 = 1 << 20;
/// Asynchronous requests that the kernel may have open. A loop device queues 128.
const BACKGROUND_MAX: u16 = 256;
/// Bytes of requests under way: the same as the volume client allows itself, so that no more wait
/// in memory than can be worked on.
const MEMORY_MAX: usize = 64 << 20;
/// Unit in which memory is counted; also what a request without data costs.
const MEMORY_UNIT: usize = 4096;

/// The file system's state: nothing but the volume.
pub(super) struct VolumeFile {
    volume: Arc<dyn BlockDevice>,
    name: String,
    runtime: Handle,
    memory: Arc<Semaphore>,
}

/// Mounts; the returned session unmounts when dropped.
pub(super) fn mount(file: VolumeFile, mount_point: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.acl = SessionACL::Owner;
    config.mount_options = vec![
        MountOption::FSName("curve".to_owned()),
        MountOption::Subtype("volume".to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    fuser::Session::new(file, mount_point, &config)?.spawn()
}

impl VolumeFile {
    pub(super) fn new(volume: Arc<dyn BlockDevice>, name: &str, runtime: Handle) -> Self {
        let memory = Arc::new(Semaphore::new(MEMORY_MAX / MEMORY_UNIT));
        Self { volume, name: name.to_owned(), runtime, memory }
    }

    fn directory(&self) -> FileAttr {
        FileAttr { kind: FileType::Directory, ino: INodeNo::ROOT, perm: 0o700, ..self.file() }
    }

    fn file(&self) -> FileAttr {
        let size = self.volume.size();
        FileAttr {
            ino: FILE_INODE,
            size,
            blocks: size / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: if self.volume.read_only() { 0o400 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_SIZE as u32,
            flags: 0,
        }
    }

    /// Runs one request beside the others. Waits, and with it the kernel's queue, while the
    /// requests under way hold all the memory there is for them.
    fn start(&self, bytes: usize, request: impl Future<Output = ()> + Send + 'static) {
        let units = bytes.div_ceil(MEMORY_UNIT).max(1) as u32;
        let memory = self.memory.clone();
        let permit = match memory.clone().try_acquire_many_owned(units) {
            Ok(permit) => permit,
            Err(_) => {
                self.runtime.block_on(memory.acquire_many_owned(units)).expect("never closed")
            }
        };
        self.runtime.spawn(async move {
            request.await;
            drop(permit);
        });
    }
}

/// Reports a failure once, where it turns into an errno.
fn to_errno(step: &'static str, error: &BlockError) -> Errno {
    tracing::warn!(step, %error, "block IO failed");
    errno::to_fuse(error)
}

fn answer(step: &'static str, result: &Result<(), BlockError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(to_errno(step, error)),
    }
}

/// Frees the range's whole blocks and zeroes its edges: a punched hole reads as zeroes.
async fn punch_hole(volume: &dyn BlockDevice, offset: u64, length: u64) -> Result<(), BlockError> {
    let end = offset + length;
    let first_whole = offset.next_multiple_of(BLOCK_SIZE);
    let last_whole = end / BLOCK_SIZE * BLOCK_SIZE;
    if first_whole >= last_whole {
        return volume.write_zeroes(offset, length).await;
    }
    if offset < first_whole {
        volume.write_zeroes(offset, first_whole - offset).await?;
    }
    if last_whole < end {
        volume.write_zeroes(last_whole, end - last_whole).await?;
    }
    volume.discard(first_whole, last_whole - first_whole).await
}

impl Filesystem for VolumeFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES;
        // Without one of them IO is slower, not wrong.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let refused = |_| io::Error::from(io::ErrorKind::Unsupported);
        config.set_max_write(IO_LEN_MAX).map_err(refused)?;
        config.set_max_background(BACKGROUND_MAX).map_err(|_| io::ErrorKind::Unsupported)?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == self.name.as_str() {
            reply.entry(&TTL, &self.file(), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = if inode == FILE_INODE { self.file() } else { self.directory() };
        reply.attr(&TTL, &attr);
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.acc_mode() != fuser::OpenAccMode::O_RDONLY;
        if inode != FILE_INODE {
            reply.error(Errno::EISDIR);
        } else if writes && self.volume.read_only() {
            reply.error(Errno::EROFS);
        } else {
            let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            reply.opened(FileHandle(0), direct);
        }
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.volume.size().saturating_sub(offset);
        let len = u64::from(size).min(left) as u32;
        let volume = self.volume.clone();
        self.start(len as usize, async move {
            match volume.read(offset, len).await {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(to_errno("read", &error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (volume, data) = (self.volume.clone(), Bytes::copy_from_slice(data));
        let len = data.len() as u32;
        self.start(data.len(), async move {
            match volume.write(offset, data).await {
                Ok(()) => reply.written(len),
                Err(error) => reply.error(to_errno("write", &error)),
            }
        });
    }

    /// Sent at every close; durability is fsync's matter.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let volume = self.volume.clone();
        self.start(0, async move { answer("flush", &volume.flush().await, reply) });
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let volume = self.volume.clone();
        let in_place = mode & libc::FALLOC_FL_KEEP_SIZE != 0
            || offset.checked_add(length).is_some_and(|end| end <= volume.size());
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => self.start(0, async move {
                let punched = punch_hole(&*volume, offset, length).await;
                answer("discard", &punched, reply);
            }),
            libc::FALLOC_FL_ZERO_RANGE if in_place => self.start(0, async move {
                answer("write zeroes", &volume.write_zeroes(offset, length).await, reply);
            }),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE_INODE, FileType::RegularFile, self.name.as_str()),
        ];
        for (at, (inode, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(inode, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
