//! Drives the store's reads that no thread waits for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use curve_store::{AsyncReads, Store};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Ends reads as the disk completes them, until it is dropped: then it waits for those under way,
/// and later ones use threads.
pub(crate) struct ReadReaper {
    reads: Arc<AsyncReads>,
    task: JoinHandle<()>,
}

impl ReadReaper {
    /// None where reads use threads anyway.
    pub fn start(store: &Store) -> Option<Self> {
        let reads = store.async_reads()?.clone();
        match poll(&reads) {
            Ok(event) => {
                // Weak: the device's file is closed with the store, not when the task has ended.
                let task = tokio::spawn(reap(Arc::downgrade(&reads), event));
                Some(Self { reads, task })
            }
            Err(error) => {
                tracing::warn!(%error, "cannot poll for reads: reading with threads");
                reads.close();
                None
            }
        }
    }
}

#[expect(unsafe_code, reason = "AsyncFd trusts its argument")]
fn poll(reads: &AsyncReads) -> io::Result<AsyncFd<OwnedFd>> {
    let event = reads.event().try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

async fn reap(reads: Weak<AsyncReads>, event: AsyncFd<OwnedFd>) {
    // The event counts up and is never read: each completion is an edge of its own.
    loop {
        // Cleared before the look, so that what ends during it makes us look again.
        let Ok(mut ready) = event.readable().await else { return };
        ready.clear_ready();
        let Some(reads) = reads.upgrade() else { return };
        reads.reap();
    }
}

impl Drop for ReadReaper {
    fn drop(&mut self) {
        self.task.abort();
        let (closing, closed) = mpsc::channel::<()>();
        let reads = self.reads.clone();
        let close = move || {
            reads.close();
            drop(closing);
        };
        if std::thread::Builder::new().name("curve-reads".into()).spawn(close).is_ok() {
            // A disk that hangs must not keep the process: the thread ends with it.
            let _ = closed.recv_timeout(CLOSE_TIMEOUT);
        }
    }
}
