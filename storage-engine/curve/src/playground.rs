//! `curve playground`: a whole cluster as child processes on loopback. `plan` says what runs and
//! where, `pki` makes its certificates, `child` keeps a process running, `metrics` counts that,
//! `ready` waits until IO would succeed.

mod child;
mod metrics;
mod pki;
mod plan;
mod ready;

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use curve_types::ByteSize;
use curve_wire::pki::Identity;
use curve_wire::telemetry::{MetricsPort, Registry};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use crate::lifetime;
use child::{Child, Pids};
use metrics::Metrics;
pub use plan::BadPlan;
use plan::{Plan, Wanted};

/// All children together get this long to end by themselves.
const GRACE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve playground start --dir /var/tmp/curve > /tmp/playground.json &
  until grep -s '\"ready\":true' /tmp/playground.json; do sleep 1; done
  export CURVE_CONFIG=/var/tmp/curve/client.toml
  curve status")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run until SIGTERM; print one line of JSON when volumes can be used. Started again on the
    /// same directory it has all data.
    #[command(after_help = "Example:
  curve playground start --dir /var/tmp/curve --chunkservers 4")]
    Start(StartArgs),
}

#[derive(clap::Args)]
struct StartArgs {
    /// Holds everything: devices, certificates, logs, client.toml.
    #[arg(long)]
    dir: PathBuf,
    /// MDS processes: 1 or 3. Cannot change later. [default: 3]
    #[arg(long, value_name = "N")]
    mds: Option<u32>,
    /// Chunkservers, at least 3; more later adds some. [default: 3]
    #[arg(long, value_name = "N")]
    chunkservers: Option<u32>,
    /// Size of each new chunkserver's device file.
    #[arg(long, value_name = "SIZE", default_value = "4Gi")]
    device_size: ByteSize,
    /// Give each new chunkserver's log a device file of its own, of this size.
    #[arg(long, value_name = "SIZE")]
    log_device_size: Option<ByteSize>,
    /// Silence after which a chunkserver's replicas are re-created elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    out_after_secs: u64,
}

pub fn run(args: Args) -> Result<()> {
    let Verb::Start(args) = args.verb;
    curve_wire::telemetry::init_logging();
    curve_wire::tls::install_crypto_provider();
    // One thread: children are told to die with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    LocalSet::new().block_on(&runtime, start(args))
}

async fn start(args: StartArgs) -> Result<()> {
    let stop = lifetime::stop_signal()?;
    let dir = prepare_dir(&args.dir)?;
    let _lock = lock(&dir)?;
    let wanted = Wanted {
        mds: args.mds,
        chunkservers: args.chunkservers,
        device_size: args.device_size,
        log_device_size: args.log_device_size,
    };
    let plan = Plan::load_or_make(&dir, &wanted)?;
    plan.make_device_dirs(&dir)?;
    pki::make_certificates(&dir, &plan)?;
    plan.write_client_toml(&dir)?;
    let identity = Identity::load(&pki::tls_dir(&dir, pki::ADMIN))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, plan.metrics));
    let port = MetricsPort::bind(address, identity).await?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let pids = Rc::new(Pids::new(&dir));
    let (ending, end) = watch::channel(false);
    let mut children = JoinSet::new();
    for command in plan.commands(&dir, args.out_after_secs) {
        let counts = metrics.of(&command.name);
        let child = Child::new(command, pids.clone(), counts, end.clone());
        children.spawn_local(child.run());
    }
    let outcome = tokio::select! {
        () = stop => Ok(()),
        failed = run_until_failure(&dir, &plan, &pids) => failed,
        Some(failed) = children.join_next() => failed.context("a child's task")?,
        failed = MetricsPort::serve(Some(port), Arc::new(registry)) => Ok(failed?),
    };
    ending.send_replace(true);
    let ended = async { while children.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE * 2, ended).await.is_err() {
        bail!("children did not end");
    }
    outcome
}

fn prepare_dir(dir: &Path) -> Result<PathBuf> {
    let at = || format!("create {}", dir.display());
    std::fs::create_dir_all(dir.join("log")).with_context(at)?;
    dir.canonicalize().with_context(at)
}

fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => {
            bail!("a playground already runs in {}: stop it, or use another --dir", dir.display())
        }
    }
}

/// Announces readiness, then never returns; fails if the cluster does not become ready.
async fn run_until_failure(dir: &Path, plan: &Plan, pids: &Pids) -> Result<()> {
    let found = ready::wait(dir, plan).await?;
    let line = Ready {
        ready: true,
        config: dir.join("client.toml"),
        dir,
        metrics: plan::loopback(plan.metrics),
        cluster_id: found.cluster_id,
        mds: plan
            .mds
            .iter()
            .map(|mds| Running {
                name: &mds.name,
                pid: pids.get(&mds.name),
                device_id: None,
                address: plan::loopback(mds.grpc),
            })
            .collect(),
        chunkservers: plan
            .chunkservers
            .iter()
            .map(|server| Running {
                name: &server.name,
                pid: pids.get(&server.name),
                device_id: found.devices.get(&server.name).cloned(),
                address: plan::loopback(server.data),
            })
            .collect(),
    };
    println!("{}", serde_json::to_string(&line).context("encode the ready line")?);
    std::future::pending().await
}

/// The one line on stdout.
#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    config: PathBuf,
    dir: &'a Path,
    /// Address of the playground's own metrics.
    metrics: String,
    cluster_id: String,
    mds: Vec<Running<'a>>,
    chunkservers: Vec<Running<'a>>,
}

#[derive(Serialize)]
struct Running<'a> {
    name: &'a str,
    /// At this moment; `DIR/pids.json` follows restarts.
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<String>,
    address: String,
}
