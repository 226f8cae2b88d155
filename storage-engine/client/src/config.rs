//! `client.toml`: where a cluster's MDS processes are and how to prove oneself to them.

use std::path::{Path, PathBuf};

use curve_wire::pki::{Identity, PkiError};
use serde::Deserialize;
use thiserror::Error;

/// How to reach one cluster.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// `HOST:PORT` of every MDS, in any order.
    pub mds: Vec<String>,
    /// Directory with `ca.crt`, `tls.crt`, `tls.key`. Absolute once loaded: in the file it may be
    /// relative to the file.
    pub tls_dir: PathBuf,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parse {path}: expected `mds = [\"host:port\", …]` and `tls_dir = \"path\"`")]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("{path}: `mds` is empty, name at least one \"host:port\"")]
    NoMds { path: PathBuf },
    #[error("{path}: `mds` has {endpoint:?}, expected \"host:port\"")]
    Endpoint { path: PathBuf, endpoint: String },
    #[error("load the certificates of {tls_dir}")]
    Identity { tls_dir: PathBuf, source: PkiError },
}

impl ClientConfig {
    /// Reads and checks a `client.toml`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        if config.mds.is_empty() {
            return Err(ConfigError::NoMds { path: path.to_owned() });
        }
        if let Some(endpoint) = config.mds.iter().find(|endpoint| !is_host_port(endpoint)) {
            let endpoint = endpoint.clone();
            return Err(ConfigError::Endpoint { path: path.to_owned(), endpoint });
        }
        if let Some(parent) = path.parent() {
            config.tls_dir = parent.join(&config.tls_dir);
        }
        Ok(config)
    }

    /// The certificates of `tls_dir`.
    pub fn identity(&self) -> Result<Identity, ConfigError> {
        Identity::load(&self.tls_dir)
            .map_err(|source| ConfigError::Identity { tls_dir: self.tls_dir.clone(), source })
    }
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_tls_dir_lies_beside_the_file() {
        let text = "mds = [\"a:1\", \"[::1]:7100\"]\ntls_dir = \".\"";
        let config = ClientConfig::parse(text, Path::new("/etc/curve/client.toml")).expect("valid");
        assert_eq!(config.tls_dir, Path::new("/etc/curve/."));
        let text = "mds = [\"a:1\"]\ntls_dir = \"/tls\"";
        let config = ClientConfig::parse(text, Path::new("/etc/curve/client.toml")).expect("valid");
        assert_eq!(config.tls_dir, Path::new("/tls"));
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        let cases = [
            ("mds = []\ntls_dir = \"/t\"", "`mds` is empty"),
            ("mds = [\"nohost\"]\ntls_dir = \"/t\"", "\"nohost\""),
            ("mds = [\"a:1\"]", "expected `mds"),
            ("mds = [\"a:1\"]\ntls_dir = \"/t\"\nother = 1", "expected `mds"),
        ];
        for (text, expected) in cases {
            let error = ClientConfig::parse(text, Path::new("c.toml")).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
