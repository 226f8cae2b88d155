//! When a process starts, stops and dies: logging and runtime of the long-running roles, signals,
//! the parent's death.

use anyhow::{Context, Result, ensure};
use curve_wire::telemetry;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use tokio::signal::unix::{SignalKind, signal};

/// Lets the kernel kill this process when its parent dies.
pub fn end_with_parent(parent: i32) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("ask to be killed with the parent")?;
    // It may have died before the kernel was asked.
    ensure!(getppid().as_raw() == parent, "the parent process {parent} is gone");
    Ok(())
}

/// Runs a long-running role on all cores.
pub fn run_role(role: impl Future<Output = Result<()>>) -> Result<()> {
    telemetry::init_logging();
    curve_wire::tls::install_crypto_provider();
    block_on(role)
}

/// Runs one command of the command line.
pub fn run_command(command: impl Future<Output = Result<()>>) -> Result<()> {
    curve_wire::tls::install_crypto_provider();
    block_on(command)
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let result = runtime.block_on(work);
    // Threads that still block, on a disk or a dead mount, end with the process.
    runtime.shutdown_background();
    result
}

/// Resolves at SIGTERM or SIGINT. Listens from the moment it is called, not first awaited.
pub fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}
