//! `curve volume`.

mod attach;
mod export;
mod limits;
mod snapshot;

use anyhow::Result;
use clap::{ArgGroup, Subcommand};
use curve_client::{CreateVolume, MdsClient, VolumeBy};
use curve_types::{ByteSize, Epoch, VolumeLimits};
use curve_wire::proto;
use serde_json::{Value, json};

use self::limits::LimitArgs;
use self::snapshot::SnapshotName;
use crate::cluster::ClusterArgs;
use crate::lifetime;
use crate::output::{self, Format, OutputArgs, id_text, table};

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve volume create data --size 10Gi
  curve volume attach data")]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a volume; done if there is one of that name, pool, size and limits.
    #[command(after_help = "Example:
  curve volume create data --size 10Gi
  curve volume create slow --size 10Gi --iops 500 --bytes-per-second 50Mi
  curve volume create copy --from data@nightly")]
    Create {
        name: String,
        /// For example 512Mi or 10Gi; with --from that of the snapshot, if it is not given.
        #[arg(long, required_unless_present = "from")]
        size: Option<ByteSize>,
        /// By default "default", or with --from that of the snapshot.
        #[arg(long)]
        pool: Option<String>,
        /// A snapshot whose data the volume begins with. It takes no longer for more data.
        #[arg(long, value_name = "VOLUME@SNAPSHOT")]
        from: Option<SnapshotName>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List all volumes.
    #[command(after_help = "Example:
  curve volume list -o json | jq -r .[].name")]
    List,
    /// Show one volume.
    #[command(after_help = "Example:
  curve volume show data")]
    Show { name: String },
    /// Grow a volume. Its device on this machine grows, too.
    #[command(after_help = "Example:
  curve volume resize data --size 20Gi")]
    Resize {
        name: String,
        /// The new size; not below the present one.
        #[arg(long)]
        size: ByteSize,
        #[command(flatten)]
        state: attach::StateArgs,
    },
    /// Limit a volume's IO; limits that are not named stay. Who has it attached follows within ten
    /// seconds.
    #[command(
        group(ArgGroup::new("limit").required(true).multiple(true).args(limits::FLAGS)),
        after_help = "Example:
  curve volume set-qos data --write-iops 500 --bytes-per-second 100Mi --burst-seconds 30
  curve volume set-qos data --write-iops unlimited"
    )]
    SetQos {
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Delete a volume and its data; done if there is none of that name. Its snapshots stay.
    #[command(after_help = "Example:
  curve volume delete data")]
    Delete {
        #[arg(value_parser = no_snapshot)]
        name: String,
    },
    /// Take, list and delete snapshots: what volumes were at one moment.
    #[command(after_help = "Example:
  curve volume snapshot create data@before-upgrade
  curve volume export data@before-upgrade --read-only --nbd unix:/tmp/old.sock")]
    Snapshot {
        #[command(subcommand)]
        verb: snapshot::Verb,
    },
    /// Make a volume what it was when a snapshot of it was taken. What was written since is lost,
    /// unless another snapshot has it. Nobody may have the volume attached.
    #[command(after_help = "Example:
  curve volume snapshot create data@before-rollback
  curve volume rollback data@nightly")]
    Rollback {
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: SnapshotName,
    },
    /// Serve a volume over NBD until SIGTERM.
    #[command(after_help = "Example:
  curve volume export data --nbd unix:/tmp/data.sock
  nbdcopy image.raw 'nbd+unix:///data?socket=/tmp/data.sock'")]
    Export(export::Args),
    /// Make a block device of a volume on this machine, and print it. Needs root.
    #[command(after_help = "Example:
  device=$(curve volume attach data) && mkfs.ext4 $device")]
    Attach(attach::Args),
    /// Take the block device away.
    #[command(after_help = "Example:
  curve volume detach data")]
    Detach {
        name: String,
        #[command(flatten)]
        state: attach::StateArgs,
    },
}

/// How a volume is attached.
#[derive(clap::Args, Clone, Copy)]
struct Mode {
    /// Fence whoever has the volume attached now.
    #[arg(long)]
    force: bool,
    #[arg(long)]
    read_only: bool,
}

pub fn run(args: Args) -> Result<()> {
    let Args { cluster, output, verb } = args;
    let format = output.output;
    cluster.path()?;
    lifetime::run_command(async move {
        let mds = cluster.connect()?;
        match verb {
            Verb::Create { name, size, pool, from, limits } => {
                let limits = limits.change().apply_to(VolumeLimits::default());
                let source = from.map(|snapshot| VolumeBy::from(&*snapshot.to_string()));
                let (pool, size) = (pool.unwrap_or_default(), size.map_or(0, |size| size.0));
                let volume = CreateVolume { name, pool, size, limits, source };
                let volume = mds.create_volume(volume).await?;
                print_one(format, &volume, None)
            }
            Verb::List => list(format, &mds).await,
            Verb::Show { name } => {
                let volume = mds.get_volume(&*name).await?;
                let snapshots = snapshot::of(&mds, Some(VolumeBy::from(&*name))).await?;
                print_one(format, &volume, Some(&snapshots))
            }
            Verb::Resize { name, size, state } => {
                let volume = mds.resize_volume(&*name, size.0).await?;
                attach::resize(&state, &mds, &volume).await?;
                print_one(format, &volume, None)
            }
            Verb::SetQos { name, limits } => {
                let volume = mds.set_volume_limits(&*name, limits.change()).await?;
                print_one(format, &volume, None)
            }
            Verb::Delete { name } => Ok(mds.delete_volume(&*name).await?),
            Verb::Snapshot { verb } => snapshot::run(verb, format, &mds).await,
            Verb::Rollback { snapshot } => {
                let name = snapshot.to_string();
                let volume = mds.rollback_volume(&*snapshot.volume, &*name).await?;
                print_one(format, &volume, None)
            }
            Verb::Export(args) => export::run(args, &cluster, &mds).await,
            Verb::Attach(args) => attach::attach(args, &cluster, &mds, format).await,
            Verb::Detach { name, state } => attach::detach(&state, &mds, &name).await,
        }
    })
}

