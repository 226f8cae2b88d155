//! Makes the volume larger while it is used.

use std::time::Duration;

use curve_client::{BlockDevice, MdsClient, Volume};
use curve_types::CHUNK_SIZE;
use rand::Rng;
use rand::rngs::StdRng;

use super::{CHUNKS_MAX, RETRY, Shared, VOLUME};

pub const KINDS: [&str; 2] = ["resizes", "writes behind the old end"];

pub async fn run(mut rng: StdRng, mds: &MdsClient, shared: &Shared) {
    loop {
        tokio::time::sleep(Duration::from_millis(rng.random_range(1000..9000))).await;
        let (asked, size) = (shared.history.now(), shared.history.size() + CHUNK_SIZE);
        if size > CHUNKS_MAX * CHUNK_SIZE {
            return;
        }
        while let Err(error) = mds.resize_volume(VOLUME, size).await {
            tracing::debug!(%error, "not resized yet");
            if shared.is_stopping() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
        shared.history.sized(asked, size);
        shared.count("resizes");
        if shared.is_stopping() {
            return;
        }
    }
}

/// Has a volume that was open before learn its size.
pub async fn learn(volume: &Volume, shared: &Shared) -> anyhow::Result<()> {
    let asked = shared.history.now();
    volume.refresh_size().await?;
    shared.history.sized(asked, volume.size());
    Ok(())
}
