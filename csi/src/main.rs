//! `curve-csi`: command line and wiring.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use csi_proto::csi::v1::controller_server::ControllerServer;
use csi_proto::csi::v1::group_controller_server::GroupControllerServer;
use csi_proto::csi::v1::identity_server::IdentityServer;
use csi_proto::csi::v1::node_server::NodeServer;
use curve_csi::attachments::agent::Agent;
use curve_csi::clusters::directory::Directory;
use curve_csi::clusters::secrets::Secrets;
use curve_csi::clusters::{Clusters, ConnectionSource};
use curve_csi::controller::nodes::{KubernetesNodes, ListedNodes, NodeDirectory, NodeInfo};
use curve_csi::controller::{self, ControllerService};
use curve_csi::group_controller::GroupControllerService;
use curve_csi::identity::{IdentityService, Readiness};
use curve_csi::node::{self, NodeService};
use curve_csi::rpc::Rpcs;
use curve_csi::rpc::metrics::RpcMetrics;
use curve_csi::server::{self, Reach};
use curve_csi::volumes::mds::MdsConnector;
use curve_csi::{health, registration};
use curve_wire::pki::Identity;
use curve_wire::telemetry::{self, MetricsPort, Registry};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::Router;

/// Volumes per node where the command line does not say: each has a device, a session and
/// buffers in the node's agent.
const VOLUMES_MAX: u32 = 256;

/// CSI driver block.csi.curve.io.
#[derive(Parser)]
#[command(name = "curve-csi", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the cluster-wide operations.
    Controller(ControllerArgs),
    /// Serve the operations of one node.
    Node(NodeArgs),
    /// Exit 0 if the plugin at the endpoint is ready.
    Health {
        #[arg(long, value_parser = server::parse_endpoint)]
        endpoint: PathBuf,
        /// Ask only whether it answers, as a liveness probe should: a restart would not bring back
        /// what it waits for.
        #[arg(long)]
        live: bool,
    },
}

#[derive(Args)]
struct ControllerArgs {
    /// Socket to serve on, unix:/PATH.
    #[arg(long, value_parser = server::parse_endpoint)]
    endpoint: PathBuf,
    /// Namespace of the driver, where the operator writes the clusters' connection Secrets.
    #[arg(long, default_value = "curve-system")]
    namespace: String,
    /// Read connections from DIR/NAMESPACE/NAME or DIR/NAMESPACE-NAME instead of from Kubernetes.
    #[arg(long, value_name = "DIR", requires = "nodes")]
    connection_dir: Option<PathBuf>,
    /// With --connection-dir: the nodes that exist, each NODE or NODE=VOLUMES_MAX.
    #[arg(long = "node", value_name = "NODE", value_parser = ListedNodes::parse)]
    nodes: Vec<(String, NodeInfo)>,
    #[command(flatten)]
    metrics: MetricsArgs,
}

#[derive(Args)]
struct NodeArgs {
    /// Socket to serve on, unix:/PATH.
    #[arg(long, value_parser = server::parse_endpoint)]
    endpoint: PathBuf,
    /// Name of the Kubernetes node.
    #[arg(long, env = "NODE_NAME")]
    node_id: String,
    /// Socket of this node's `curve agent`.
    #[arg(long)]
    agent_socket: PathBuf,
    /// Volumes that this node takes at a time; 0 for no limit.
    #[arg(long, default_value_t = VOLUMES_MAX)]
    volumes_max: u32,
    /// Socket in kubelet's plugins_registry directory; left out, the driver is not registered.
    #[arg(long, requires = "kubelet_registration_path")]
    registration_socket: Option<PathBuf>,
    /// Path of the endpoint's socket as kubelet sees it.
    #[arg(long)]
    kubelet_registration_path: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsArgs,
}