async fn list(format: Format, mds: &MdsClient) -> Result<()> {
    let mut volumes = Vec::new();
    loop {
        let after = volumes.last().map(|v: &proto::Volume| v.name.clone()).unwrap_or_default();
        let page = mds.list_volumes(&after, 0).await?;
        volumes.extend(page.volumes);
        if !page.more {
            break;
        }
    }
    let snapshots = snapshot::of(mds, None).await?;
    let of = |volume: &proto::Volume| -> Vec<proto::Volume> {
        snapshots.iter().filter(|found| snapshot::is_of(found, volume)).cloned().collect()
    };
    let json = || volumes.iter().map(|volume| volume_json(volume, Some(&of(volume)))).collect();
    output::print(format, json, || {
        let rows: Vec<Vec<String>> = volumes
            .iter()
            .map(|volume| {
                let size = ByteSize(volume.size).to_string();
                let name = volume.name.clone();
                let snapshots = of(volume).len().to_string();
                vec![name, size, volume.pool_name.clone(), snapshots, attached_to(volume)]
            })
            .collect();
        table(&["NAME", "SIZE", "POOL", "SNAPSHOTS", "ATTACHED TO"], &rows)
    })
}

fn attached_to(volume: &proto::Volume) -> String {
    let sessions = volume.sessions.iter();
    let each = sessions.map(|s| format!("{} (epoch {})", s.node, Epoch(s.epoch).attachment()));
    each.collect::<Vec<_>>().join(", ")
}

/// Snapshots are those of the volume, where they were asked for.
fn print_one(
    format: Format,
    volume: &proto::Volume,
    snapshots: Option<&[proto::Volume]>,
) -> Result<()> {
    output::print(
        format,
        || volume_json(volume, snapshots),
        || {
            let size = ByteSize(volume.size);
            let mut text = format!("{}  {size}  pool {}", volume.name, volume.pool_name);
            text += &format!("\nid           {}", id_text(&volume.id));
            let attached = attached_to(volume);
            if !attached.is_empty() {
                text += &format!("\nattached to  {attached}");
            }
            let limits = limits::text(limits(volume));
            if !limits.is_empty() {
                text += &format!("\nlimits       {limits}");
            }
            if !volume.published_nodes.is_empty() {
                text += &format!("\npublished to {}", volume.published_nodes.join(", "));
            }
            let names = snapshots.unwrap_or_default().iter().map(|snapshot| &*snapshot.name);
            let names = names.collect::<Vec<_>>().join(", ");
            if !names.is_empty() {
                text += &format!("\nsnapshots    {names}");
            }
            text + "\n"
        },
    )
}

fn limits(volume: &proto::Volume) -> VolumeLimits {
    volume.limits.unwrap_or_default().into()
}

fn volume_json(volume: &proto::Volume, snapshots: Option<&[proto::Volume]>) -> Value {
    let sessions = volume.sessions.iter().map(|session| {
        json!({
            "id": session.id,
            "node": session.node,
            "epoch": session.epoch,
            "read_only": session.read_only,
            "last_seen_ms": session.last_seen_ms,
        })
    });
    let mut json = json!({
        "name": volume.name,
        "id": id_text(&volume.id),
        "size": volume.size,
        "pool": volume.pool_name,
        "epoch": volume.epoch,
        "sessions": sessions.collect::<Vec<_>>(),
        "published_nodes": volume.published_nodes,
        "created_unix_ms": volume.created_unix_ms,
        "deleting": volume.deleting,
        "limits": limits::json(limits(volume)),
        "source_id": id_text(&volume.source_id),
    });
    if let Some(snapshots) = snapshots {
        let names = snapshots.iter().map(|snapshot| json!(snapshot.name));
        json["snapshots"] = names.collect();
    }
    json
}

/// Of a volume that is to be deleted: the command for snapshots is another, lest a typing error
/// takes the volume in place of one of them.
fn no_snapshot(name: &str) -> Result<String, String> {
    match name.contains('@') {
        false => Ok(name.to_owned()),
        true => {
            Err(format!("it is a snapshot: delete it with `curve volume snapshot delete {name}`"))
        }
    }
}

/// The name under which this machine's command line attaches volumes: not the machine's own, which
/// is that of a Kubernetes node's agent, whose volumes are not to be taken over without `--force`.
fn node_name() -> Result<String> {
    let name = nix::unistd::gethostname()?;
    Ok(format!("{}.cli", name.to_string_lossy()))
}
