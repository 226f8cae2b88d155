//! The host: starts and stops groups, routes frames to them, reports on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use curve_store::{Done, RecoveredGroup, StoreError};
use curve_types::{CopysetId, DeviceId};
use curve_wire::auth::{Credentials, Principal};
use curve_wire::rpc::{Replier, Request};
use openraft::errors::{Fatal, InitializeError, RaftError};
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::blocking::patiently;
use crate::codec::message::Refusal;
use crate::core::{GroupCore, Raft, Shared};
use crate::election::follow_leadership;
use crate::gate::Gate;
use crate::group::PROPOSALS_KIB_MAX;
use crate::heard::Heard;
use crate::host::children::Children;
use crate::inbox::{INBOX_MAX, serve_appends};
use crate::lease::LeaseClock;
use crate::log::{InstallGate, LogStore};
use crate::metrics::Metrics;
use crate::network::NetworkFactory;
use crate::peers::Peers;
use crate::replica::{Machine, Replica};
use crate::room::LogRoom;
use crate::snapshot::{Receiver, Sender, refuse};
use crate::types::NodeId;
use crate::witness::{ReplicaId, tell};
use crate::{Factory, GroupHandle, GroupReport, HostOptions, Leadership, Timing};

pub(crate) mod children;
mod damage;
mod upkeep;

/// Entries in one append, besides the limit on bytes.
const APPEND_ENTRIES_MAX: u64 = 256;
/// Leaders hand over for at most this long when the host shuts down.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// Why a group could not be started, created or dropped.
#[derive(Debug, Error)]
pub enum HostError {
    #[error("copyset {0} exists here")]
    Exists(CopysetId),
    #[error("no copyset {0} here")]
    NoGroup(CopysetId),
    #[error("copyset {0} already has another log and cannot be initialized")]
    Initialized(CopysetId),
    #[error("this device is not among the voters of copyset {0}")]
    NotAVoter(CopysetId),
    #[error("open the state machine of copyset {id}")]
    StateMachine { id: CopysetId, source: std::io::Error },
    #[error("start Raft for copyset {id}: {reason}")]
    Raft { id: CopysetId, reason: String },
    #[error("store")]
    Store(#[from] StoreError),
    #[error("timing: {0}")]
    Timing(String),
    #[error("the host is shutting down")]
    ShuttingDown,
}

struct Host {
    shared: Shared,
    factory: Factory,
    config: Arc<openraft::Config>,
    snapshots: Arc<Sender>,
    started: Instant,
    groups: RwLock<BTreeMap<CopysetId, Arc<GroupCore>>>,
    /// Creating, initializing and dropping happen one at a time.
    changing: tokio::sync::Mutex<()>,
    tasks: Mutex<Vec<AbortHandle>>,
    closing: AtomicBool,
    /// The first replica that failed, and why.
    failed: watch::Sender<Option<(CopysetId, String)>>,
}

/// All groups of one process. Cheap to clone. Stop it with `shutdown`.
#[derive(Clone)]
pub struct RaftHost {
    host: Arc<Host>,
}

fn raft_config(timing: &Timing) -> Result<Arc<openraft::Config>, HostError> {
    // openraft stands by a silent leader for `election_timeout_max`, and then waits a sampled
    // timeout; our settings speak of the sum.
    let lease = timing.election_max / 2;
    let patience = timing.election_min.saturating_sub(lease);
    let rule = |holds: bool, text: &str| match holds {
        true => Ok(()),
        false => Err(HostError::Timing(text.to_owned())),
    };
    rule(
        timing.lease * 21 / 20 <= timing.lease_hold,
        "lease_hold must exceed lease by a twentieth",
    )?;
    rule(timing.lease_hold <= lease, "lease_hold must be at most half of election_max")?;
    rule(timing.heartbeat < timing.lease, "heartbeat must be shorter than lease")?;
    let millis = |duration: Duration| duration.as_millis() as u64;
    let config = openraft::Config {
        cluster_name: "curve".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(patience),
        election_timeout_max: millis(lease),
        max_payload_entries: APPEND_ENTRIES_MAX,
        // Purging follows the store's needs, see `upkeep`.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // Not before a whole lease has passed, see `gate`.
        enable_elect: false,
        // A leader that restarts does not know what it had acknowledged; it must be elected anew.
        enable_leader_restore: Some(false),
        // A replica that was dropped and made again is sent everything instead of a panic of its
        // leader; being blank it has no vote meanwhile.
        allow_log_reversion: Some(true),
        ..openraft::Config::default()
    };
    let config = config.validate().map_err(|error| HostError::Timing(error.to_string()))?;
    Ok(Arc::new(config))
}

impl RaftHost {
    /// Frame kinds that `on_request` takes.
    pub const KINDS: std::ops::RangeInclusive<u16> = 0x0100..=0x01ff;

