//! Calls that may wait for the disk, made from asynchronous tasks.

use curve_store::simulate;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work`, which probably waits, so that other tasks of this worker thread go on meanwhile.
pub(crate) fn patiently<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Runs `work`, which certainly waits, on a thread of its own; where a simulation owns time nothing
/// waits, and it runs here.
pub async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if simulate::is_simulated() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
