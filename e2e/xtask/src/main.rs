//! `cargo xtask`: the command line. Parses and calls the library.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use xtask::bench::block;
use xtask::check::{self, Outcome};
use xtask::cluster::record::ClusterLock;
use xtask::cluster::{Cluster, verify};
use xtask::deploy;
use xtask::fuzz;
use xtask::paths::Paths;
use xtask::progress::{Progress, Step, human};
use xtask::test::{self, Selection};
use xtask::tools::Tools;
use xtask::up::{self, UpOptions};

/// Develop Curve: a local Kubernetes, images, checks and tests.
///
/// Built tools and image layers are cached in ~/.cache/curve (CURVE_CACHE), the cluster's data
/// and logs are in /var/lib/curve-e2e (CURVE_E2E_DIR).
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Start a local Kubernetes with Curve on it and a pod that writes to a volume
    Up {
        /// Nodes of the local cluster; more than it has are added, none is removed
        #[arg(long, default_value_t = 3, conflicts_with = "kubeconfig")]
        nodes: u8,
        /// Install an optimized build
        #[arg(long)]
        release: bool,
        /// Use this cluster and make no nodes
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// The image that cluster pulls, instead of one that is loaded by hand
        #[arg(long, value_name = "REPOSITORY:TAG", requires = "kubeconfig")]
        image: Option<String>,
    },
    /// Remove every process, namespace, mount, loop device and cgroup of the local cluster
    Down {
        /// Also its data and logs
        #[arg(long)]
        purge: bool,
    },
    /// Build the Curve image and load it on the local cluster's nodes
    Image {
        #[arg(long)]
        release: bool,
    },
    /// Build, load and install Curve on the local cluster, and apply the examples
    Deploy {
        #[arg(long)]
        release: bool,
    },
    /// Format, lints, dependencies, generated files; changes nothing
    Check,
    /// Change what check would complain about, where a tool can
    Fix,
    /// Everything check does, then the tests; ends with their totals
    Test {
        /// Leave out what needs the local cluster
        #[arg(long)]
        no_cluster: bool,
        #[command(subcommand)]
        part: Option<TestPart>,
    },
    /// Look for inputs that break what reads devices and sockets
    ///
    /// An input that fails is written to ~/.cache/curve/log; put it into
    /// storage-engine/fuzz/seeds/TARGET, which every run tries first.
    Fuzz {
        /// One of log, checkpoint, frames and nbd; all if none is given
        target: Option<String>,
        /// Of each target
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Kill processes of a playground again and again, under loads that verify what they read
    Kills {
        #[arg(long, default_value_t = 200)]
        rounds: u64,
        /// Chooses what is killed when
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Simulate clusters with everything that can go wrong, one for each seed
    ///
    /// A seed that fails comes to the same each time:
    /// CURVE_LOG=info target/debug/curve-sim --seed N shows what happens.
    Sim {
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// The first of them
        #[arg(long, default_value_t = 1)]
        first: u64,
    },
    /// Measure Curve beside the bare disk, interleaved, in one run
    #[command(subcommand)]
    Bench(BenchCommand),
    /// The local Kubernetes cluster alone, without Curve
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

#[derive(Subcommand)]
enum BenchCommand {
    /// A volume of a playground with three chunkservers, through its NBD socket
    Block {
        /// In which the playground and the raw file live for the time of the run: on a real disk
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Of each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u32,
        #[arg(long, default_value_t = 1024)]
        volume_mib: u64,
        /// Also write every round to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Measure an unoptimized build, for trying the command itself
        #[arg(long)]
        debug: bool,
    },
}

#[derive(Subcommand)]
enum TestPart {
    /// Unit and integration tests
    Unit,
    /// The conformance tests of the CSI project
    CsiSanity,
    /// End-to-end tests on the local cluster
    E2e {
        /// Part of a file's name in e2e/tests, or of a test's name
        name: Option<String>,
    },
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
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Commands) -> Result<ExitCode> {
    match command {
        Commands::Up { nodes, release, kubeconfig, image } => {
            up::up(&UpOptions { nodes, release, kubeconfig, image })?;
        }
        Commands::Down { purge } => down(purge)?,
        Commands::Image { release } => image(release)?,
        Commands::Deploy { release } => {
            let _lock = ClusterLock::take()?;
            up::deploy_all(&Cluster::open()?, release, &mut Progress::new(5))?;
        }
        Commands::Check => return Ok(report(&check::check(&Paths::from_env()?)?)),
        Commands::Fix => return Ok(report(&check::fix(&Paths::from_env()?)?)),
        Commands::Test { no_cluster, part } => {
            let selection = match part {
                None => Selection::All { cluster: !no_cluster },
                Some(TestPart::Unit) => Selection::Unit,
                Some(TestPart::CsiSanity) => Selection::CsiSanity,
                Some(TestPart::E2e { name }) => Selection::EndToEnd { name },
            };
            let passed = test::test(&selection)?;
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Commands::Fuzz { target, seconds } => {
            let each = Duration::from_secs(seconds);
            return Ok(report(&fuzz::fuzz(&Paths::from_env()?, target.as_deref(), each)?));
        }
        Commands::Kills { rounds, seed } => test::kills(&Paths::from_env()?, rounds, seed)?,
        Commands::Sim { seeds, first } => {
            let outcome = test::simulate(&Paths::from_env()?, first, seeds)?;
            return Ok(report(&[outcome]));
        }
        Commands::Bench(command) => bench(command)?,
        Commands::Cluster(command) => return cluster(command),
    }
    Ok(ExitCode::SUCCESS)
}

fn down(purge: bool) -> Result<()> {
    let _lock = ClusterLock::take()?;
    let paths = Paths::from_env()?;
    let cluster = Cluster::new(paths.clone(), Tools::cached(&paths)?)?;
    Progress::new(1).stage("removing the local cluster", |step| {
        cluster.remove(purge)?;
        step.say(if purge {
            format!("nothing is left; built tools stay in {}", paths.cache.display())
        } else {
            format!("its data stays in {}: --purge removes it", paths.state.display())
        });
        Ok(())
    })
}

fn image(release: bool) -> Result<()> {
    let _lock = ClusterLock::take()?;
    let cluster = Cluster::open()?;
    let mut progress = Progress::new(3);
    let paths = &cluster.paths;
    let tools = progress.stage("tools", |step| Tools::ensure(paths, step, &[]))?;
    let binaries =
        progress.stage("Curve from source", |step| deploy::build(paths, release, step))?;
    progress.stage("image", |step| deploy::load_images(&cluster, &tools, &binaries, step))?;
    Ok(())
}

fn bench(command: BenchCommand) -> Result<()> {
    let BenchCommand::Block { dir, rounds, seconds, volume_mib, json, debug } = command;
    let paths = Paths::from_env()?;
    let binaries = Progress::new(1).stage("Curve from source", |step| match debug {
        true => deploy::build(&paths, false, step),
        false => deploy::build_engine(&paths, step),
    })?;
    block::run(block::Options {
        dir,
        rounds,
        seconds,
        volume_size: volume_mib << 20,
        json,
        curve: binaries.join("curve"),
    })
}

fn report(outcomes: &[Outcome]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for outcome in outcomes {
        if let Some(failure) = &outcome.failure {
            println!("\n---- {} ({}) ----\n{failure}", outcome.name, human(outcome.elapsed));
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn cluster(command: ClusterCommand) -> Result<ExitCode> {
    let changing = |work: &dyn Fn(&Cluster) -> Result<()>| -> Result<()> {
        let _lock = ClusterLock::take()?;
        work(&Cluster::open()?)
    };
    match command {
        ClusterCommand::Up { nodes } => up::cluster_only(nodes)?,
        ClusterCommand::Verify => {
            let cluster = Cluster::open()?;
            Progress::new(1).stage("plain pods", |step| verify::plain_pods(&cluster, step))?;
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

fn print_env(cluster: &Cluster) -> Result<()> {
    let mut path: Vec<PathBuf> = cluster.tools.path_entries();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(path).context("join PATH")?;
    println!("export KUBECONFIG='{}'", cluster.paths.admin_kubeconfig().display());
    println!("export PATH='{}'", path.to_string_lossy());
    Ok(())
}
