//! `curve volume`.

mod attach;
mod export;
mod limits;

use anyhow::Result;
use clap::{ArgGroup, Subcommand};
use curve_client::{CreateVolume, MdsClient};
use curve_types::{ByteSize, Epoch, VolumeLimits};
use curve_wire::proto;
use serde_json::{Value, json};

use self::limits::LimitArgs;
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
  curve volume create slow --size 10Gi --iops 500 --bytes-per-second 50Mi")]
    Create {
        name: String,
        /// For example 512Mi or 10Gi.
        #[arg(long)]
        size: ByteSize,
        #[arg(long, default_value = "default")]
        pool: String,
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
    /// Delete a volume and its data; done if there is none of that name.
    #[command(after_help = "Example:
  curve volume delete data")]
    Delete { name: String },
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
            Verb::Create { name, size, pool, limits } => {
                let limits = limits.change().apply_to(VolumeLimits::default());
                let volume = CreateVolume { name, pool, size: size.0, limits, source: None };
                let volume = mds.create_volume(volume).await?;
                print_one(format, &volume)
            }
            Verb::List => list(format, &mds).await,
            Verb::Show { name } => print_one(format, &mds.get_volume(&*name).await?),
            Verb::Resize { name, size, state } => {
                let volume = mds.resize_volume(&*name, size.0).await?;
                attach::resize(&state, &mds, &volume).await?;
                print_one(format, &volume)
            }
            Verb::SetQos { name, limits } => {
                print_one(format, &mds.set_volume_limits(&*name, limits.change()).await?)
            }
            Verb::Delete { name } => Ok(mds.delete_volume(&*name).await?),
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
    let json = || volumes.iter().map(volume_json).collect();
    output::print(format, json, || {
        let rows: Vec<Vec<String>> = volumes
            .iter()
            .map(|volume| {
                let size = ByteSize(volume.size).to_string();
                let name = volume.name.clone();
                vec![name, size, volume.pool_name.clone(), attached_to(volume)]
            })
            .collect();
        table(&["NAME", "SIZE", "POOL", "ATTACHED TO"], &rows)
    })
}

fn attached_to(volume: &proto::Volume) -> String {
    let sessions = volume.sessions.iter();
    let each = sessions.map(|s| format!("{} (epoch {})", s.node, Epoch(s.epoch).attachment()));
    each.collect::<Vec<_>>().join(", ")
}

fn print_one(format: Format, volume: &proto::Volume) -> Result<()> {
    output::print(
        format,
        || volume_json(volume),
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
            text + "\n"
        },
    )
}

fn limits(volume: &proto::Volume) -> VolumeLimits {
    volume.limits.unwrap_or_default().into()
}

fn volume_json(volume: &proto::Volume) -> Value {
    let sessions = volume.sessions.iter().map(|session| {
        json!({
            "id": session.id,
            "node": session.node,
            "epoch": session.epoch,
            "read_only": session.read_only,
            "last_seen_ms": session.last_seen_ms,
        })
    });
    json!({
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
    })
}

/// The name under which this machine's command line attaches volumes: not the machine's own, which
/// is that of a Kubernetes node's agent, whose volumes are not to be taken over without `--force`.
fn node_name() -> Result<String> {
    let name = nix::unistd::gethostname()?;
    Ok(format!("{}.cli", name.to_string_lossy()))
}