    /// Starts every recovered group.
    pub async fn start(options: HostOptions, factory: Factory) -> Result<Self, HostError> {
        let config = raft_config(&options.timing)?;
        let metrics = Metrics::new();
        let principal = Principal::Peer { device: options.device };
        let credentials = Credentials::peer(principal, &options.peer_key);
        let peers = Peers::new(credentials, options.resolver, metrics.clone());
        let rate = options.snapshot_bytes_per_second;
        let room = LogRoom::new(options.store.clone());
        let shared = Shared {
            device: options.device,
            store: options.store,
            timing: options.timing,
            read_policy: options.read_policy,
            peers: peers.clone(),
            metrics: metrics.clone(),
            clock: Arc::new(LeaseClock::new()),
            room,
            children: Children::default(),
            proposal_kib: Arc::new(Semaphore::new(PROPOSALS_KIB_MAX)),
        };
        let host = Arc::new(Host {
            shared,
            factory,
            config,
            snapshots: Sender::new(peers, metrics, rate),
            started: Instant::now(),
            groups: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
            closing: AtomicBool::new(false),
            failed: watch::Sender::default(),
        });
        for group in options.recovered {
            let core = host.start_group(group).await?;
            host.insert(core);
        }
        upkeep::start(&host);
        Ok(Self { host })
    }

    /// Creates an empty replica that waits for a leader to find it. It has no vote until it has
    /// received a log.
    pub async fn create_group(&self, id: CopysetId) -> Result<GroupHandle, HostError> {
        let _one_at_a_time = self.host.changing.lock().await;
        if self.host.get(id).is_some() {
            return Err(HostError::Exists(id));
        }
        Ok(GroupHandle { core: self.host.create(id).await? })
    }

