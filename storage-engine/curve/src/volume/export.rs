//! `curve volume export`: a foreground NBD server over one volume.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use curve_attach::nbd::NbdServer;
use curve_client::{AttachOptions, MdsClient, Volume, VolumeMetrics, VolumeOptions};
use curve_wire::telemetry::{self, MetricsPort, Registry};
use tokio_util::sync::CancellationToken;

use super::{Mode, node_name};
use crate::cluster::ClusterArgs;
use crate::lifetime;

/// A session that cannot be ended by then runs out by itself.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Args {
    name: String,
    /// Socket to listen on, unix:/PATH.
    #[arg(long, value_name = "unix:/PATH", value_parser = parse_address)]
    nbd: PathBuf,
    #[command(flatten)]
    mode: Mode,
    /// Serve metrics over mutual TLS at this address, with the configuration's certificate.
    #[arg(long, value_name = "ADDR")]
    listen_metrics: Option<SocketAddr>,
}

/// Path of an address written `unix:PATH`.
fn parse_address(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err("expected unix:/ABSOLUTE/PATH".to_owned()),
    }
}

/// Serves until SIGTERM or SIGINT, or until the volume is fenced.
pub async fn run(args: Args, cluster: &ClusterArgs, mds: &MdsClient) -> Result<()> {
    telemetry::init_logging();
    let stop = lifetime::stop_signal()?;
    let Args { name, nbd, mode, listen_metrics } = args;
    let port = match listen_metrics {
        Some(address) => Some(MetricsPort::bind(address, cluster.load()?.identity()?).await?),
        None => None,
    };
    let Mode { force, read_only } = mode;
    let options = AttachOptions { node: node_name()?, read_only, shared: false, force };
    let session = mds.attach(&*name, &options).await?;
    let (id, volume_id) = (session.id, session.volume);
    let served = serve(mds, &name, &nbd, session, port, stop).await;
    if let Err(error) = mds.with_deadline(DETACH_DEADLINE).detach(id, volume_id).await {
        tracing::warn!(%error, "cannot end the session: it runs out by itself");
    }
    served
}

async fn serve(
    mds: &MdsClient,
    name: &str,
    socket: &Path,
    session: curve_client::Session,
    port: Option<MetricsPort>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let mut registry = Registry::default();
    let metrics = VolumeMetrics::register(&mut registry);
    let options = VolumeOptions { metrics, ..VolumeOptions::default() };
    let volume = Volume::open_with(mds.clone(), session, options).await;
    let volume = volume.with_context(|| format!("open volume {name:?}"))?;
    let server = NbdServer::bind(socket)?;
    println!("nbd+unix:///{name}?socket={}", socket.display());
    let token = CancellationToken::new();
    let serving = server.serve(Arc::new(volume.clone()), name.to_owned(), token.clone());
    let serving = tokio::spawn(serving);
    let ended = tokio::select! {
        () = stop => Ok(()),
        error = volume.ended() => Err(anyhow!("export of {name:?} ended: {error}")),
        failed = MetricsPort::serve(port, Arc::new(registry)) => Ok(failed?),
    };
    token.cancel();
    let _ = serving.await;
    volume.close();
    ended
}
