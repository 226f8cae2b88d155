//! Puts a chunkserver together and takes it down: device, Raft host, data plane, heartbeats.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use curve_client::{MdsClient, MdsError};
use curve_raft::{Factory, HostError, HostOptions, RaftHost, ReadPolicy, StateMachine, Timing};
use curve_store::{RecoveredGroup, Store, StoreError};
use curve_types::{CopysetId, DeviceId};
use curve_wire::auth::Key;
use curve_wire::net::{self, Listener};
use curve_wire::pki::{Identity, PkiError};
use curve_wire::proto::{ScrubOrder, ScrubReport};
use curve_wire::rpc;
use curve_wire::telemetry::{Registry, serve_metrics};
use curve_wire::tls::TlsError;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::admission::Admission;
use crate::device::{self, OpenDevice};
use crate::digest::DigestSlot;
use crate::freezes::expire;
use crate::heartbeat::beat;
use crate::machine::{BlockMachine, BlockState};
use crate::metrics::Metrics;
use crate::reads::ReadReaper;
use crate::repair::Repairer;
use crate::scrub::{Scrubber, Scrubs};
use crate::service::{BlockService, Replica, Replicas};
use crate::{AddressBook, ChunkserverOptions, DeviceError};

/// What leaders get to hand over before the process ends anyway.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a chunkserver did not start, or stopped.
#[derive(Debug, Error)]
pub enum ChunkserverError {
    #[error("load the certificates")]
    Identity(#[from] PkiError),
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("set up the MDS client")]
    Mds(#[from] MdsError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("start the copysets")]
    Host(#[from] HostError),
    #[error("serve metrics")]
    Metrics(#[from] TlsError),
    /// Nothing that the device acknowledged after this can be trusted: the process must end.
    #[error("the device failed")]
    DeviceFailed(#[source] StoreError),
    /// See `RaftHost::failure`.
    #[error("the replica of copyset {copyset} stopped: {why}")]
    ReplicaFailed { copyset: CopysetId, why: String },
}

/// An open device with its copysets; serves whatever sockets it is given.
pub struct BlockServer {
    device: DeviceId,
    peer_key: Key,
    store: Store,
    host: RaftHost,
    replicas: Replicas,
    addresses: Arc<AddressBook>,
    metrics: Metrics,
    scrubs: Scrubs,
    admission: Admission,
    _reaper: Option<ReadReaper>,
}

/// What a `BlockServer` is made of.
pub struct BlockServerOptions {
    pub device: DeviceId,
    pub peer_key: Key,
    pub store: Store,
    pub recovered: Vec<RecoveredGroup>,
    pub timing: Timing,
}

impl BlockServer {
    /// Starts every copyset found on the device.
    pub async fn start(options: BlockServerOptions) -> Result<Self, HostError> {
        let BlockServerOptions { device, peer_key, store, recovered, timing } = options;
        let reaper = ReadReaper::start(&store);
        let replicas = Replicas::default();
        let addresses = Arc::new(AddressBook::default());
        let host_options = HostOptions {
            device,
            store: store.clone(),
            recovered,
            peer_key: peer_key.clone(),
            resolver: addresses.clone(),
            timing,
            read_policy: ReadPolicy::Lease,
            snapshot_bytes_per_second: 0,
        };
        let host = RaftHost::start(host_options, factory(replicas.clone())).await?;
        let metrics = Metrics::default();
        let admission = Admission::new(store.clone());
        Ok(Self {
            device,
            peer_key,
            store,
            host,
            replicas,
            addresses,
            metrics,
            scrubs: Scrubs::default(),
            admission,
            _reaper: reaper,
        })
    }

    pub fn device(&self) -> DeviceId {
        self.device
    }

    pub fn host(&self) -> &RaftHost {
        &self.host
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where this server's peers are; whoever runs it keeps it up to date.
    pub fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        self.host.register_metrics(registry);
    }

    /// Stops a replica and forgets its data.
    pub async fn drop_replica(&self, copyset: CopysetId) -> Result<(), HostError> {
        let dropped = self.host.drop_group(copyset).await;
        if !matches!(dropped, Err(HostError::NoGroup(_))) {
            self.replicas.remove(copyset);
        }
        dropped
    }

    /// Whether the replica of `from` is yet to divide, or to learn that it has, so that `copyset`
    /// leaves it. Were that made by order before, it would begin with nothing at all replicas.
    pub fn may_divide(&self, from: CopysetId, copyset: CopysetId) -> bool {
        let Some(replica) = self.replicas.get(from) else { return false };
        let has_left = replica.has_left(copyset);
        if has_left {
            // It says so while it is about to make the other one.
            replica.group.settle();
        }
        !has_left
    }

    /// Refuses writes to copysets that have a voter whose device is full, and to no others.
    pub fn set_full(&self, copysets: BTreeSet<CopysetId>) {
        self.admission.set_full(copysets);
    }

    /// Takes over the MDS's orders to scrub: those that are not among them are over.
    pub fn scrub(&self, orders: Vec<ScrubOrder>) {
        self.scrubs.order(orders);
    }

    /// How far each ordered scrub is.
    pub fn scrub_reports(&self) -> BTreeMap<CopysetId, ScrubReport> {
        let mut reports = self.scrubs.reports();
        for (copyset, report) in &mut reports {
            let replica = self.replicas.get(*copyset);
            report.digest = replica.and_then(|replica| replica.digest.of(report.number));
        }
        reports
    }

    /// Serves a data-plane socket, scrubs the device, and ends forgotten freezes, until dropped.
    pub async fn serve(&self, listener: Listener) {
        let repairer = Arc::new(Repairer::new(self.device, self.metrics.clone()));
        let scrubber = Scrubber {
            host: self.host.clone(),
            replicas: self.replicas.clone(),
            store: self.store.clone(),
            repairer: repairer.clone(),
            metrics: self.metrics.clone(),
            scrubs: self.scrubs.clone(),
        };
        let service = BlockService::new(
            self.host.clone(),
            self.replicas.clone(),
            self.admission.clone(),
            repairer,
            self.metrics.clone(),
        );
        self.metrics.set_serving(true);
        let served = rpc::serve(listener, self.device, self.peer_key.clone(), Arc::new(service));
        tokio::join!(served, scrubber.run(), expire(self.host.clone(), self.replicas.clone()));
    }

    /// Resolves when the device has failed.
    pub async fn device_failure(&self) -> StoreError {
        let (sender, receiver) = oneshot::channel();
        self.store.on_failure(Box::new(move |error| {
            let _ = sender.send(error);
        }));
        match receiver.await {
            Ok(error) => error,
            // The store went without failing: nothing is left to wait for.
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands over what can be handed over and stops every copyset.
    pub async fn stop(&self) {
        self.metrics.set_serving(false);
        if tokio::time::timeout(STOP_TIMEOUT, self.host.shutdown()).await.is_err() {
            tracing::warn!("the copysets did not stop in time");
        }
        self.replicas.clear();
    }
}

fn factory(replicas: Replicas) -> Factory {
    Arc::new(move |copyset, group, blob| {
        let state = Arc::new(RwLock::new(BlockState::default()));
        let digest = DigestSlot::default();
        let machine = BlockMachine::open(state.clone(), digest.clone(), blob)?;
        replicas.insert(copyset, Replica { group: group.clone(), state, digest });
        Ok(Box::new(machine) as Box<dyn StateMachine>)
    })
}

/// Sockets that a chunkserver serves.
pub struct Listeners {
    pub data: Listener,
    pub metrics: Listener,
}

impl Listeners {
    pub async fn bind(options: &ChunkserverOptions) -> Result<Self, ChunkserverError> {
        let bind = async |address: SocketAddr| {
            let error = |source| ChunkserverError::Listen { address, source };
            net::bind(address).await.map_err(error)
        };
        Ok(Self { data: bind(options.listen).await?, metrics: bind(options.listen_metrics).await? })
    }
}

/// Runs a chunkserver until `shutdown` resolves.
pub async fn run(
    options: ChunkserverOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ChunkserverError> {
    let listeners = Listeners::bind(&options).await?;
    serve(options, listeners, shutdown).await
}

/// As `run`, on sockets that are already bound.
pub async fn serve(
    options: ChunkserverOptions,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ChunkserverError> {
    let identity = Identity::load(&options.tls_dir)?;
    let mds = MdsClient::connect(&options.mds, &identity)?;
    tokio::pin!(shutdown);
    let opened = tokio::select! {
        opened = device::open(&options, &mds) => opened?,
        () = &mut shutdown => return Ok(()),
    };
    let OpenDevice { device, peer_key, store, recovered } = opened;
    let timing = Timing::default();
    let options_of_server = BlockServerOptions { device, peer_key, store, recovered, timing };
    let server = Arc::new(BlockServer::start(options_of_server).await?);
    tracing::info!(name = options.name, %device, address = options.advertise, "started");

    let mut registry = Registry::default();
    server.register_metrics(&mut registry);
    let outcome = tokio::select! {
        () = server.serve(listeners.data) => Ok(()),
        () = beat(server.clone(), options.clone(), mds) => Ok(()),
        served = serve_metrics(listeners.metrics, &identity, Arc::new(registry)) => {
            served.map_err(ChunkserverError::from)
        }
        error = server.device_failure() => Err(ChunkserverError::DeviceFailed(error)),
        (copyset, why) = server.host().failure() => {
            Err(ChunkserverError::ReplicaFailed { copyset, why })
        }
        () = &mut shutdown => Ok(()),
    };
    if let Err(error) = &outcome {
        tracing::error!(name = options.name, %error, "stopping");
    }
    server.stop().await;
    tracing::info!(name = options.name, "stopped");
    outcome
}
