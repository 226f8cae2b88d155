//! Starts an MDS process: device file, Raft host, services; stops it in the opposite order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use curve_raft::device::{
    DeviceState, FormatOptions, Store, StoreError, StoreOptions, format, inspect, open_or_create,
};
use curve_raft::{
    Factory, GroupHandle, HostError, HostOptions, RaftHost, ReadPolicy, StateMachine, Timing,
    in_thread,
};
use curve_types::{ByteSize, ClusterId, CopysetId, DeviceId};
use curve_wire::auth::Key;
use curve_wire::net::{self, Listener};
use curve_wire::pki::{CLUSTER_KEY_FILE, Identity, PkiError};
use curve_wire::proto::mds_admin_server::MdsAdminServer;
use curve_wire::proto::mds_device_server::MdsDeviceServer;
use curve_wire::proto::mds_peer_server::MdsPeerServer;
use curve_wire::proto::mds_topology_server::MdsTopologyServer;
use curve_wire::proto::mds_volume_server::MdsVolumeServer;
use curve_wire::rpc::{self, Replier, Request};
use curve_wire::telemetry::{Registry, serve_metrics};
use curve_wire::tls;
use thiserror::Error;
use tokio::sync::Mutex;
use tonic::service::Routes;

use crate::lead::lead;
use crate::machine::{Machine, RaftGroup, SharedState};
use crate::membership::{form_or_join, keep_polling};
use crate::metrics::Metrics;
use crate::node::{Node, Parts};
use crate::options::{MdsOptions, OptionsError};
use crate::peers::{PeerAddressError, Peers};
use crate::service::{PeerService, Service};