#[derive(Args)]
struct MetricsArgs {
    /// Serve metrics over mutual TLS at this address.
    #[arg(long, requires = "metrics_tls_dir")]
    listen_metrics: Option<SocketAddr>,
    /// Directory with ca.crt, tls.crt and tls.key for the metrics port.
    #[arg(long)]
    metrics_tls_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    telemetry::init_logging();
    match Cli::parse().command {
        Command::Controller(args) => run_controller(args).await,
        Command::Node(args) => run_node(args).await,
        Command::Health { endpoint, live } => health::check(&endpoint, !live).await,
    }
}

async fn run_controller(args: ControllerArgs) -> anyhow::Result<()> {
    let (source, nodes): (Arc<dyn ConnectionSource>, Box<dyn NodeDirectory>) =
        match &args.connection_dir {
            Some(dir) => {
                let nodes = args.nodes.into_iter().collect::<BTreeMap<_, _>>();
                (Arc::new(Directory::new(dir)), Box::new(ListedNodes(nodes)))
            }
            None => {
                curve_wire::tls::install_crypto_provider();
                let client = kube::Client::try_default().await;
                let client = client.context("reach the Kubernetes API")?;
                let secrets = Secrets::new(client.clone(), &args.namespace);
                (Arc::new(secrets), Box::new(KubernetesNodes::new(client)))
            }
        };
    let clusters = Clusters::new(source, Arc::new(MdsConnector));
    let context = Arc::new(controller::Context { clusters, nodes });
    let port = args.metrics.bind().await?;
    let (rpcs, registry) = instruments();
    let service = ControllerService::new(rpcs.clone(), context.clone());
    let groups = GroupControllerService::new(rpcs.clone(), context.clone());
    let router = identity(rpcs, context)
        .add_service(ControllerServer::new(service))
        .add_service(GroupControllerServer::new(groups));
    let stop = stop_signal()?;
    let listener = server::bind(&args.endpoint, Reach::Directory)?;
    tracing::info!(endpoint = %args.endpoint.display(), "serves the controller");
    tokio::select! {
        served = server::serve(listener, router, stopped(stop)) => served,
        failed = MetricsPort::serve(port, registry) => Ok(failed?),
    }
}

async fn run_node(args: NodeArgs) -> anyhow::Result<()> {
    let agent = Arc::new(Agent::new(&args.agent_socket));
    let node_id = args.node_id;
    let context = Arc::new(node::Context { agent, node_id, volumes_max: args.volumes_max });
    let port = args.metrics.bind().await?;
    let (rpcs, registry) = instruments();
    let service = NodeService::new(rpcs.clone(), context.clone());
    let router = identity(rpcs, context).add_service(NodeServer::new(service));
    let stop = stop_signal()?;
    let listener = server::bind(&args.endpoint, Reach::Owner)?;
    tracing::info!(endpoint = %args.endpoint.display(), "serves the node");
    let kubelet = args.registration_socket.zip(args.kubelet_registration_path);
    let registered = async {
        match &kubelet {
            Some((socket, csi)) => registration::serve(socket, csi, stopped(stop.clone())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = server::serve(listener, router, stopped(stop.clone())) => served,
        ended = registered => ended,
        failed = MetricsPort::serve(port, registry) => Ok(failed?),
    }
}

fn identity(rpcs: Rpcs, readiness: Arc<dyn Readiness>) -> Router {
    Server::builder().add_service(IdentityServer::new(IdentityService::new(rpcs, readiness)))
}

fn instruments() -> (Rpcs, Arc<Registry>) {
    let mut registry = Registry::default();
    let rpcs = Rpcs::new(RpcMetrics::register(&mut registry));
    (rpcs, Arc::new(registry))
}

impl MetricsArgs {
    async fn bind(&self) -> anyhow::Result<Option<MetricsPort>> {
        let (Some(address), Some(dir)) = (self.listen_metrics, &self.metrics_tls_dir) else {
            return Ok(None);
        };
        let identity = Identity::load(dir);
        let identity =
            identity.with_context(|| format!("load the certificates of {}", dir.display()))?;
        Ok(Some(MetricsPort::bind(address, identity).await?))
    }
}

/// Becomes true at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stops");
        sender.send_replace(true);
    });
    Ok(receiver)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the reason to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}
