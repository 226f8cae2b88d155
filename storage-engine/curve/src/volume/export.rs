//! `curve volume export`: a foreground NBD server over one volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use curve_attach::nbd::NbdServer;
use curve_client::{AttachOptions, MdsClient, Volume};
use curve_wire::telemetry;
use tokio_util::sync::CancellationToken;

use super::{Mode, node_name};
use crate::lifetime;

/// A session that cannot be ended by then runs out by itself.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);

/// Path of an address written `unix:PATH`.
pub fn parse_address(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err("expected unix:/ABSOLUTE/PATH".to_owned()),
    }
}

/// Serves until SIGTERM or SIGINT, or until the volume is fenced.
pub async fn run(mds: &MdsClient, name: &str, socket: &Path, mode: Mode) -> Result<()> {
    telemetry::init_logging();
    let stop = lifetime::stop_signal()?;
    let Mode { force, read_only } = mode;
    let options = AttachOptions { node: node_name()?, read_only, shared: false, force };
    let session = mds.attach(name, &options).await?;
    let (id, volume_id) = (session.id, session.volume);
    let served = serve(mds, name, socket, session, stop).await;
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
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let volume = Volume::open(mds.clone(), session).await;
    let volume = volume.with_context(|| format!("open volume {name:?}"))?;
    let server = NbdServer::bind(socket)?;
    println!("nbd+unix:///{name}?socket={}", socket.display());
    let token = CancellationToken::new();
    let serving = server.serve(Arc::new(volume.clone()), name.to_owned(), token.clone());
    let serving = tokio::spawn(serving);
    let fenced = tokio::select! {
        () = stop => None,
        error = volume.ended() => Some(error),
    };
    token.cancel();
    let _ = serving.await;
    volume.close();
    match fenced {
        Some(error) => bail!("export of {name:?} ended: {error}"),
        None => Ok(()),
    }
}
