//! What is left to do once nothing is broken any more: everything is read once more, compared, and
//! deleted.

use anyhow::{Context, Result, ensure};
use curve_client::MdsClient;
use curve_types::{BLOCK_SIZE, CHUNK_SIZE};
use curve_wire::proto::Comparison;

use super::{BLOCKS, RETRY, Shared, attach, insist, read, snapshots};

pub async fn run(mds: &MdsClient, shared: &Shared) {
    insist("read everything", async || read_all(mds, shared).await).await;
    insist("read the snapshots", async || snapshots::read_all(mds, shared).await).await;
    insist("scrub everything", async || compare(mds, shared).await).await;
    insist("delete everything", async || delete_all(mds).await).await;
}

/// Reads every block that was ever used, once.
async fn read_all(mds: &MdsClient, shared: &Shared) -> Result<()> {
    let (volume, epoch) = attach(mds, shared).await?;
    for chunk in 0..shared.chunks() {
        let first = chunk * (CHUNK_SIZE / BLOCK_SIZE);
        read(&volume, first, BLOCKS, epoch, shared).await.context("last read")?;
    }
    let status = mds.status().await?;
    let is_whole = status.copysets_degraded == 0 && status.copysets_unavailable == 0;
    ensure!(status.copysets_whole > 0 && is_whole, "not whole: {:?}", status.messages);
    Ok(())
}

/// Has every copyset scrubbed. Its replicas must be equal at one index of their log, and no block
/// be lost: the damaged ones have whole copies.
async fn compare(mds: &MdsClient, shared: &Shared) -> Result<()> {
    let copysets = mds.start_scrub(None).await?;
    loop {
        let scrubs = mds.scrubs(None).await?.copysets;
        if scrubs.iter().all(|scrub| !scrub.requested && scrub.running.is_none()) {
            ensure!(scrubs.len() == copysets.len(), "{} copysets scrubbed", scrubs.len());
            for scrub in &scrubs {
                let last = scrub.last.as_ref().context("a scrub that never ended")?;
                let alike = last.comparison() == Comparison::Alike;
                let reports = last.replicas.iter().filter_map(|replica| replica.report);
                if !alike || reports.map(|report| report.lost + report.unrepaired).sum::<u64>() > 0
                {
                    shared.violate(format!("equal replicas: {scrub:?}"));
                }
                shared.count("copysets compared");
            }
            return Ok(());
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Volumes and snapshots, in an order in which neither waits for the other.
async fn delete_all(mds: &MdsClient) -> Result<()> {
    let snapshots = mds.list_snapshots(None, "", 0).await?.volumes;
    let volumes = mds.list_volumes("", 0).await?.volumes;
    for volume in volumes.iter().chain(&snapshots) {
        snapshots::delete(mds, &volume.name).await?;
    }
    ensure!(volumes.is_empty() && snapshots.is_empty(), "some were left");
    Ok(())
}
