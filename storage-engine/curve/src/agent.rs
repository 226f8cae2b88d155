//! `curve agent`, and the client of its socket.

mod kubernetes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use curve_attach::agent::{
    Agent, AgentOptions, AgentService, ConnectionDir, ConnectionSource, serve_own_node,
};
use curve_attach::private_socket;
use curve_wire::pki::Identity;
use curve_wire::proto::agent_client::AgentClient;
use curve_wire::telemetry::{MetricsPort, Registry};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::lifetime;
use kubernetes::Secrets;

/// An idle agent of the command line ends after this.
const IDLE_MAX: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve agent --node node1 --socket /run/curve/agent.sock --state-dir /var/lib/curve/agent \\
    --connection-dir /etc/curve/clusters")]
pub struct Args {
    /// Name of this node, as volumes are published to it.
    #[arg(long)]
    node: String,
    /// Socket to serve on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Directory for mount points and records of attachments.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Read connections from DIR/NAMESPACE/NAME or DIR/NAMESPACE-NAME instead of from Kubernetes.
    #[arg(long, value_name = "DIR")]
    connection_dir: Option<PathBuf>,
    /// Namespace with the Secrets of this node, one per cluster.
    #[arg(long, env = "POD_NAMESPACE", default_value = "curve-system")]
    namespace: String,
    /// Serve metrics over mutual TLS at this address.
    #[arg(long, value_name = "ADDR", requires = "metrics_tls_dir")]
    listen_metrics: Option<SocketAddr>,
    /// Directory with ca.crt, tls.crt and tls.key for the metrics port.
    #[arg(long, value_name = "DIR")]
    metrics_tls_dir: Option<PathBuf>,
    /// End when nothing has been attached for a while: `curve volume attach` starts it so.
    #[arg(long, hide = true)]
    exit_when_idle: bool,
}

pub fn run(args: Args) -> Result<()> {
    let failures = serve_own_node();
    lifetime::run_role(async {
        for (step, error) in failures {
            tracing::warn!(%error, "cannot {step}: short memory on this node may stop its volumes");
        }
        serve(args).await
    })
}

async fn serve(args: Args) -> Result<()> {
    let stop = lifetime::stop_signal()?;
    let source: Arc<dyn ConnectionSource> = match &args.connection_dir {
        Some(dir) => Arc::new(ConnectionDir::new(dir)),
        None => Arc::new(Secrets::connect(&args.namespace, &args.node).await?),
    };
    let mut registry = Registry::default();
    let options = AgentOptions {
        node: args.node.clone(),
        state_dir: &args.state_dir,
        source,
        wait_for_lock: !args.exit_when_idle,
    };
    tokio::pin!(stop);
    let agent = tokio::select! {
        started = Agent::start(options, &mut registry) => started.context("take over the state directory")?,
        () = &mut stop => return Ok(()),
    };
    // Before the socket, at which volumes are attached as soon as it is there.
    let port = match args.listen_metrics.zip(args.metrics_tls_dir.as_deref()) {
        Some((address, dir)) => Some(MetricsPort::bind(address, Identity::load(dir)?).await?),
        None => None,
    };
    if let Some(parent) = args.socket.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let (listener, _socket) = private_socket::bind(&args.socket)?;
    tracing::info!(node = args.node, socket = %args.socket.display(), "serves");
    let idle = async {
        if args.exit_when_idle { idle(&agent).await } else { std::future::pending().await }
    };
    let ended = async {
        tokio::select! { () = stop => {}, () = idle => {} }
    };
    let service = AgentService::new(agent.clone(), args.listen_metrics);
    let result = tokio::select! {
        served = service.serve(listener, ended) => served.context("serve the agent's socket"),
        failed = MetricsPort::serve(port, Arc::new(registry)) => Ok(failed?),
    };
    agent.stop().await;
    result
}

/// Resolves once nothing has been attached for `IDLE_MAX`.
async fn idle(agent: &Agent) {
    let mut attached = agent.watch_attached();
    loop {
        let _ = attached.wait_for(|count| *count == 0).await;
        if tokio::time::timeout(IDLE_MAX, attached.wait_for(|count| *count > 0)).await.is_err() {
            return;
        }
    }
}

/// A client of the agent at that socket; the first call connects.
pub fn client(socket: &Path, timeout: Duration) -> AgentClient<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").timeout(timeout);
    AgentClient::new(endpoint.connect_with_connector_lazy(connector))
}
