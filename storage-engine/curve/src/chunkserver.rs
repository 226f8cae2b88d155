//! `curve chunkserver`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use curve_chunkserver::ChunkserverOptions;
use curve_types::ByteSize;

use crate::lifetime;

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve chunkserver --name cs-0 --host node1 --device /var/lib/curve/device --device-size 100Gi \\
    --listen 0.0.0.0:7200 --advertise 10.0.0.1:7200 --mds 10.0.0.1:7100 --tls-dir /etc/curve/tls")]
pub struct Args {
    /// Name of this process, unique in the cluster.
    #[arg(long)]
    name: String,
    /// Machine on which it runs: failure domain `host`.
    #[arg(long)]
    host: String,
    /// Failure domain `zone`; the host if empty.
    #[arg(long, default_value = "")]
    zone: String,
    /// What pools may select devices by.
    #[arg(long, value_name = "CLASS", default_value = "")]
    device_class: String,
    /// File or block device that holds everything, but the log if that has its own.
    #[arg(long, value_name = "FILE")]
    device: PathBuf,
    /// Size of the file when it is created.
    #[arg(long, value_name = "SIZE")]
    device_size: ByteSize,
    /// File or block device for the log alone, on a faster disk. It is decided when the device is
    /// formatted, and both are needed from then on.
    #[arg(long, value_name = "FILE")]
    log_device: Option<PathBuf>,
    /// Size of that file when it is created.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", requires = "log_device")]
    log_device_size: ByteSize,
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7200")]
    listen: SocketAddr,
    /// HOST:PORT at which others reach it.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: String,
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7209")]
    listen_metrics: SocketAddr,
    /// HOST:PORT of every MDS.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', required = true)]
    mds: Vec<String>,
    /// Directory with ca.crt, tls.crt and tls.key.
    #[arg(long, value_name = "DIR")]
    tls_dir: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    let options = ChunkserverOptions {
        name: args.name,
        host: args.host,
        zone: args.zone,
        device_class: args.device_class,
        device: args.device,
        device_size: args.device_size,
        log_device: args.log_device.map(|path| (path, args.log_device_size)),
        listen: args.listen,
        advertise: args.advertise,
        listen_metrics: args.listen_metrics,
        mds: args.mds,
        tls_dir: args.tls_dir,
    };
    lifetime::run_role(async {
        let stop = lifetime::stop_signal()?;
        Ok(curve_chunkserver::run(options, stop).await?)
    })
}
