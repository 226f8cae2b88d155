//! `cargo xtask`: the command line. Parses, takes the cluster's lock, calls the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use xtask::cluster::record::ClusterLock;
use xtask::cluster::{Cluster, verify};
use xtask::packages;
use xtask::paths::Paths;
use xtask::progress::{Progress, Step, human};
use xtask::tools::{CLUSTER_MODULES, Tools};

/// Develop Curve: a local Kubernetes, images, checks and tests.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// The local Kubernetes cluster alone, without Curve
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Start it, or complete what runs
    Up {
        #[arg(long, default_value_t = 3)]
        nodes: u8,
    },
    /// Run plain pods on two nodes and let them talk
    Verify,
    /// Print lines for a shell: eval "$(cargo xtask cluster env)"
    Env,
    /// Run kubectl against it
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Add one node and wait until it is Ready
    AddNode,
    /// Cut a node's power: all its processes die, its network is gone
    StopNode { node: u8 },
    /// Boot a stopped node
    StartNode { node: u8 },
    /// Unplug a node's network cable
    IsolateNode { node: u8 },
    /// Plug it in again
    RejoinNode { node: u8 },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Commands::Cluster(command) => cluster(command),
    }
}

fn cluster(command: ClusterCommand) -> Result<ExitCode> {
    let changing = |work: &dyn Fn(&Cluster) -> Result<()>| -> Result<()> {
        let _lock = ClusterLock::take()?;
        work(&Cluster::open()?)
    };
    match command {
        ClusterCommand::Up { nodes } => cluster_up(nodes)?,
        ClusterCommand::Verify => {
            let mut step = Step::new("plain pods".into());
            verify::plain_pods(&Cluster::open()?, &mut step)?;
            step.finish(true);
        }
        ClusterCommand::Env => print_env(&Cluster::open()?)?,
        ClusterCommand::Kubectl { args } => {
            let status = Cluster::open()?.kubectl().args(args).status().context("start kubectl")?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
        ClusterCommand::AddNode => changing(&|cluster| {
            println!("node{} is Ready", cluster.add_node()?);
            Ok(())
        })?,
        ClusterCommand::StopNode { node } => changing(&|cluster| cluster.stop_node(node))?,
        ClusterCommand::StartNode { node } => changing(&|cluster| {
            cluster.start_node(node)?;
            cluster.wait_nodes_ready(&[node], &mut Step::quiet())
        })?,
        ClusterCommand::IsolateNode { node } => {
            changing(&|cluster| cluster.connect_node(node, false))?;
        }
        ClusterCommand::RejoinNode { node } => {
            changing(&|cluster| cluster.connect_node(node, true))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cluster_up(nodes: u8) -> Result<()> {
    let _lock = ClusterLock::take()?;
    let paths = Paths::from_env()?;
    let mut progress = Progress::new(4);
    progress.stage("Debian packages", packages::ensure)?;
    let tools = progress.stage("tools", |step| Tools::ensure(&paths, step, CLUSTER_MODULES))?;
    let cluster = Cluster::new(paths, tools)?;
    progress.stage("cluster", |step| cluster.ensure(nodes, step))?;
    progress.stage("plain pods", |step| verify::plain_pods(&cluster, step))?;
    println!("\nReady after {}. To use it from this shell:\n", human(progress.elapsed()));
    println!("  eval \"$(cargo xtask cluster env)\"\n  kubectl get nodes");
    Ok(())
}

fn print_env(cluster: &Cluster) -> Result<()> {
    let mut path: Vec<PathBuf> = cluster.tools.path_entries();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(path).context("join PATH")?;
    println!("export KUBECONFIG='{}'", cluster.paths.admin_kubeconfig().display());
    println!("export PATH='{}'", path.to_string_lossy());
    Ok(())
}
