//! A Unix socket that only its owner may connect to, gone when its server is.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;
use tokio::net::UnixListener;

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

/// Removes the socket file when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `path`, replacing a socket that nobody serves any more. The socket appears at its
/// path only when it accepts connections, and only its owner may open it.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(BindError::InUse { path: path.to_owned() });
        }
        _ => {}
    }
    let listener =
        listen(path).map_err(|source| BindError::Listen { path: path.to_owned(), source })?;
    Ok((listener, SocketFile(path.to_owned())))
}

/// Binds inside a directory that only we can enter, restricts the socket, then moves it to its
/// path: at no moment can another user connect, and no process-wide umask is touched.
fn listen(path: &Path) -> io::Result<UnixListener> {
    static BOUND: AtomicU32 = AtomicU32::new(0);
    let count = BOUND.fetch_add(1, Ordering::Relaxed);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect_and_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("directory");
        let live = dir.path().join("live");
        let bound = bind(&live).expect("bind");
        let mode = std::fs::metadata(&live).expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind(&live), Err(BindError::InUse { .. })));
        drop(bound);
        assert!(!live.exists());

        let dead = dir.path().join("dead");
        drop(std::os::unix::net::UnixListener::bind(&dead).expect("bind"));
        bind(&dead).expect("replaces what nobody serves");
        let file = dir.path().join("file");
        std::fs::write(&file, "mine").expect("write");
        assert!(matches!(bind(&file), Err(BindError::NotASocket { .. })));
    }
}
