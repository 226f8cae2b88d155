//! What the state directory remembers: a directory per attachment with its record and its mount
//! point, so that the next agent can take away what a dead one left. One agent at a time owns it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use curve_types::VolumeId;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::fuse_loop::{self, FuseLoopError};

const LOCK_FILE: &str = "lock";
const RECORD_FILE: &str = "record.json";
const MOUNT_DIR: &str = "mount";

/// Why the state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} belongs to another running agent")]
    Locked { path: PathBuf },
    #[error("clean up after a dead agent")]
    CleanUp(#[source] FuseLoopError),
}

/// What one attachment leaves behind if its agent dies. Written before the device is made, so it
/// may name one that never became the volume's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub cluster: String,
    pub volume_handle: String,
    pub device: PathBuf,
}

/// The directory, locked.
#[derive(Debug)]
pub(super) struct StateDir {
    root: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Fails with `Locked` while another agent runs.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(root).map_err(at("create", root))?;
        // A mount point's path must not depend on where the process was started.
        let root = root.canonicalize().map_err(at("find", root))?;
        let path = root.join(LOCK_FILE);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(at("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { root, _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StateError::Locked { path: root }),
            Err((_, errno)) => Err(at("lock", &path)(errno.into())),
        }
    }

    fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    fn dir(&self, volume: VolumeId) -> PathBuf {
        self.volumes().join(volume.to_string())
    }

    pub fn mount_point(&self, volume: VolumeId) -> PathBuf {
        self.dir(volume).join(MOUNT_DIR)
    }

    /// Durable enough for a process crash: a crash of the machine takes the devices along.
    pub fn write(&self, volume: VolumeId, record: &Record) -> Result<(), StateError> {
        let path = self.dir(volume).join(RECORD_FILE);
        let temporary = path.with_extension("new");
        let text = serde_json::to_vec(record).expect("strings and paths are serializable");
        std::fs::write(&temporary, text).map_err(at("write", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(at("write", &path))
    }

    /// Forgets an attachment whose device is gone.
    pub fn remove(&self, volume: VolumeId) -> Result<(), StateError> {
        let dir = self.dir(volume);
        // Never recursive: whatever is mounted inside is somebody's data.
        for file in [RECORD_FILE, "record.new"] {
            ignore_missing(std::fs::remove_file(dir.join(file))).map_err(at("remove", &dir))?;
        }
        ignore_missing(std::fs::remove_dir(dir.join(MOUNT_DIR))).map_err(at("remove", &dir))?;
        ignore_missing(std::fs::remove_dir(&dir)).map_err(at("remove", &dir))
    }

    /// Takes away what earlier agents left. Blocks.
    pub fn clean_up(&self) -> Result<usize, StateError> {
        let root = self.volumes();
        std::fs::create_dir_all(&root).map_err(at("create", &root))?;
        let mut cleaned = 0;
        for entry in std::fs::read_dir(&root).map_err(at("list", &root))? {
            let name = entry.map_err(at("list", &root))?.file_name();
            let Some(volume) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            self.clean_up_one(volume)?;
            cleaned += 1;
        }
        Ok(cleaned)
    }

    fn clean_up_one(&self, volume: VolumeId) -> Result<(), StateError> {
        let record = std::fs::read(self.dir(volume).join(RECORD_FILE)).ok();
        let record: Option<Record> = record.and_then(|text| serde_json::from_slice(&text).ok());
        let device = record.map(|record| record.device).unwrap_or_default();
        fuse_loop::clean_up(&device, &self.mount_point(volume), &volume.to_string())
            .map_err(StateError::CleanUp)?;
        self.remove(volume)
    }
}

fn at(step: &'static str, path: &Path) -> impl Fn(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { step, path: path.clone(), source }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::agent::AgentError;
    use crate::fuse_loop::FuseLoop;
    use crate::memory::MemoryDevice;

    fn record(device: &Path) -> Record {
        Record { cluster: "a/b".into(), volume_handle: "x".into(), device: device.to_owned() }
    }

    #[test]
    fn one_agent_owns_the_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let first = StateDir::open(dir.path()).expect("open");
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::Locked { .. })));
        drop(first);
        StateDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn what_is_recorded_is_cleaned_up() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::open(dir.path()).expect("open");
        let volume = VolumeId::random();
        std::fs::create_dir_all(state.mount_point(volume)).expect("mkdir");
        state.write(volume, &record(Path::new("/dev/no-such-device"))).expect("write");
        assert_eq!(state.clean_up().expect("clean"), 1);
        assert_eq!(state.clean_up().expect("clean"), 0);
    }

    /// Needs root, as the agent does.
    #[test]
    fn a_device_made_just_before_its_agent_died_is_cleaned_up() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::open(dir.path()).expect("open");
        let volume = VolumeId::random();
        let remember = |device: &Path| -> Result<(), AgentError> {
            let free = crate::fuse_loop::LoopDevice::at(device).expect("a loop device");
            assert!(!free.has(volume.to_string().as_ref()), "it is the volume's already");
            Ok(state.write(volume, &record(device))?)
        };
        let front = FuseLoop::attach(
            Arc::new(MemoryDevice::new(16 << 20)),
            &state.mount_point(volume),
            &volume.to_string(),
            runtime.handle().clone(),
            remember,
        );
        // Here it dies: nothing was done since the device exists.
        let mut front = front.expect("attach");
        assert!(front.serves());
        assert_eq!(state.clean_up().expect("clean"), 1);
        let deadline = Instant::now() + Duration::from_secs(10);
        while front.serves() {
            assert!(Instant::now() < deadline, "the loop device is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
        front.detach().expect("nothing is left to detach");
    }
}
