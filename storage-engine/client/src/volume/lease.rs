//! Keeps a session alive at the MDS and learns from it: a new size, other limits, or the end.
//!
//! An MDS that does not answer stops nothing: fences are kept by the copysets, not by a clock.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use crate::{BlockError, MdsErrorKind};

/// Renewals per lease: two may be lost.
const RENEWALS_PER_LEASE: u32 = 3;
const PERIOD_MIN: Duration = Duration::from_millis(100);

/// Renews until the volume ends or is dropped.
pub(super) async fn keep(volume: Weak<Shared>) {
    let mut period = PERIOD_MIN;
    if let Some(shared) = volume.upgrade() {
        period = renewal_period(shared.session.lease());
    }
    loop {
        tokio::time::sleep(period).await;
        let Some(shared) = volume.upgrade() else { return };
        if shared.fate.check().is_err() {
            return;
        }
        if let Some(lease) = renew(&shared, period).await {
            period = renewal_period(lease);
        }
    }
}

fn renewal_period(lease: Duration) -> Duration {
    (lease / RENEWALS_PER_LEASE).max(PERIOD_MIN)
}

/// One renewal; the lease's length if the MDS answered.
pub(super) async fn renew(shared: &Shared, deadline: Duration) -> Option<Duration> {
    let mds = shared.mds.with_deadline(deadline);
    let asked = Instant::now();
    match mds.renew_session(shared.session.id, shared.session.volume).await {
        Ok(answer) => {
            shared.grow(answer.size);
            if let Some(limits) = answer.limits {
                shared.throttle.set(limits.into());
            }
            Some(Duration::from_millis(answer.lease_ms))
        }
        Err(error) if error.kind == MdsErrorKind::NotFound => {
            shared.end(BlockError::Fenced);
            None
        }
        Err(error) => {
            let waited = asked.elapsed();
            tracing::warn!(session = %shared.session.id, %error, ?waited, "session not renewed");
            None
        }
    }
}