/// The device file in the data directory.
const DEVICE_FILE: &str = "mds.device";
/// The Raft host gets so long to hand over leadership and to close its device.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);
/// Requests that one connection has in flight.
const REQUESTS_MAX: usize = 256;
/// A peer that vanished without closing its connection is noticed after two of these.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why an MDS did not start, or stopped.
#[derive(Debug, Error)]
pub enum RunError {
    #[error("settings")]
    Options(#[from] OptionsError),
    #[error("certificates")]
    Pki(#[from] PkiError),
    #[error("read {path}")]
    ReadKey { path: PathBuf, source: std::io::Error },
    #[error("{path} does not hold 64 hexadecimal digits")]
    BadKey { path: PathBuf },
    #[error("peers")]
    Peers(#[from] PeerAddressError),
    #[error("create the data directory {path}")]
    CreateDir { path: PathBuf, source: std::io::Error },
    #[error("open the device file {path}")]
    OpenDevice { path: PathBuf, source: std::io::Error },
    #[error("the device file {path} {what}")]
    NotOurs { path: PathBuf, what: String },
    #[error("the device file {path}")]
    Store { path: PathBuf, source: StoreError },
    #[error("the Raft host")]
    Host(#[from] HostError),
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the gRPC server")]
    Grpc(#[from] tonic::transport::Error),
    #[error("the metrics server")]
    Metrics(#[from] tls::TlsError),
    #[error("this replica stopped: {0}")]
    ReplicaFailed(String),
}

/// Sockets that an MDS serves.
pub struct Listeners {
    pub grpc: Listener,
    pub raft: Listener,
    pub metrics: Listener,
}

impl Listeners {
    pub async fn bind(options: &MdsOptions) -> Result<Self, RunError> {
        let bind = async |address: SocketAddr| {
            let error = |source| RunError::Listen { address, source };
            net::bind(address).await.map_err(error)
        };
        Ok(Self {
            grpc: bind(options.listen_grpc).await?,
            raft: bind(options.listen_raft).await?,
            metrics: bind(options.listen_metrics).await?,
        })
    }
}

/// Runs an MDS until `shutdown` resolves.
pub async fn run(
    options: MdsOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    options.validate()?;
    let listeners = Listeners::bind(&options).await?;
    serve(options, listeners, shutdown).await
}

/// As `run`, on sockets that are already bound.
pub async fn serve(
    options: MdsOptions,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    options.validate()?;
    let identity = Identity::load(&options.tls_dir)?;
    let cluster_key = read_cluster_key(&options.tls_dir)?;
    let peers = Arc::new(Peers::new(&options.name, &options.peers, &identity)?);
    let state = SharedState::default();
    let (host, device) = start_host(&options, &peers, &cluster_key, &state).await?;
    tracing::info!(name = options.name, %device, "started");

    let node = Arc::new(OnceLock::new());
    let peer_service = PeerService {
        name: options.name.clone(),
        device,
        host: host.clone(),
        state: state.clone(),
        node: node.clone(),
        joining: Mutex::new(()),
    };
    let group: GroupHandle = match host.group(CopysetId::MDS) {
        Some(group) => group,
        None => host.create_group(CopysetId::MDS).await?,
    };
    let parts = Parts {
        device,
        cluster_name: options.cluster_name.clone(),
        out_after: options.out_after,
        cluster_key: cluster_key.clone(),
        state,
        peers,
        group: Arc::new(RaftGroup { host: host.clone(), group }),
    };
    let mds = Node::new(parts);
    let _ = node.set(mds.clone());
    let outcome = tokio::select! {
        served = serve_all(&mds, &host, listeners, &identity, cluster_key, peer_service) => served,
        () = shutdown => Ok(()),
    };
    mds.end_serving();
    // Followers notice the end of a leader that hands over, or closes, at once.
    if tokio::time::timeout(DRAIN_TIMEOUT, host.shutdown()).await.is_err() {
        tracing::warn!("the Raft host did not stop in time");
    }
    tracing::info!(name = options.name, "stopped");
    outcome
}

/// Everything that runs side by side. Returns only when one part fails.
async fn serve_all(
    node: &Arc<Node>,
    host: &RaftHost,
    listeners: Listeners,
    identity: &Identity,
    cluster_key: Key,
    peer_service: PeerService,
) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::default());
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    host.register_metrics(&mut registry);

    let frames = Arc::new(Frames(host.clone()));
    let raft = rpc::serve(listeners.raft, node.device, cluster_key.mds_peer_key(), frames);
    let scrapes = serve_metrics(listeners.metrics, identity, Arc::new(registry));
    let routes = leader_routes(node).add_service(MdsPeerServer::new(peer_service));
    let grpc = serve_grpc(routes, listeners.grpc, identity);
    let membership = async {
        form_or_join(host, node.device, &node.peers).await?;
        keep_polling(node).await;
        Ok::<(), HostError>(())
    };
    tokio::select! {
        () = raft => Ok(()),
        served = scrapes => Ok(served?),
        served = grpc => Ok(served?),
        joined = membership => Ok(joined?),
        () = lead(node.clone(), metrics) => Ok(()),
        failure = replica_failure(node) => Err(RunError::ReplicaFailed(failure)),
    }
}

/// What only the leader answers.
pub(crate) fn leader_routes(node: &Arc<Node>) -> Routes {
    let service = Service(node.clone());
    Routes::new(MdsDeviceServer::new(service.clone()))
        .add_service(MdsTopologyServer::new(service.clone()))
        .add_service(MdsAdminServer::new(service.clone()))
        .add_service(MdsVolumeServer::new(service))
}

pub(crate) async fn serve_grpc(
    routes: Routes,
    listener: Listener,
    identity: &Identity,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .tls_config(tls::server_config(identity))?
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .tcp_nodelay(true)
        .add_routes(routes)
        .serve_with_incoming(listener.incoming())
        .await
}

/// Resolves when the replica has stopped for good: the process must not go on without it.
async fn replica_failure(node: &Node) -> String {
    loop {
        if let Some(failure) = node.group.report().and_then(|report| report.failure) {
            return failure;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Frames of peers go to the Raft host; there are no others on this port.
struct Frames(RaftHost);

impl rpc::Service for Frames {
    fn on_request(&self, request: Request, replier: Replier) {
        self.0.on_request(request, replier);
    }
}

async fn start_host(
    options: &MdsOptions,
    peers: &Arc<Peers>,
    cluster_key: &Key,
    state: &SharedState,
) -> Result<(RaftHost, DeviceId), RunError> {
    let (store, recovered, device) = {
        let (dir, size, name) =
            (options.data_dir.clone(), options.device_size, options.name.clone());
        in_thread(move || open_device(&dir, size, &name)).await?
    };
    let shared = state.clone();
    let factory: Factory = Arc::new(move |_, _, stored| {
        let machine = Machine::open(shared.clone(), stored)?;
        Ok(Box::new(machine) as Box<dyn StateMachine>)
    });
    let host_options = HostOptions {
        device,
        store,
        recovered,
        peer_key: cluster_key.mds_peer_key(),
        resolver: peers.clone(),
        timing: Timing::default(),
        read_policy: ReadPolicy::Lease,
        snapshot_bytes_per_second: 0,
    };
    Ok((RaftHost::start(host_options, factory).await?, device))
}

type Opened = (Store, Vec<curve_raft::device::RecoveredGroup>, DeviceId);

/// Opens the device file; formats it, under a fresh identity, if it is not there or blank.
fn open_device(dir: &Path, size: ByteSize, name: &str) -> Result<Opened, RunError> {
    let path = dir.join(DEVICE_FILE);
    std::fs::create_dir_all(dir)
        .map_err(|source| RunError::CreateDir { path: dir.to_owned(), source })?;
    let store_error = |source| RunError::Store { path: path.clone(), source };
    let not_ours = |what: String| RunError::NotOurs { path: path.clone(), what };
    let disk = open_or_create(&path, size.0)
        .map_err(|source| RunError::OpenDevice { path: path.clone(), source })?;
    let superblock = match inspect(&*disk).map_err(store_error)? {
        DeviceState::Formatted(superblock) => superblock,
        DeviceState::Blank => {
            let (cluster, device) = (ClusterId::default(), DeviceId::random());
            let size = disk.len();
            let options = FormatOptions { cluster, device, name: name.to_owned(), size };
            tracing::info!(path = %path.display(), %device, "formatting an empty device");
            format(&*disk, &options).map_err(store_error)?
        }
        DeviceState::Foreign { what } => return Err(not_ours(format!("is not Curve's: {what}"))),
        DeviceState::Damaged { what } => return Err(not_ours(format!("is damaged: {what}"))),
    };
    if superblock.name != name {
        let what = format!("belongs to MDS {:?}, this is {name:?}", superblock.name);
        return Err(not_ours(what));
    }
    let device = superblock.device;
    let (store, recovered) = Store::open(disk, StoreOptions::default()).map_err(store_error)?;
    Ok((store, recovered, device))
}

fn read_cluster_key(dir: &Path) -> Result<Key, RunError> {
    let path = dir.join(CLUSTER_KEY_FILE);
    let text = std::fs::read_to_string(&path)
        .map_err(|source| RunError::ReadKey { path: path.clone(), source })?;
    Key::from_hex(&text).ok_or(RunError::BadKey { path })
}

#[cfg(test)]
mod tests;
