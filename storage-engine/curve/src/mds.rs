//! `curve mds`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use curve_mds::{DEVICE_SIZE_DEFAULT, MdsOptions, OUT_AFTER_DEFAULT, Peer};
use curve_types::ByteSize;

use crate::lifetime;

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve mds --name mds-0 --data-dir /var/lib/mds --cluster-name demo --tls-dir /etc/curve/tls \\
    --peer mds-0,10.0.0.1:7100,10.0.0.1:7101 --peer mds-1,10.0.0.2:7100,10.0.0.2:7101 \\
    --peer mds-2,10.0.0.3:7100,10.0.0.3:7101")]
pub struct Args {
    /// Name of this process; one of the peers.
    #[arg(long)]
    name: String,
    /// Directory of the device file.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Size of the device file when it is created.
    #[arg(long, value_name = "SIZE", default_value_t = Plain(DEVICE_SIZE_DEFAULT))]
    device_size: Plain,
    /// Every member of the group, this one included: NAME,GRPC_HOST:PORT,RAFT_HOST:PORT.
    #[arg(long = "peer", value_name = "PEER", required = true)]
    peers: Vec<Peer>,
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7100")]
    listen_grpc: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7101")]
    listen_raft: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7109")]
    listen_metrics: SocketAddr,
    /// Directory with ca.crt, tls.crt, tls.key and cluster.key.
    #[arg(long, value_name = "DIR")]
    tls_dir: PathBuf,
    #[arg(long, value_name = "NAME")]
    cluster_name: String,
    /// Silence after which a chunkserver's replicas are re-created elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = OUT_AFTER_DEFAULT.as_secs())]
    out_after_secs: u64,
}

/// A size that prints as it is read.
#[derive(Clone, Copy, Debug)]
pub struct Plain(pub ByteSize);

impl std::fmt::Display for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.to_string().replace(' ', ""))
    }
}

impl std::str::FromStr for Plain {
    type Err = curve_types::ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

pub fn run(args: Args) -> Result<()> {
    let options = MdsOptions {
        name: args.name,
        data_dir: args.data_dir,
        device_size: args.device_size.0,
        peers: args.peers,
        listen_grpc: args.listen_grpc,
        listen_raft: args.listen_raft,
        listen_metrics: args.listen_metrics,
        tls_dir: args.tls_dir,
        cluster_name: args.cluster_name,
        out_after: Duration::from_secs(args.out_after_secs),
    };
    lifetime::run_role(async {
        let stop = lifetime::stop_signal()?;
        Ok(curve_mds::run(options, stop).await?)
    })
}
