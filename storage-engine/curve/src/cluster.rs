//! Which cluster a command is about: `--config client.toml` or CURVE_CONFIG.

use std::path::PathBuf;

use anyhow::{Context, Result};
use curve_client::{ClientConfig, MdsClient};

/// The choice of a cluster, for commands that talk to one.
#[derive(clap::Args, Debug)]
pub struct ClusterArgs {
    /// File that says where the cluster is (client.toml).
    #[arg(long, env = "CURVE_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// A command line without a cluster.
#[derive(Debug)]
pub struct NoCluster;

impl std::fmt::Display for NoCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "no cluster was named: pass --config FILE or set CURVE_CONFIG to a client.toml; \
             `curve playground start` writes one",
        )
    }
}

impl std::error::Error for NoCluster {}

impl ClusterArgs {
    pub fn path(&self) -> Result<&PathBuf> {
        Ok(self.config.as_ref().ok_or(NoCluster)?)
    }

    pub fn load(&self) -> Result<ClientConfig> {
        Ok(ClientConfig::load(self.path()?)?)
    }

    /// Must be called inside the runtime. Dials nothing yet.
    pub fn connect(&self) -> Result<MdsClient> {
        connect(&self.load()?)
    }
}

pub fn connect(config: &ClientConfig) -> Result<MdsClient> {
    let identity = config.identity()?;
    MdsClient::connect(&config.mds, &identity).context("use the cluster's configuration")
}
