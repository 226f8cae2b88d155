//! The Unix socket that NBD clients connect to: private to its owner, gone when the server is.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use curve_client::BlockDevice;
use curve_wire::with_causes;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection;
use super::negotiation::Export;
use crate::private_socket::{self, BindError, SocketFile};

/// Clients at a time; nbdcopy opens 4, qemu 1.
const CONNECTIONS_MAX: usize = 16;
/// Pause after accept failed, typically for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// After a stop, how long clients get to take their last replies.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound socket; dropping it removes the socket file.
#[derive(Debug)]
pub struct NbdServer {
    listener: UnixListener,
    _file: SocketFile,
}

impl NbdServer {
    /// Listens on `path`, replacing a socket that nobody serves any more. The socket appears at
    /// its path only when it accepts connections and only its owner may open it.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let (listener, file) = private_socket::bind(path)?;
        Ok(Self { listener, _file: file })
    }

    /// Serves `device` until `stop` fires; then finishes what was accepted and returns.
    pub async fn serve(self, device: Arc<dyn BlockDevice>, name: String, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            let (stream, slot) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an NBD connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            // A client sees the size of the moment at which it connects.
            let export = Export {
                description: format!("Curve volume {name}"),
                name: name.clone(),
                size: device.size(),
                read_only: device.read_only(),
            };
            let (device, stop) = (device.clone(), stop.clone());
            clients.spawn(async move {
                let _slot = slot;
                if let Err(error) = connection::serve(stream, device, export, stop).await {
                    tracing::warn!(error = with_causes(&error), "an NBD connection ended");
                }
            });
        }
        let drained = async { while clients.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("NBD clients did not take their replies in {DRAIN_TIMEOUT:?}");
        }
    }
}

async fn accept(
    listener: &UnixListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(tokio::net::UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.expect("never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}
