//! Settings of a chunkserver process.

use std::net::SocketAddr;
use std::path::PathBuf;

use curve_types::ByteSize;

#[derive(Clone, Debug)]
pub struct ChunkserverOptions {
    /// Of this process, unique in the cluster.
    pub name: String,
    /// Failure domain `host`.
    pub host: String,
    /// Failure domain `zone`; empty: the host.
    pub zone: String,
    /// What pools may select devices by; empty: none.
    pub device_class: String,
    /// File or block device that holds everything, but the log if that has a device of its own.
    pub device: PathBuf,
    /// Size of the file when it is created. An existing one is used as it is.
    pub device_size: ByteSize,
    /// File or block device that holds the log instead, and its size when it is created.
    pub log_device: Option<(PathBuf, ByteSize)>,
    pub listen: SocketAddr,
    /// `HOST:PORT` at which others reach `listen`.
    pub advertise: String,
    pub listen_metrics: SocketAddr,
    /// `HOST:PORT` of every MDS.
    pub mds: Vec<String>,
    pub tls_dir: PathBuf,
}
