//! Where things lie: the checkout, the cache that outlives it, and the cluster's state.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

/// A Unix socket's path is at most 107 bytes and kubelet makes long ones below this.
const STATE_PATH_MAX: usize = 40;

#[derive(Debug, Clone)]
pub struct Paths {
    /// The checkout.
    pub repo: PathBuf,
    /// Built tools and image layers, keyed by content: safe to share between checkouts.
    pub cache: PathBuf,
    /// Data, logs and records of the one local cluster of this machine.
    pub state: PathBuf,
}

impl Paths {
    pub fn from_env() -> Result<Paths> {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("find the checkout above e2e/xtask")?
            .to_path_buf();
        let cache = match env::var_os("CURVE_CACHE") {
            Some(dir) => PathBuf::from(dir),
            None => {
                PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache/curve")
            }
        };
        let state = env::var_os("CURVE_E2E_DIR").unwrap_or_else(|| "/var/lib/curve-e2e".into());
        let state = PathBuf::from(state);
        anyhow::ensure!(
            state.is_absolute() && state.as_os_str().len() <= STATE_PATH_MAX,
            "CURVE_E2E_DIR {} must be absolute and at most {STATE_PATH_MAX} bytes long \
             (kubelet's Unix sockets have short paths)",
            state.display()
        );
        Ok(Paths { repo, cache, state })
    }

    pub fn log_dir(&self) -> PathBuf {
        self.state.join("log")
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.state.join("admin.kubeconfig")
    }
}

/// Writes the whole file or leaves the old one: records are read by the run after a killed one.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().context("file without a parent directory")?;
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, content).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("replace {}", path.display()))
}
