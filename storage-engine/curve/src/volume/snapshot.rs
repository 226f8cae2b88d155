//! `curve volume snapshot`: names are `VOLUME@SNAPSHOT` everywhere.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use curve_client::{AttachOptions, MdsClient, Volume, VolumeBy};
use curve_types::{ByteSize, VolumeId};
use curve_wire::proto;
use serde_json::{Value, json};

use super::node_name;
use crate::output::{self, Format, id_text, table, time_text};

/// `VOLUME@SNAPSHOT`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotName {
    pub volume: String,
    pub name: String,
}

impl FromStr for SnapshotName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('@') {
            Some((volume, name)) if !volume.is_empty() && !name.is_empty() => {
                Ok(Self { volume: volume.to_owned(), name: name.to_owned() })
            }
            _ => Err("expected VOLUME@SNAPSHOT, for example data@nightly"),
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.name)
    }
}

#[derive(Subcommand)]
pub enum Verb {
    /// Keep what volumes are now, all at one point in time; done if these snapshots exist. Writes
    /// wait for a moment meanwhile.
    #[command(after_help = "Example:
  curve volume snapshot create data@nightly
  curve volume snapshot create db@nightly wal@nightly")]
    Create {
        #[arg(required = true, value_name = "VOLUME@SNAPSHOT")]
        snapshots: Vec<SnapshotName>,
    },
    /// List the snapshots of a volume, or all.
    #[command(after_help = "Example:
  curve volume snapshot list data
  curve volume snapshot list -o json | jq -r .[].name")]
    List { volume: Option<String> },
    /// List the byte ranges of a snapshot that hold data, or those that differ from another one of
    /// the same volume. Some may hold the same data all the same; none that differs is left out.
    #[command(after_help = "Example:
  curve volume snapshot changes data@tuesday --since data@monday")]
    Changes {
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: SnapshotName,
        #[arg(long, value_name = "VOLUME@SNAPSHOT")]
        since: Option<SnapshotName>,
    },
    /// Delete a snapshot; done if there is none of that name. Volumes made from it stay.
    #[command(after_help = "Example:
  curve volume snapshot delete data@nightly")]
    Delete {
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: SnapshotName,
    },
}

pub async fn run(verb: Verb, format: Format, mds: &MdsClient) -> Result<()> {
    match verb {
        Verb::Create { snapshots } => {
            let wanted = snapshots.into_iter();
            let wanted = wanted.map(|wanted| (VolumeBy::from(&*wanted.volume), wanted.name));
            print(format, &mds.create_snapshots(wanted).await?)
        }
        Verb::List { volume } => {
            print(format, &of(mds, volume.as_deref().map(VolumeBy::from)).await?)
        }
        Verb::Changes { snapshot, since } => changes(format, mds, snapshot, since).await,
        Verb::Delete { snapshot } => Ok(mds.delete_volume(&*snapshot.to_string()).await?),
    }
}

async fn changes(
    format: Format,
    mds: &MdsClient,
    snapshot: SnapshotName,
    since: Option<SnapshotName>,
) -> Result<()> {
    let found = mds.get_volume(&*snapshot.to_string()).await?;
    let base = match &since {
        None => None,
        Some(since) => {
            let base = mds.get_volume(&*since.to_string()).await?;
            let of = |found: &proto::Volume| found.snapshot.as_ref().map(|s| s.volume_id.clone());
            ensure!(of(&found) == of(&base), "{snapshot} and {since} are of different volumes");
            Some(VolumeId::from_bytes(base.id[..].try_into().context("the MDS sent no id")?))
        }
    };
    let options = AttachOptions { node: node_name()?, read_only: true, ..AttachOptions::default() };
    let session = mds.attach(&*snapshot.to_string(), &options).await?;
    let (id, volume_id) = (session.id, session.volume);
    let volume = Volume::open(mds.clone(), session).await?;
    let changes = volume.changes(base).await;
    volume.close();
    mds.detach(id, volume_id).await?;
    let changes = changes?;
    let json = || {
        let range = |range: &Range<u64>| json!({"offset": range.start, "length": len(range)});
        changes.iter().map(range).collect()
    };
    output::print(format, json, || {
        let row = |range: &Range<u64>| vec![range.start.to_string(), len(range).to_string()];
        let rows: Vec<Vec<String>> = changes.iter().map(row).collect();
        table(&["OFFSET", "LENGTH"], &rows)
    })
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// All snapshots of a volume, or all that there are.
pub async fn of(mds: &MdsClient, volume: Option<VolumeBy>) -> Result<Vec<proto::Volume>> {
    let mut snapshots = Vec::new();
    loop {
        let last = snapshots.last().map(|found: &proto::Volume| found.name.clone());
        let page = mds.list_snapshots(volume.clone(), &last.unwrap_or_default(), 0).await?;
        snapshots.extend(page.volumes);
        if !page.more {
            return Ok(snapshots);
        }
    }
}

/// Whether it is one of this volume, not of an earlier one of the same name.
pub fn is_of(snapshot: &proto::Volume, volume: &proto::Volume) -> bool {
    snapshot.snapshot.as_ref().is_some_and(|info| info.volume_id == volume.id)
}

fn print(format: Format, snapshots: &[proto::Volume]) -> Result<()> {
    let json = || snapshots.iter().map(snapshot_json).collect();
    output::print(format, json, || {
        let row = |found: &proto::Volume| {
            let size = ByteSize(found.size).to_string();
            let ready = if is_ready(found) { "yes" } else { "no" };
            vec![found.name.clone(), size, time_text(found.created_unix_ms), ready.to_owned()]
        };
        let rows: Vec<Vec<String>> = snapshots.iter().map(row).collect();
        table(&["NAME", "SIZE", "CREATED", "READY"], &rows)
    })
}

fn is_ready(snapshot: &proto::Volume) -> bool {
    snapshot.snapshot.as_ref().is_some_and(|info| info.ready)
}

fn snapshot_json(snapshot: &proto::Volume) -> Value {
    let info = snapshot.snapshot.clone().unwrap_or_default();
    json!({
        "name": snapshot.name,
        "id": id_text(&snapshot.id),
        "volume": info.volume_name,
        "volume_id": id_text(&info.volume_id),
        "snapshot": info.name,
        "size": snapshot.size,
        "pool": snapshot.pool_name,
        "created_unix_ms": snapshot.created_unix_ms,
        "ready": info.ready,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_after_its_volume() {
        let parsed: SnapshotName = "data@nightly".parse().expect("a name");
        assert_eq!((&*parsed.volume, &*parsed.name), ("data", "nightly"));
        assert_eq!(parsed.to_string(), "data@nightly");
        for text in ["data", "@nightly", "data@", "", "@"] {
            let error = text.parse::<SnapshotName>().expect_err(text);
            assert!(error.contains("expected VOLUME@SNAPSHOT"), "{error}");
        }
    }
}
