//! An agent serves block devices of the node on which it runs: when memory is short, the kernel
//! writes dirty pages to those devices, and the agent must not need memory from that very kernel.
#![expect(unsafe_code, reason = "neither call has a safe wrapper for what is needed here")]

use std::io;

/// prctl(2): allocations of this process never wait for IO that it would have to serve itself.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Locks what the process touches into memory and marks its threads as serving IO. To be called
/// before any thread is started: both are inherited. An agent that may do neither still works,
/// except on a node that runs out of memory; so the caller decides what a failure means.
pub fn serve_own_node() -> Vec<(&'static str, io::Error)> {
    let mut failures = Vec::new();
    // SAFETY: takes flags only. Pages are locked when touched, not all at once.
    let locked =
        unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    if locked != 0 {
        failures.push(("lock the agent in memory", io::Error::last_os_error()));
    }
    // SAFETY: takes numbers only and changes how the kernel allocates for this process.
    let marked = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if marked != 0 {
        failures.push(("mark the agent as serving IO", io::Error::last_os_error()));
    }
    failures
}
