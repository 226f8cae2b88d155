//! The kernel's mount table, and the system calls that change it. Nothing here knows volumes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use thiserror::Error;

/// Mounts stacked on one path are taken off one by one; more than this means that something puts
/// them back.
const STACKED_MAX: usize = 16;

/// Why the mount table could not be read or changed.
#[derive(Debug, Error)]
pub enum MountError {
    #[error("read the mount table")]
    Table(#[source] std::io::Error),
    #[error("look at {path}")]
    Look { path: PathBuf, source: std::io::Error },
    #[error("make {path}")]
    Make { path: PathBuf, source: std::io::Error },
    #[error("remove {path}")]
    Remove { path: PathBuf, source: std::io::Error },
    #[error("bind {from} to {to}")]
    Bind { from: PathBuf, to: PathBuf, source: Errno },
    #[error("make {path} read-only")]
    ReadOnly { path: PathBuf, source: Errno },
    #[error("unmount {path}")]
    Unmount { path: PathBuf, source: Errno },
    #[error("{path} is still mounted after {STACKED_MAX} unmounts")]
    Stacked { path: PathBuf },
}

/// A device number as the mount table writes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceNumber {
    pub major: u64,
    pub minor: u64,
}

impl DeviceNumber {
    /// Of a block device node; `None` if the path is absent or something else.
    pub fn of(path: &Path) -> Result<Option<Self>, MountError> {
        match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => {
                let number = found.rdev();
                let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
                Ok(Some(Self { major, minor }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MountError::Look { path: path.to_owned(), source }),
        }
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    pub device: DeviceNumber,
    /// Directory of the file system that is mounted; `/` unless it is a bind mount of a part.
    pub root: PathBuf,
    pub path: PathBuf,
    pub read_only: bool,
    pub fs_type: String,
    /// For a file system on a disk: its device node.
    pub source: PathBuf,
}

/// Where something is or could be mounted. The same place may have several paths (a bind mount of
/// a parent directory), so a place is its parent directory and the name in it. The mounted file
/// system itself is never touched: it may hang.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    parent: (u64, u64),
    name: OsString,
}

impl Place {
    /// `None` if there is no such directory.
    pub fn of(path: &Path) -> Option<Self> {
        let parent = std::fs::metadata(path.parent()?).ok()?;
        Some(Self { parent: (parent.dev(), parent.ino()), name: path.file_name()?.to_owned() })
    }
}

/// The mounts that this process sees.
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    pub fn read() -> Result<Self, MountError> {
        let text = std::fs::read("/proc/self/mountinfo").map_err(MountError::Table)?;
        Ok(Self { mounts: parse(&text) })
    }

    /// The topmost mount at a path.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        let resolved = resolve(path);
        self.mounts.iter().rev().find(|mount| mount.path == resolved)
    }

    /// Mounts of whole file systems on that device.
    pub fn of_device(&self, device: DeviceNumber) -> impl Iterator<Item = &Mount> {
        let whole = Path::new("/");
        self.mounts.iter().filter(move |mount| mount.device == device && mount.root == whole)
    }

    /// Files onto which a device node is bound.
    pub fn of_device_node(&self, device: &Path) -> impl Iterator<Item = &Mount> {
        // The root of such a mount is the node's path inside the file system mounted on /dev.
        let inside = Path::new("/").join(device.strip_prefix("/dev").unwrap_or(device));
        self.mounts.iter().filter(move |mount| mount.root == inside && mount.fs_type == "devtmpfs")
    }
}

/// The path with every symbolic link of its parent followed, as the kernel lists it.
fn resolve(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    parent.canonicalize().map_or_else(|_| path.to_owned(), |parent| parent.join(name))
}

fn parse(text: &[u8]) -> Vec<Mount> {
    // A line that does not parse is one of a future kernel and cannot be one of our mounts.
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let (root, path) = (unescape(fields.next()?), unescape(fields.next()?));
    let options = fields.next()?;
    let read_only = options.split(|byte| *byte == b',').any(|option| option == b"ro");
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next()?);
    Some(Mount { device, root, path, read_only, fs_type, source })
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// Shows `from` (a directory or a device node) at `to`, which must be of the same kind.
pub fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), MountError> {
    let none = None::<&OsStr>;
    nix::mount::mount(Some(from), to, none, MsFlags::MS_BIND, none)
        .map_err(|source| MountError::Bind { from: from.to_owned(), to: to.to_owned(), source })?;
    if !read_only {
        return Ok(());
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    nix::mount::mount(none, to, none, flags, none).map_err(|source| {
        // Never leave behind a writable mount that was asked for read-only.
        let _ = nix::mount::umount2(to, MntFlags::UMOUNT_NOFOLLOW);
        MountError::ReadOnly { path: to.to_owned(), source }
    })
}

/// Takes off everything that is mounted at the path. Nothing there is fine.
pub fn unmount(path: &Path) -> Result<(), MountError> {
    for _ in 0..STACKED_MAX {
        if MountTable::read()?.at(path).is_none() {
            return Ok(());
        }
        match nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: no longer a mount point, someone else was faster.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(source) => return Err(MountError::Unmount { path: path.to_owned(), source }),
        }
    }
    Err(MountError::Stacked { path: path.to_owned() })
}

/// Makes a directory to mount on, and its parents.
pub fn make_directory(path: &Path) -> Result<(), MountError> {
    std::fs::create_dir_all(path)
        .map_err(|source| MountError::Make { path: path.to_owned(), source })
}

/// Makes an empty file to mount on, and its parents.
pub fn make_file(path: &Path) -> Result<(), MountError> {
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    let open = std::fs::OpenOptions::new().create(true).append(true).open(path);
    open.map(drop).map_err(|source| MountError::Make { path: path.to_owned(), source })
}

/// Removes what was mounted on: an empty directory or an empty file, never more. Absent is fine.
pub fn remove_target(path: &Path) -> Result<(), MountError> {
    let error = |source| MountError::Remove { path: path.to_owned(), source };
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(path),
        Ok(found) if found.is_file() && found.len() > 0 => {
            Err(std::io::Error::other("it is a file with content"))
        }
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(error(source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_as_the_kernel_writes_it() {
        let text =
            b"36 35 7:3 / /var/lib/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw\n\
            40 35 0:6 /loop3 /target ro - devtmpfs udev rw,size=1k\n\
            a line of the future\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].path, Path::new("/var/lib/a b"));
        assert_eq!(mounts[0].device, DeviceNumber { major: 7, minor: 3 });
        assert_eq!(mounts[0].source, Path::new("/dev/loop3"));
        assert!(!mounts[0].read_only && mounts[1].read_only);
        let table = MountTable { mounts };
        assert_eq!(table.of_device_node(Path::new("/dev/loop3")).count(), 1);
        assert_eq!(table.of_device(DeviceNumber { major: 7, minor: 3 }).count(), 1);
        assert_eq!(table.of_device(DeviceNumber { major: 0, minor: 6 }).count(), 0);
    }

    #[test]
    fn a_file_with_content_is_never_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").expect("write");
        assert!(remove_target(&file).is_err());
        assert!(remove_target(dir.path()).is_err(), "a directory that is not empty");
        assert!(file.exists());
        remove_target(&dir.path().join("absent")).expect("absent is fine");
    }

    #[test]
    fn one_place_reached_by_two_paths_is_one_place() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("real")).expect("mkdir");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("symlink");
        let place = |path: &str| Place::of(&dir.path().join(path));
        assert_eq!(place("real/x"), place("link/x"));
        assert_ne!(place("real/x"), place("real/y"));
        assert_eq!(place("none/x"), None);
    }
}
