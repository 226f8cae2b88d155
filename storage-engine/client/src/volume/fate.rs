//! Whether a volume still works. Set once, for good.

use std::sync::OnceLock;

use tokio::sync::watch;

use crate::BlockError;

pub(super) struct Fate {
    end: OnceLock<BlockError>,
    signal: watch::Sender<bool>,
}

impl Fate {
    pub fn new() -> Self {
        Self { end: OnceLock::new(), signal: watch::channel(false).0 }
    }

    /// Err once the volume has ended.
    pub fn check(&self) -> Result<(), BlockError> {
        self.end.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Ends the volume, unless something else already did; true for the first.
    pub fn seal(&self, error: BlockError) -> bool {
        let first = self.end.set(error).is_ok();
        if first {
            self.signal.send_replace(true);
        }
        first
    }

    /// Resolves with the reason when the volume ends.
    pub async fn ended(&self) -> BlockError {
        let mut signal = self.signal.subscribe();
        let _ = signal.wait_for(|ended| *ended).await;
        self.end.get().cloned().expect("set before the signal")
    }
}
