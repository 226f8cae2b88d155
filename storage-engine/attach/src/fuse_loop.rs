//! A block device node for a volume: one FUSE file (`file`) and a loop device over it (`device`),
//! for kernels that have neither ublk nor NBD. Every call here blocks; none may run on a thread
//! that the FUSE file needs to answer.

mod device;
mod file;

use std::ffi::{CString, OsStr};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use curve_client::BlockDevice;
use nix::mount::{MntFlags, umount2};
use thiserror::Error;
use tokio::runtime::Handle;

pub use device::LoopDevice;
use file::VolumeFile;

/// How long users of a device that is being detached get to go away.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_POLL: Duration = Duration::from_millis(20);

/// Why a device could not be made or taken away.
#[derive(Debug, Error)]
pub enum FuseLoopError {
    #[error("create {path}")]
    CreateDir { path: PathBuf, source: io::Error },
    #[error("mount the FUSE file at {path}")]
    Mount { path: PathBuf, source: io::Error },
    #[error("open the FUSE file {path}")]
    OpenFile { path: PathBuf, source: io::Error },
    #[error("find a free loop device")]
    FindLoop { source: io::Error },
    #[error("{step} {path}")]
    Loop { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is in use: unmount or close it first")]
    Busy { path: PathBuf },
    /// Ended by somebody else.
    #[error("{path} is no longer the volume's device: attach the volume again")]
    Gone { path: PathBuf },
    #[error("unmount {path}")]
    Unmount { path: PathBuf, source: io::Error },
}

/// A volume's device node. Dropping it without `detach` leaves the loop device to fail its IO.
pub struct FuseLoop {
    mount_point: PathBuf,
    file: PathBuf,
    session: Option<fuser::BackgroundSession>,
    device: LoopDevice,
}

impl FuseLoop {
    /// Serves `volume` as file `name` in `mount_point`, and makes a loop device of it. `name` must
    /// be unique on this machine: it is how the loop device is recognized after a crash. `remember`
    /// writes down for that crash which device is about to be made; it may be called several times,
    /// and the last one counts.
    pub fn attach<E: From<FuseLoopError>>(
        volume: Arc<dyn BlockDevice>,
        mount_point: &Path,
        name: &str,
        runtime: Handle,
        remember: impl Fn(&Path) -> Result<(), E>,
    ) -> Result<Self, E> {
        std::fs::create_dir_all(mount_point)
            .map_err(|source| FuseLoopError::CreateDir { path: mount_point.to_owned(), source })?;
        let read_only = volume.read_only();
        let session = file::mount(VolumeFile::new(volume, name, runtime), mount_point)
            .map_err(|source| FuseLoopError::Mount { path: mount_point.to_owned(), source })?;
        let file = mount_point.join(name);
        match LoopDevice::configure(&file, read_only, remember) {
            Ok(device) => {
                let (mount_point, session) = (mount_point.to_owned(), Some(session));
                Ok(Self { mount_point, file, session, device })
            }
            Err(error) => {
                let _ = session.umount_and_join();
                Err(error)
            }
        }
    }

    /// The block device node.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// Makes the kernel notice that the volume has grown.
    pub fn resize(&self) -> Result<(), FuseLoopError> {
        // A stat refreshes the size that the kernel remembers for the file.
        std::fs::metadata(&self.file)
            .map_err(|source| FuseLoopError::OpenFile { path: self.file.clone(), source })?;
        self.device.set_capacity(self.name())
    }

    /// Whether the device node still is this volume's, and will be.
    pub fn serves(&self) -> bool {
        self.device.serves(self.name())
    }

    /// As `serves`, after taking back an end that waits for the device's last user.
    pub fn keep(&self) -> Result<bool, FuseLoopError> {
        self.device.keep(self.name())
    }

    fn name(&self) -> &OsStr {
        self.file.file_name().unwrap_or_default()
    }

    /// Takes the device away once nobody uses it. If it is `Busy` it stays as it was.
    pub fn detach(&mut self) -> Result<(), FuseLoopError> {
        if let Err(error) = release(&self.device, self.name()) {
            // Its last user would end it later, unknown to whoever reads here that it is attached.
            if let Err(error) = self.keep() {
                tracing::warn!(%error, "cannot keep a device that is in use");
            }
            return Err(error);
        }
        if let Some(session) = self.session.take() {
            unmount(&self.mount_point)?;
            // What a file system reports when its mount is gone says nothing about the volume.
            let _ = session.join();
        }
        Ok(())
    }
}

/// Ends the loop device if it still has the file of that name, and waits until it is free.
fn release(device: &LoopDevice, name: &OsStr) -> Result<(), FuseLoopError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    while device.has(name) {
        match device.clear(name) {
            Err(FuseLoopError::Busy { .. }) if Instant::now() < deadline => {}
            cleared => cleared?,
        }
        if device.has(name) {
            if Instant::now() >= deadline {
                return Err(FuseLoopError::Busy { path: device.path().to_owned() });
            }
            std::thread::sleep(RELEASE_POLL);
        }
    }
    Ok(())
}

fn unmount(mount_point: &Path) -> Result<(), FuseLoopError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let flags =
            if Instant::now() < deadline { MntFlags::empty() } else { MntFlags::MNT_DETACH };
        match umount2(mount_point, flags) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            // The loop device drops the file a moment after it is reported free.
            Err(nix::errno::Errno::EBUSY) => std::thread::sleep(RELEASE_POLL),
            Err(errno) => {
                let path = mount_point.to_owned();
                return Err(FuseLoopError::Unmount { path, source: errno.into() });
            }
        }
    }
}

/// Takes away what a dead process left: its loop device, if it still has that file, and the mount.
/// Users of such a device get errors whatever is done.
pub fn clean_up(device: &Path, mount_point: &Path, name: &str) -> Result<(), FuseLoopError> {
    if let Some(device) = LoopDevice::at(device) {
        device.clear_lazily(name.as_ref())?;
    }
    match umount2(mount_point, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => {
            let path = mount_point.to_owned();
            Err(FuseLoopError::Unmount { path, source: errno.into() })
        }
    }
}

/// A path for a system call; ours have no NUL inside.
fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

#[cfg(test)]
mod tests;
