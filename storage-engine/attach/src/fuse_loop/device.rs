//! Loop devices, by ioctl (linux/loop.h) and sysfs.
#![expect(unsafe_code, reason = "loop devices are configured by ioctls that nix does not wrap")]

use std::ffi::{OsStr, OsString, c_ulong};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{FuseLoopError, c_path};

const CONTROL: &str = "/dev/loop-control";
/// Block major of loop devices.
const LOOP_MAJOR: u64 = 7;
const LOOP_CLR_FD: c_ulong = 0x4C01;
const LOOP_SET_STATUS64: c_ulong = 0x4C04;
const LOOP_GET_STATUS64: c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: c_ulong = 0x4C07;
const LOOP_CONFIGURE: c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
/// The device ends when its last user closes it. The kernel sets this where it is told to end a
/// device that somebody has open.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Sector of the device: any file system can be mounted, whatever its block size.
const SECTOR: u32 = 512;
/// Free devices that another program may snatch before we give up.
const ATTEMPTS: u32 = 32;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo64 {
    const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// A loop device node.
#[derive(Clone, Debug)]
pub struct LoopDevice {
    number: u32,
    path: PathBuf,
}

impl LoopDevice {
    /// Makes a free loop device serve `file`, with direct IO so that no byte is cached twice.
    /// `remember` is told which before it does, once for every device that is tried.
    pub fn configure<E: From<FuseLoopError>>(
        file: &Path,
        read_only: bool,
        remember: impl Fn(&Path) -> Result<(), E>,
    ) -> Result<Self, E> {
        let backing = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(file)
            .map_err(|source| FuseLoopError::OpenFile { path: file.to_owned(), source })?;
        let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
        for _ in 0..ATTEMPTS {
            let device = Self::free().map_err(|source| FuseLoopError::FindLoop { source })?;
            remember(&device.path)?;
            match device.try_configure(&backing, file, read_only) {
                Ok(()) => return Ok(device),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
                Err(source) => return Err(device.error("configure", source).into()),
            }
        }
        Err(FuseLoopError::FindLoop { source: last }.into())
    }

    /// The device at a path like `/dev/loop3`; `None` if it is no such path.
    pub fn at(path: &Path) -> Option<Self> {
        let number = path.file_name()?.to_str()?.strip_prefix("loop")?.parse().ok()?;
        Some(Self { number, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A device that nobody uses; its node is made if /dev has none.
    fn free() -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        let number = ioctl(&control, LOOP_CTL_GET_FREE, 0)? as u32;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        if !path.exists() {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            mknod(&path, SFlag::S_IFBLK, mode, makedev(LOOP_MAJOR, u64::from(number)))?;
        }
        Ok(Self { number, path })
    }

    fn try_configure(&self, backing: &File, file: &Path, read_only: bool) -> io::Result<()> {
        let node = OpenOptions::new().read(true).write(!read_only).open(&self.path)?;
        let mut file_name = [0; 64];
        let name = c_path(file)?;
        // Cut off where it is too long; sysfs has the whole path.
        let len = name.as_bytes().len().min(file_name.len() - 1);
        file_name[..len].copy_from_slice(&name.as_bytes()[..len]);
        let flags = LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        let config = LoopConfig {
            fd: backing.as_raw_fd() as u32,
            block_size: SECTOR,
            info: LoopInfo64 { flags, file_name, ..LoopInfo64::ZERO },
            reserved: [0; 8],
        };
        ioctl(&node, LOOP_CONFIGURE, &raw const config as usize)?;
        Ok(())
    }

    /// Takes over the file's new size; `Gone` unless the device serves a file of that name.
    pub fn set_capacity(&self, name: &OsStr) -> Result<(), FuseLoopError> {
        let node = self.open_of(name, 0)?.filter(|_| self.serves(name));
        let node = node.ok_or_else(|| FuseLoopError::Gone { path: self.path.clone() })?;
        ioctl(&node, LOOP_SET_CAPACITY, 0).map_err(|e| self.error("resize", e))?;
        Ok(())
    }

    /// Base name of the file that the device serves; `None` if it serves none.
    pub fn backing_name(&self) -> Option<OsString> {
        let path = format!("/sys/block/loop{}/loop/backing_file", self.number);
        let text = std::fs::read_to_string(path).ok()?;
        // The kernel appends this when the file's mount is gone.
        let text = text.trim_end().trim_end_matches(" (deleted)");
        Path::new(text).file_name().map(ToOwned::to_owned)
    }

    /// Whether the device has a file of that name, be it only until its last user closes it.
    pub fn has(&self, name: &OsStr) -> bool {
        self.backing_name().as_deref() == Some(name)
    }

    /// Whether the device has a file of that name and goes on having it. One that ends with its
    /// last user does not count: a moment later its number may be another volume's.
    pub fn serves(&self, name: &OsStr) -> bool {
        let autoclear = format!("/sys/block/loop{}/loop/autoclear", self.number);
        let stays = std::fs::read_to_string(autoclear).is_ok_and(|flag| flag.trim() == "0");
        // Last, since a device that has just ended and begun anew has another file.
        stays && self.has(name)
    }

    /// Takes back an end that waits for the last user. False if the device has no such file.
    pub fn keep(&self, name: &OsStr) -> Result<bool, FuseLoopError> {
        if self.serves(name) {
            return Ok(true);
        }
        let Some(node) = self.open_of(name, 0)? else { return Ok(false) };
        let mut info = LoopInfo64::ZERO;
        ioctl(&node, LOOP_GET_STATUS64, &raw mut info as usize)
            .map_err(|source| self.error("look at", source))?;
        info.flags &= !LO_FLAGS_AUTOCLEAR;
        ioctl(&node, LOOP_SET_STATUS64, &raw const info as usize)
            .map_err(|source| self.error("keep", source))?;
        Ok(self.serves(name))
    }

    /// Writes back what is cached and ends the device if it has a file of that name, unless
    /// something holds it: a mount, or a device over it. Where somebody merely has it open, the
    /// kernel ends it when they close it.
    pub fn clear(&self, name: &OsStr) -> Result<(), FuseLoopError> {
        let Some(node) = self.open_of(name, libc::O_EXCL)? else { return Ok(()) };
        // Fails if the volume is fenced, and then nothing can be saved any more.
        if let Err(error) = node.sync_all() {
            tracing::warn!(device = %self.path.display(), %error, "a last sync failed");
        }
        self.end(&node)
    }

    /// Ends the device as soon as its last user closes it, if it has a file of that name.
    pub fn clear_lazily(&self, name: &OsStr) -> Result<(), FuseLoopError> {
        self.open_of(name, 0)?.map_or(Ok(()), |node| self.end(&node))
    }

    fn end(&self, node: &File) -> Result<(), FuseLoopError> {
        match ioctl(node, LOOP_CLR_FD, 0) {
            // It is free already.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            cleared => cleared.map(|_| ()).map_err(|e| self.error("end", e)),
        }
    }

    /// The node, if the device has a file of that name. It keeps that file while the node is open:
    /// the kernel ends no device before its last user. Read access suffices for the ioctls, and
    /// works on read-only devices.
    fn open_of(&self, name: &OsStr, flags: i32) -> Result<Option<File>, FuseLoopError> {
        if !self.has(name) {
            return Ok(None);
        }
        match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            // Asked again: it may have ended before it was open.
            Ok(node) => Ok(self.has(name).then_some(node)),
            Err(error) => match error.raw_os_error() {
                // It is ending this very moment.
                Some(libc::ENXIO) => Ok(None),
                Some(libc::EBUSY) => Err(FuseLoopError::Busy { path: self.path.clone() }),
                _ => Err(self.error("open", error)),
            },
        }
    }

    fn error(&self, step: &'static str, source: io::Error) -> FuseLoopError {
        FuseLoopError::Loop { step, path: self.path.clone(), source }
    }
}

/// An ioctl whose argument is a number or the address of a live value of the type it expects.
fn ioctl(file: &File, request: c_ulong, argument: usize) -> io::Result<i32> {
    // SAFETY: the descriptor is open for the duration of the call. All requests used here take no
    // argument or the address of a value that outlives the call and has the kernel's layout:
    // LOOP_CONFIGURE a `LoopConfig` and LOOP_SET_STATUS64 a `LoopInfo64`, which the kernel only
    // reads; LOOP_GET_STATUS64 a `LoopInfo64` that nothing else refers to, which it fills and of
    // which every bit pattern is valid.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn only_loop_nodes_are_loop_devices() {
        assert_eq!(LoopDevice::at(Path::new("/dev/loop12")).map(|d| d.number), Some(12));
        assert!(LoopDevice::at(Path::new("/dev/sda")).is_none());
        assert!(LoopDevice::at(Path::new("/dev/loop-control")).is_none());
    }
}
