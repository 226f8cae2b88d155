//! Snapshots of the volume, taken while it is written; what they show is read from them and from
//! volumes that are made of them.

use std::time::Duration;

use anyhow::Result;
use curve_client::pattern::fill;
use curve_client::{AttachOptions, BlockDevice, CreateVolume, MdsClient};
use curve_types::{BLOCK_SIZE, CHUNK_SIZE, VolumeLimits};
use rand::Rng;
use rand::rngs::StdRng;

use super::{BLOCKS, NODE, Shared, VOLUME, open, versions};

pub const KINDS: [&str; 5] = [
    "snapshots taken",
    "snapshots read",
    "snapshots deleted",
    "volumes cloned",
    "volumes rolled back",
];

/// Takes one after the other until it is asked to stop. What fails stays as it is: the end reads
/// and deletes it.
pub async fn run(mut rng: StdRng, mds: &MdsClient, shared: &Shared) {
    while !shared.is_stopping() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..3000))).await;
        if let Err(error) = one(&mut rng, mds, shared).await {
            tracing::debug!(%error, "no more of this snapshot");
        }
    }
}

async fn one(rng: &mut StdRng, mds: &MdsClient, shared: &Shared) -> Result<()> {
    let number = shared.history.next_version().to_string();
    let name = format!("{VOLUME}@{number}");
    let begun = shared.history.begin_snapshot(&name);
    let taken = mds.create_snapshots([(VOLUME.into(), number.clone())]).await?;
    shared.history.end_snapshot(&name);
    taken.iter().for_each(|snapshot| shared.history.sized(begun, snapshot.size));
    shared.count("snapshots taken");
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
    match rng.random_range(0..4) {
        0 => Ok(()),
        1 => copy(&format!("copy-{number}"), &name, mds, shared).await,
        _ => {
            read(&name, &name, mds, shared).await?;
            delete(mds, &name).await?;
            shared.count("snapshots deleted");
            Ok(())
        }
    }
}

/// Makes a volume of a snapshot, writes it, rolls it back, and deletes it.
async fn copy(name: &str, snapshot: &str, mds: &MdsClient, shared: &Shared) -> Result<()> {
    let volume = CreateVolume {
        name: name.to_owned(),
        pool: String::new(),
        size: 0,
        limits: VolumeLimits::default(),
        source: Some(snapshot.into()),
    };
    mds.create_volume(volume).await?;
    read(name, snapshot, mds, shared).await?;
    shared.count("volumes cloned");
    mds.create_snapshots([(name.into(), "before".to_owned())]).await?;
    let options = AttachOptions { node: NODE.to_owned(), ..Default::default() };
    let session = mds.attach(name, &options).await?;
    let (session_id, volume_id) = (session.id, session.volume);
    let version = shared.history.next_version();
    open(mds, session).await?.write(0, fill(0, BLOCKS, version)).await?;
    mds.detach(session_id, volume_id).await?;
    let before = format!("{name}@before");
    mds.rollback_volume(name, before.as_str()).await?;
    read(name, snapshot, mds, shared).await?;
    shared.count("volumes rolled back");
    delete(mds, name).await?;
    delete(mds, &before).await
}

/// Reads all of `volume`, which shows what `snapshot` is.
async fn read(volume: &str, snapshot: &str, mds: &MdsClient, shared: &Shared) -> Result<()> {
    let options = AttachOptions { node: NODE.to_owned(), read_only: true, ..Default::default() };
    let session = mds.attach(volume, &options).await?;
    let (session_id, volume_id) = (session.id, session.volume);
    let volume = open(mds, session).await?;
    for chunk in 0..volume.size() / CHUNK_SIZE {
        let first = chunk * (CHUNK_SIZE / BLOCK_SIZE);
        let found = versions(&volume, first, BLOCKS, shared).await?;
        for (block, version) in (first..).zip(found) {
            let Some(version) = version else { continue };
            shared.history.found_in(snapshot, block, version);
        }
    }
    shared.count("snapshots read");
    mds.detach(session_id, volume_id).await?;
    Ok(())
}

/// Reads every snapshot of the volume that there is.
pub async fn read_all(mds: &MdsClient, shared: &Shared) -> Result<()> {
    for snapshot in mds.list_snapshots(None, "", 0).await?.volumes {
        let is_ready = snapshot.snapshot.is_some_and(|snapshot| snapshot.ready);
        let name = snapshot.name;
        if is_ready && shared.history.end_snapshot(&name) {
            read(&name, &name, mds, shared).await?;
        }
    }
    Ok(())
}

/// Deletes a volume or snapshot, whoever has it.
pub async fn delete(mds: &MdsClient, name: &str) -> Result<()> {
    mds.unpublish_volume(name, "").await?;
    mds.delete_volume(name).await?;
    Ok(())
}