    /// Forms a new group of `voters`. Must be called, with the same voters, at each of them, and
    /// only once in the life of a group. Creates the replica if it is not there; a replica that
    /// already has these voters' log is left as it is.
    pub async fn initialize(
        &self,
        id: CopysetId,
        voters: BTreeSet<DeviceId>,
    ) -> Result<GroupHandle, HostError> {
        let _one_at_a_time = self.host.changing.lock().await;
        if !voters.contains(&self.host.shared.device) {
            return Err(HostError::NotAVoter(id));
        }
        let core = match self.host.get(id) {
            Some(core) => core,
            None => self.host.create(id).await?,
        };
        let handle = GroupHandle { core: core.clone() };
        let ids: BTreeSet<NodeId> = voters.into_iter().map(NodeId).collect();
        match core.raft.initialize(ids.clone()).await {
            Ok(()) => {
                // Nobody can hold a lease on a group that did not exist.
                core.raft.runtime_config().elect(true);
                Ok(handle)
            }
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                // The first leader may have been quicker, with the same voters.
                let same = core.membership().voter_ids().collect::<BTreeSet<_>>() == ids;
                if same { Ok(handle) } else { Err(HostError::Initialized(id)) }
            }
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(HostError::NotAVoter(id))
            }
            Err(RaftError::Fatal(error)) => Err(HostError::Raft { id, reason: error.to_string() }),
        }
    }

    /// Stops a replica and forgets its data. The device must be out of the configuration first.
    pub async fn drop_group(&self, id: CopysetId) -> Result<(), HostError> {
        let _one_at_a_time = self.host.changing.lock().await;
        let core = {
            let mut groups = self.host.groups.write().unwrap_or_else(PoisonError::into_inner);
            groups.remove(&id).ok_or(HostError::NoGroup(id))?
        };
        self.host.shared.metrics.groups.dec();
        core.stop().await;
        self.host.forget(id).await
    }

    pub fn group(&self, id: CopysetId) -> Option<GroupHandle> {
        self.host.get(id).map(|core| GroupHandle { core })
    }

    /// Takes a frame of `KINDS`. Answers strangers with a refusal.
    pub fn on_request(&self, request: Request, replier: Replier) {
        let Principal::Peer { device } = request.principal else {
            self.host.shared.metrics.refused_frames.inc();
            tracing::warn!(principal = ?request.principal, "refused a Raft frame of a stranger");
            return refuse(replier, Refusal::Stranger);
        };
        match self.host.get(CopysetId(request.frame.header.group)) {
            Some(core) => core.on_frame(device, request.frame, replier),
            None => refuse(replier, Refusal::NoGroup),
        }
    }

    /// Resolves when a replica has stopped for good without having been asked to: which, and why.
    /// Its process should end: entries that are never applied are never purged, and in the end
    /// they fill the log that all replicas of the device share.
    pub async fn failure(&self) -> (CopysetId, String) {
        let mut failed = self.host.failed.subscribe();
        loop {
            if let Some(failure) = failed.borrow_and_update().clone() {
                return failure;
            }
            failed.changed().await.expect("this host has the sender");
        }
    }

    /// All groups, sorted by id.
    pub fn reports(&self) -> Vec<GroupReport> {
        self.host.all().iter().map(|core| core.report()).collect()
    }

    pub fn register_metrics(&self, registry: &mut Registry) {
        self.host.shared.metrics.register(registry);
    }

    /// Hands over what can be handed over, stops every group and closes connections.
    pub async fn shutdown(&self) {
        if self.host.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        let _one_at_a_time = self.host.changing.lock().await;
        let groups = self.host.all();
        let hand_over =
            groups.iter().map(|core| upkeep::hand_over(GroupHandle { core: core.clone() }));
        let _ = tokio::time::timeout(HAND_OVER_MAX, futures::future::join_all(hand_over)).await;
        self.stop(groups).await;
    }

    async fn stop(&self, groups: Vec<Arc<GroupCore>>) {
        let tasks =
            std::mem::take(&mut *self.host.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(AbortHandle::abort);
        futures::future::join_all(groups.iter().map(|core| core.stop())).await;
        self.host.groups.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.host.shared.peers.close();
    }

    /// As if the process died: nothing is handed over.
    #[cfg(test)]
    pub(crate) async fn kill(&self) {
        self.host.closing.store(true, Ordering::Release);
        self.stop(self.host.all()).await;
    }
}

impl Host {
    fn get(&self, id: CopysetId) -> Option<Arc<GroupCore>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<GroupCore>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn insert(&self, core: Arc<GroupCore>) {
        self.shared.metrics.groups.inc();
        self.groups.write().unwrap_or_else(PoisonError::into_inner).insert(core.id, core);
    }

