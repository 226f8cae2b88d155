//! Connections to peers. Two are kept per peer, each by a task that redials: one for control
//! (votes, heartbeats; its loss is how the death of a leader is noticed) and one for appends.
//! Snapshots dial their own. Addresses are asked for at every dial.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use curve_types::DeviceId;
use curve_wire::auth::Credentials;
use curve_wire::rpc::{Connection, RpcError};
use curve_wire::with_causes;
use rand::Rng;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::Resolve;
use crate::metrics::{Label, Metrics};

const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Redials wait this long, doubled at each failure up to the maximum, less a random part.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that ended sooner counts as a failure, or it would be redialled without pause.
const LIVED_MIN: Duration = Duration::from_secs(1);
/// A peer is taken for gone when its control connection stayed away this long: a live one is
/// reached again in far less.
const LOST_AFTER: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Lane {
    Control,
    Append,
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Append => "append",
        }
    }
}

/// Why a peer was not reached.
#[derive(Debug, Error)]
pub enum DialError {
    #[error("no address is known for {0}")]
    NoAddress(DeviceId),
    #[error("{address} did not answer within {DIAL_TIMEOUT:?}")]
    Timeout { address: String },
    #[error("connect")]
    Rpc(#[from] RpcError),
}

#[derive(Clone)]
struct LinkState {
    connection: Option<Arc<Connection>>,
    /// When the connection went, or the first dial began.
    down_since: Instant,
    /// Dials that failed since the last success.
    failures: u32,
}

/// A kept connection.
pub(crate) struct Link {
    state: watch::Receiver<LinkState>,
    keeper: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Link {
    /// The connection, waiting for a first dial that is under way but not for a peer that is down.
    pub async fn connection(&self, wait: Duration) -> Option<Arc<Connection>> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|s| s.connection.is_some() || s.failures > 0);
        let settled = tokio::time::timeout(wait, settled).await.ok()?.ok()?;
        settled.connection.clone()
    }

    /// Whether the peer is taken for gone.
    pub fn lost(&self) -> bool {
        let state = self.state.borrow();
        state.connection.is_none() && state.down_since.elapsed() >= LOST_AFTER
    }

    /// Resolves when the connection goes, or if there is none.
    pub async fn down(&self) {
        let mut state = self.state.clone();
        let _ = state.wait_for(|s| s.connection.is_none()).await;
    }

    /// Resolves when there is a connection.
    pub async fn up(&self) {
        let mut state = self.state.clone();
        if state.wait_for(|s| s.connection.is_some()).await.is_err() {
            // The host is going; nothing comes up any more.
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) struct Peers {
    credentials: Credentials,
    resolver: Arc<dyn Resolve>,
    metrics: Metrics,
    links: Mutex<HashMap<(DeviceId, Lane), Arc<Link>>>,
}

impl Peers {
    pub fn new(
        credentials: Credentials,
        resolver: Arc<dyn Resolve>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self { credentials, resolver, metrics, links: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(DeviceId, Lane), Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn link(self: &Arc<Self>, device: DeviceId, lane: Lane) -> Arc<Link> {
        let start = || {
            let down_since = Instant::now();
            let (sender, state) =
                watch::channel(LinkState { connection: None, down_since, failures: 0 });
            let keeper = tokio::spawn(keep(Arc::downgrade(self), device, lane, sender));
            Arc::new(Link { state, keeper: keeper.abort_handle() })
        };
        self.lock().entry((device, lane)).or_insert_with(start).clone()
    }

    /// Closes connections to devices that are in no group any more.
    pub fn retain(&self, members: &BTreeSet<DeviceId>) {
        self.lock().retain(|(device, _), _| members.contains(device));
    }

    pub fn close(&self) {
        self.lock().clear();
    }

    /// A connection of one's own.
    pub async fn dial(&self, device: DeviceId) -> Result<Connection, DialError> {
        let address = self.resolver.address(device).ok_or(DialError::NoAddress(device))?;
        let open = Connection::open(&address, &self.credentials, device);
        match tokio::time::timeout(DIAL_TIMEOUT, open).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(DialError::Timeout { address }),
        }
    }
}

/// Keeps one connection until nobody holds the link.
async fn keep(
    peers: std::sync::Weak<Peers>,
    device: DeviceId,
    lane: Lane,
    state: watch::Sender<LinkState>,
) {
    let kind = Label { kind: lane.name() };
    let mut failures = 0;
    while let Some(peers) = peers.upgrade() {
        match peers.dial(device).await {
            Ok(connection) => {
                let (connection, since) = (Arc::new(connection), Instant::now());
                state.send_modify(|s| {
                    (s.connection, s.failures) = (Some(connection.clone()), 0);
                });
                let metrics = peers.metrics.clone();
                drop(peers);
                connection.closed().await;
                state.send_modify(|s| {
                    (s.connection, s.down_since) = (None, Instant::now());
                });
                metrics.connection_errors.get_or_create(&kind).inc();
                if since.elapsed() >= LIVED_MIN {
                    failures = 0;
                    continue;
                }
            }
            Err(error) => {
                peers.metrics.connection_errors.get_or_create(&kind).inc();
                tracing::debug!(%device, lane = lane.name(), error = with_causes(&error), "no connection");
                state.send_modify(|s| s.failures = s.failures.saturating_add(1));
            }
        }
        failures += 1;
        tokio::time::sleep(backoff(failures)).await;
    }
}

fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_MAX.min(BACKOFF_MIN * (1 << failures.min(8)));
    most.mul_f64(rand::rng().random_range(0.5..1.0))
}
