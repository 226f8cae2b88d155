//! Unix sockets: serving gRPC on one, and reaching one.
//!
//! A client of a Unix socket has no host to put into HTTP/2's `:authority`. What grpc-go sends
//! today ("localhost": kubelet, the sidecars, csi-sanity) is accepted; the path that its versions
//! before 1.57 sent is not a valid authority and h2 refuses it.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint};

/// Who may connect to a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Processes of the same user: kubelet and this plugin are both root.
    Owner,
    /// Whoever sees the file: the directory is the pod's own, and its sidecars run as other users.
    Directory,
}

/// Path of an endpoint written `unix:PATH` or `unix://PATH`.
pub fn parse_endpoint(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
    match path {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err(format!("{text:?} is not an endpoint: expected unix:/ABSOLUTE/PATH")),
    }
}

/// Listens at `path`; what an earlier process left there is removed.
pub fn bind(path: &Path, reach: Reach) -> anyhow::Result<UnixListener> {
    let at = || path.display().to_string();
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path)
                .with_context(|| format!("remove the old socket {}", at()))?;
        }
        Ok(_) => bail!("{} exists and is not a socket: it is left alone", at()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("look at {}", at())),
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen at {}", at()))?;
    let mode = match reach {
        Reach::Owner => 0o600,
        Reach::Directory => 0o666,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", at()))?;
    Ok(listener)
}

/// Serves until `stop` is done and the calls in flight are answered.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let incoming = UnixListenerStream::new(listener);
    router.serve_with_incoming_shutdown(incoming, stop).await.context("serve gRPC")
}

/// A channel to a socket, connected when first used and again after it broke.
pub fn unix_channel(endpoint: Endpoint, path: &Path) -> Channel {
    let path = path.to_owned();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_absolute_unix_paths() {
        assert_eq!(parse_endpoint("unix:/run/csi.sock"), Ok("/run/csi.sock".into()));
        assert_eq!(parse_endpoint("unix:///run/csi.sock"), Ok("/run/csi.sock".into()));
        for text in ["", "/run/csi.sock", "unix:csi.sock", "tcp://127.0.0.1:1"] {
            assert!(parse_endpoint(text).expect_err(text).contains("unix:/"));
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a/csi.sock");
        drop(bind(&path, Reach::Owner).expect("first"));
        bind(&path, Reach::Directory).expect("after a crash");
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").expect("write");
        assert!(bind(&file, Reach::Owner).is_err());
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "precious");
    }
}