    async fn create(self: &Arc<Self>, id: CopysetId) -> Result<Arc<GroupCore>, HostError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(HostError::ShuttingDown);
        }
        if self.shared.store.group(id).is_some() {
            if self.shared.children.is_waiting(id) {
                return Err(HostError::Exists(id));
            }
            // Left by a call that was cancelled, or a removal that failed: its log and data are
            // not those of an empty replica.
            self.forget(id).await?;
        }
        let group = durable(|done| self.shared.store.create_group(id, done)).await?;
        let recovered = RecoveredGroup {
            vote: group.vote(),
            log_state: group.log_state(),
            group,
            applied: None,
            state: bytes::Bytes::new(),
        };
        let core = self.start_group(recovered).await?;
        self.insert(core.clone());
        Ok(core)
    }

    /// Removes what the store has of a replica that is not running.
    async fn forget(&self, id: CopysetId) -> Result<(), HostError> {
        tell(|witness| witness.dropped(ReplicaId { device: self.shared.device, group: id }));
        durable(|done| self.shared.store.remove_group(id, done)).await
    }

    async fn start_group(&self, found: RecoveredGroup) -> Result<Arc<GroupCore>, HostError> {
        let RecoveredGroup { group, applied, state, vote, .. } = found;
        let id = group.id();
        let shared = self.shared.clone();
        let make = |group: &_, state| (self.factory)(id, group, state);
        let replica = Replica::new(group.clone(), applied, state, shared.children.clone(), make)
            .map_err(|source| HostError::StateMachine { id, source })?;
        let installs = InstallGate::new();
        let heard = Arc::<Heard>::default();
        let start = || {
            let log = LogStore::new(shared.store.clone(), group.clone(), installs.clone());
            let (store, metrics) = (shared.store.clone(), shared.metrics.clone());
            let machine = Machine::new(store, replica.clone(), installs.clone(), metrics);
            let network = NetworkFactory {
                group: id,
                peers: shared.peers.clone(),
                heard: heard.clone(),
                snapshots: self.snapshots.clone(),
            };
            Raft::new(NodeId(shared.device), self.config.clone(), network, log, machine)
        };
        let mut started = start().await;
        if started.is_err() && damage::mend(&shared.store, &group, applied).await? {
            started = start().await;
        }
        let raft = started.map_err(|error| HostError::Raft { id, reason: error.to_string() })?;
        let who = ReplicaId { device: shared.device, group: id };
        tell(|witness| witness.started(who, vote, group.log_state().last));
        let (inbox, deliveries) = mpsc::channel(INBOX_MAX);
        let gate = Gate::new(shared.timing.lease_hold, self.started);
        let core = Arc::new(GroupCore {
            id,
            shared,
            metrics: raft.metrics(),
            raft: raft.clone(),
            group,
            replica,
            gate,
            heard,
            installs,
            inbox,
            snapshots: Receiver::default(),
            leadership: watch::Sender::new(Leadership::default()),
            handing_over: std::sync::atomic::AtomicU64::new(0),
            changing: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        });
        core.let_elect();
        core.spawn(serve_appends(who, raft, deliveries));
        core.spawn(attend(core.clone(), self.failed.clone()));
        Ok(core)
    }
}

/// Starts something, and waits until it is on the device.
async fn durable<T>(start: impl FnOnce(Done) -> Result<T, StoreError>) -> Result<T, HostError> {
    let (done, durable) = oneshot::channel();
    let started = patiently(|| start(Box::new(|result| drop(done.send(result)))))?;
    durable.await.map_err(|_| HostError::ShuttingDown)??;
    Ok(started)
}

/// Follows a group until its Raft ends. Who asks for that ends this task first (`GroupCore::stop`),
/// so an end that is seen here is a failure.
async fn attend(core: Arc<GroupCore>, failed: watch::Sender<Option<(CopysetId, String)>>) {
    follow_leadership(core.clone()).await;
    let why = core.look(|m| m.running_state.clone()).err().unwrap_or(Fatal::Panicked);
    if matches!(why, Fatal::StorageError(_)) {
        // If it met damage in its log, the next start shall not meet it again.
        let mended = damage::mend(&core.shared.store, &core.group, core.replica.applied());
        if let Err(error) = mended.await {
            tracing::warn!(group = %core.id, %error, "the log was not mended");
        }
    }
    failed.send_modify(|first| {
        first.get_or_insert((core.id, why.to_string()));
    });
}
