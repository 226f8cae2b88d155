//! Waiting for a condition, with what was last seen in the error.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Polls `check` until it gives a value. `check` returns `Err(what it saw)` while there is none;
/// the last such sight ends up in the error.
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let seen = match check() {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if started.elapsed() > timeout {
            bail!("waited {timeout:?} for {what}; last seen: {seen}");
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}
