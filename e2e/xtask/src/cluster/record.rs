//! What is remembered about the cluster between two runs, and the lock that keeps runs apart.

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::paths::{Paths, write_atomically};

/// Set by `cargo xtask test` for the tests it starts: it holds the lock for them.
pub const LOCK_HELD_ENV: &str = "CURVE_CLUSTER_LOCK_HELD";
/// One per machine, like the cluster; outside the state directory, which may be purged.
const LOCK_FILE: &str = "/run/lock/curve-e2e.lock";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The first run is in the middle of making it, or was killed there: not to be trusted.
    Starting,
    /// Was complete once; its processes may have ended since, and start again with its data.
    Running,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub phase: Phase,
    pub nodes: u8,
    /// Which binaries it was made of.
    pub tools: String,
}

impl Record {
    pub fn starting(nodes: u8, tools: String) -> Record {
        Record { phase: Phase::Starting, nodes, tools }
    }

    /// None: there is none, or it is unreadable, which is the same to the caller.
    pub fn load(paths: &Paths) -> Result<Option<Record>> {
        match fs::read(paths.state.join("cluster.json")) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("read the cluster's record"),
        }
    }

    pub fn save(&self, paths: &Paths) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("encode the cluster's record")?;
        write_atomically(&paths.state.join("cluster.json"), &text)
    }
}

/// Held by every command that changes the cluster; released by the kernel however it ends.
#[derive(Debug)]
pub struct ClusterLock {
    _file: Option<File>,
}

impl ClusterLock {
    pub fn take() -> Result<ClusterLock> {
        if std::env::var_os(LOCK_HELD_ENV).is_some() {
            return Ok(ClusterLock { _file: None });
        }
        let file = File::options()
            .create(true)
            .append(true)
            .open(LOCK_FILE)
            .with_context(|| format!("open {LOCK_FILE}"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(LOCK_FILE).unwrap_or_default();
                bail!(
                    "another `cargo xtask` (process {}) is working on the local cluster: \
                     wait for it or stop it, then run this again",
                    holder.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {LOCK_FILE}"));
            }
        }
        fs::write(LOCK_FILE, std::process::id().to_string())
            .with_context(|| format!("write {LOCK_FILE}"))?;
        Ok(ClusterLock { _file: Some(file) })
    }
}
