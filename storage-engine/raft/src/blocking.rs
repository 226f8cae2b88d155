//! Calls that may wait for the disk, made from asynchronous tasks.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work`, which probably waits, so that other tasks of this worker thread go on meanwhile.
pub(crate) fn patiently<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
