//! Finds the leading MDS and repeats a call until it has an answer or runs out of time.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use curve_wire::pki::{Identity, Role};
use curve_wire::{net, tls, with_causes};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::{MdsError, TopologyWatch};
use crate::backoff::Backoff;

/// How long a call may take in all, unless `with_deadline` says otherwise: several elections.
const DEADLINE: Duration = Duration::from_secs(30);
/// One attempt: a leader that is cut off from its followers must not use up the whole deadline.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// A call that fences waits in the MDS for an answer of every copyset, elections included: the MDS
/// gives up after 40 s, and a caller that gave up earlier would only make it start again.
const FENCE_ATTEMPT_MAX: Duration = Duration::from_secs(45);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that vanished without a word is noticed after interval plus timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Largest answer: the topology or status of a cluster with thousands of copysets.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Client of one cluster's MDS group. Cheap to clone; connections are made when first needed.
#[derive(Clone)]
pub struct MdsClient {
    inner: Arc<Inner>,
    deadline: Duration,
}

struct Inner {
    members: Vec<Member>,
    /// Index of the member that last answered as the leader.
    believed: AtomicUsize,
    /// One watch for all volumes of the process; gone with its last user.
    topology: Mutex<Weak<TopologyWatch>>,
}

struct Member {
    address: String,
    channel: Channel,
}

impl std::fmt::Debug for MdsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses: Vec<_> = self.inner.members.iter().map(|m| &m.address).collect();
        write!(f, "MdsClient({addresses:?})")
    }
}

impl MdsClient {
    /// A client of the MDS processes at `endpoints` (`HOST:PORT`). Must be called inside a tokio
    /// runtime; nothing is dialled yet.
    pub fn connect(endpoints: &[String], identity: &Identity) -> Result<Self, MdsError> {
        if endpoints.is_empty() {
            return Err(MdsError::config("no MDS endpoint was given".into()));
        }
        tls::install_crypto_provider();
        let members = endpoints
            .iter()
            .map(|address| {
                Ok(Member { address: address.clone(), channel: channel(address, identity)? })
            })
            .collect::<Result<_, MdsError>>()?;
        let believed = AtomicUsize::new(0);
        let inner = Arc::new(Inner { members, believed, topology: Mutex::new(Weak::new()) });
        Ok(Self { inner, deadline: DEADLINE })
    }

    /// The same client, whose calls give up after `deadline`.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { inner: self.inner.clone(), deadline }
    }

    /// The process's watch of the topology, started if nobody uses one yet.
    pub(crate) fn topology(&self) -> Arc<TopologyWatch> {
        let mut slot = self.inner.topology.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(watch) = slot.upgrade() {
            return watch;
        }
        let watch = TopologyWatch::start(self.clone());
        *slot = Arc::downgrade(&watch);
        watch
    }

    /// Sends `request` to the leader, wherever it is.
    pub(super) async fn call<Q, A, F, Fut>(
        &self,
        step: &'static str,
        request: Q,
        send: F,
    ) -> Result<A, MdsError>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        self.attempts(step, request, send, self.deadline, ATTEMPT_MAX).await
    }

    /// As `call`, for calls that wait for fences.
    pub(super) async fn call_fencing<Q, A, F, Fut>(
        &self,
        step: &'static str,
        request: Q,
        send: F,
    ) -> Result<A, MdsError>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let whole = self.deadline.max(FENCE_ATTEMPT_MAX);
        self.attempts(step, request, send, whole, FENCE_ATTEMPT_MAX).await
    }

    async fn attempts<Q, A, F, Fut>(
        &self,
        step: &'static str,
        request: Q,
        send: F,
        whole: Duration,
        attempt_max: Duration,
    ) -> Result<A, MdsError>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + whole;
        let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
        let mut tried = 0;
        loop {
            let at = self.inner.believed.load(Ordering::Relaxed) % self.inner.members.len();
            let member = &self.inner.members[at];
            let left = deadline.saturating_duration_since(Instant::now());
            let attempt = send(member.channel.clone(), Request::new(request.clone()));
            let last = match tokio::time::timeout(left.min(attempt_max), attempt).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if !worth_another(&status) => {
                    return Err(MdsError::of_status(step, &status));
                }
                Ok(Err(status)) => format!("{}: {}", member.address, describe(&status)),
                Err(_) => format!("{}: no answer", member.address),
            };
            self.inner.move_on_from(at);
            tried += 1;
            // A full round without an answer: there is no leader at this moment.
            let round = tried % self.inner.members.len() == 0;
            let pause = if round { backoff.pause() } else { Duration::ZERO };
            if Instant::now() + pause >= deadline {
                let waited = whole.as_secs_f32();
                let message = format!("no leading MDS answered within {waited} s (last: {last})");
                return Err(MdsError::unavailable(step, message));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Channels of all members, the believed leader first, for calls that any may answer.
    pub(super) fn channels(&self) -> Vec<Channel> {
        let count = self.inner.members.len();
        let first = self.inner.believed.load(Ordering::Relaxed);
        (0..count).map(|i| self.inner.members[(first + i) % count].channel.clone()).collect()
    }
}

impl Inner {
    /// The member at `at` did not answer as leader: believe in the next, unless another caller
    /// already found a better one.
    fn move_on_from(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        let _ = self.believed.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn channel(address: &str, identity: &Identity) -> Result<Channel, MdsError> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .map_err(|error| MdsError::config(format!("endpoint {address:?}: {error}")))?
        .tls_config(tls::client_config(identity, Role::Mds))
        .map_err(|error| MdsError::config(format!("use the certificates: {error}")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        // Calls are often given up sooner than a connection without a peer would be noticed.
        .keep_alive_while_idle(true);
    Ok(net::channel(&endpoint))
}

/// Whether another member, or the same one later, may answer differently: it does not lead, or
/// the connection failed (such a status has a source; one that a server sent has none).
fn worth_another(status: &Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Aborted) || transport
}

/// What a server said, or why the connection failed: then tonic's message is one of the causes.
fn describe(status: &Status) -> String {
    let cause = std::error::Error::source(status);
    cause.map_or_else(|| status.message().to_owned(), with_causes)
}
