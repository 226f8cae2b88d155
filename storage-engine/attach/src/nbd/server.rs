//! The Unix socket that NBD clients connect to: private to its owner, gone when the server is.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use curve_client::BlockDevice;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection;
use super::negotiation::Export;

/// Clients at a time; nbdcopy opens 4, qemu 1.
const CONNECTIONS_MAX: usize = 16;
/// Pause after accept failed, typically for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// After a stop, how long clients get to take their last replies.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a socket cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    #[error("{path} is in use by another server")]
    InUse { path: PathBuf },
    #[error("{path} exists and is not a socket")]
    NotASocket { path: PathBuf },
    #[error("listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
}

/// A bound socket; dropping it removes the socket file.
#[derive(Debug)]
pub struct NbdServer {
    listener: UnixListener,
    _file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl NbdServer {
    /// Listens on `path`, replacing a socket that nobody serves any more. The socket appears at
    /// its path only when it accepts connections and only its owner may open it.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(BindError::InUse { path: path.to_owned() });
            }
            _ => {}
        }
        let listener = listen_privately(path)
            .map_err(|source| BindError::Listen { path: path.to_owned(), source })?;
        Ok(Self { listener, _file: SocketFile(path.to_owned()) })
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
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "an NBD connection ended");
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

/// Binds inside a directory that only we can enter, restricts the socket, then moves it to its
/// path: at no moment can another user connect, and no process-wide umask is touched.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    static BOUND: AtomicU32 = AtomicU32::new(0);
    let count = BOUND.fetch_add(1, Ordering::Relaxed);
    let private = parent.join(format!(".{}.{count}", std::process::id()));
    let socket = private.join("s");
    // Left by a crashed process that had our id.
    let _ = std::fs::remove_file(&socket);
    let _ = std::fs::remove_dir(&private);
    std::fs::DirBuilder::new().mode(0o700).create(&private)?;
    let bound = UnixListener::bind(&socket).and_then(|listener| {
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&socket, path)?;
        Ok(listener)
    });
    let _ = std::fs::remove_file(&socket);
    let _ = std::fs::remove_dir(&private);
    bound
}
