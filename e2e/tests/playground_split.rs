//! Chunkservers that are added to a playground get their share of the data: copysets are split for
//! them and replicas move, while a volume is written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use curve_client::pattern::Ledger;
use curve_e2e::load::{Load, open, verify};
use curve_e2e::playground::{Directory, Playground};

/// Devices must have been up for half a minute first.
const SPLIT_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn copysets_are_split_for_new_chunkservers_under_load_and_through_kills() -> Result<()> {
    let directory = Directory::create("split")?;
    let mut playground = Playground::start(&directory, &["--device-size", "1Gi"])?;
    playground.curve(&["volume", "create", "data", "--size", "256Mi"])?;
    let ledger: Arc<Ledger> = Arc::default();
    let volume = open(&playground.config()).await?;
    let load = Load::start(&volume, ledger.clone(), false);
    load.progress(500).await?;
    load.finish().await?;
    volume.close();
    playground.stop()?;

    playground = Playground::start(&directory, &["--chunkservers", "6", "--device-size", "1Gi"])?;
    let volume = open(&playground.config()).await?;
    let load = Load::start(&volume, ledger.clone(), false);
    let copysets = |playground: &Playground| -> Result<u64> {
        let status = playground.status()?;
        let of = |field: &str| status[field].as_u64().with_context(|| format!("no {field}"));
        Ok(of("copysets_whole")? + of("copysets_degraded")? + of("copysets_unavailable")?)
    };
    let before = copysets(&playground)?;
    let deadline = Instant::now() + SPLIT_WITHIN;
    let mut killed = 0;
    loop {
        let now = tokio::task::block_in_place(|| copysets(&playground))?;
        // In the midst of it, each of those that divide.
        if now > before && killed < 3 {
            playground.kill_child(&format!("chunkserver-{killed}"))?;
            killed += 1;
        }
        if now >= 2 * before {
            break;
        }
        ensure!(Instant::now() < deadline, "{now} copysets, {before} before");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    load.progress(500).await?;
    tokio::task::block_in_place(|| playground.wait_healthy(SPLIT_WITHIN))?;
    let ledger = load.finish().await?;
    verify(&volume, &ledger).await?;
    volume.close();
    // What is on the disks is the same.
    playground.kill_all()?;
    playground = Playground::start(&directory, &[])?;
    let volume = open(&playground.config()).await?;
    verify(&volume, &ledger).await?;
    playground.stop()
}
