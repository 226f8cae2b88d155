//! The other MDS processes: who they say they are, asked over and over; where a Raft node id lives.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use curve_raft::Resolve;
use curve_types::DeviceId;
use curve_wire::pki::{Identity, Role};
use curve_wire::proto::mds_peer_client::MdsPeerClient;
use curve_wire::proto::{DescribeRequest, JoinRequest, JoinResponse, PeerDescription};
use curve_wire::{net, tls};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::log::WireId;
use crate::options::Peer;

/// Interval between two rounds of questions once the group is formed: how fast a member's new
/// identity and its absence are noticed.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A peer that takes longer counts as silent.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A join waits for the newcomer to catch up.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that was silent for so long is down.
pub const PEER_DOWN_AFTER: Duration = Duration::from_secs(4);

pub struct Peers {
    /// Name of this process.
    own: String,
    members: BTreeMap<String, Member>,
    known: Mutex<Known>,
}

struct Member {
    raft: String,
    client: MdsPeerClient<Channel>,
}

#[derive(Default)]
struct Known {
    names: BTreeMap<DeviceId, String>,
    heard: BTreeMap<String, (Instant, PeerDescription)>,
}

/// Why peers cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("address of peer {name} is {address:?}")]
pub struct PeerAddressError {
    name: String,
    address: String,
    source: tonic::transport::Error,
}

impl Peers {
    /// Nobody is asked yet.
    pub fn new(own: &str, peers: &[Peer], identity: &Identity) -> Result<Self, PeerAddressError> {
        tls::install_crypto_provider();
        let mut members = BTreeMap::new();
        for peer in peers {
            let error = |source| PeerAddressError {
                name: peer.name.clone(),
                address: peer.grpc.clone(),
                source,
            };
            let endpoint = Endpoint::from_shared(format!("https://{}", peer.grpc))
                .and_then(|endpoint| endpoint.tls_config(tls::client_config(identity, Role::Mds)))
                .map_err(error)?
                .connect_timeout(DESCRIBE_TIMEOUT)
                // A peer that was cut off may be back at another address while the connection to
                // the former one stays open, with nobody at its end.
                .http2_keep_alive_interval(POLL_INTERVAL)
                .keep_alive_timeout(DESCRIBE_TIMEOUT)
                .keep_alive_while_idle(true);
            let channel = net::channel(&endpoint);
            let member = Member { raft: peer.raft.clone(), client: MdsPeerClient::new(channel) };
            members.insert(peer.name.clone(), member);
        }
        Ok(Self { own: own.to_owned(), members, known: Mutex::new(Known::default()) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic while held")
    }

    /// All configured names, in order, this process's included.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    pub fn own_name(&self) -> &str {
        &self.own
    }

    pub fn learn(&self, id: DeviceId, name: &str) {
        self.known().names.insert(id, name.to_owned());
    }

    pub fn name_of(&self, id: DeviceId) -> Option<String> {
        self.known().names.get(&id).cloned()
    }

    /// What a peer said lately.
    pub fn heard(&self, name: &str) -> Option<PeerDescription> {
        let known = self.known();
        let (at, description) = known.heard.get(name)?;
        (at.elapsed() <= PEER_DOWN_AFTER).then(|| description.clone())
    }

    /// What every other peer said lately; `None` for the silent ones.
    pub fn others(&self) -> BTreeMap<&str, Option<PeerDescription>> {
        let others = self.names().filter(|name| *name != self.own);
        others.map(|name| (name, self.heard(name))).collect()
    }

    /// Asks all others at once.
    pub async fn poll(&self) {
        let mut asked = tokio::task::JoinSet::new();
        for (name, member) in self.members.iter().filter(|(name, _)| **name != self.own) {
            let (name, mut client) = (name.clone(), member.client.clone());
            asked.spawn(async move {
                let mut request = tonic::Request::new(DescribeRequest {});
                request.set_timeout(DESCRIBE_TIMEOUT);
                let answer = client.describe(request);
                (name, tokio::time::timeout(DESCRIBE_TIMEOUT, answer).await)
            });
        }
        while let Some(answered) = asked.join_next().await {
            match answered.expect("asking does not panic and is not cancelled") {
                (name, Ok(Ok(description))) => self.on_description(&name, description.into_inner()),
                (name, Ok(Err(status))) => {
                    tracing::debug!(peer = name, error = status.message(), "peer is silent");
                }
                (name, Err(_)) => tracing::debug!(peer = name, "peer is silent"),
            }
        }
    }

    fn on_description(&self, name: &str, description: PeerDescription) {
        if description.name != name {
            tracing::error!(expected = name, found = description.name, "another peer answered");
            return;
        }
        if let Some(id) = DeviceId::from_wire(&description.device_id) {
            self.learn(id, name);
        }
        self.known().heard.insert(name.to_owned(), (Instant::now(), description));
    }

    /// Asks `name`, which should lead, to take this process in.
    pub async fn join(&self, name: &str, id: DeviceId) -> Result<JoinResponse, Status> {
        let unknown = || Status::not_found(format!("{name} is none of the peers"));
        let mut client = self.members.get(name).ok_or_else(unknown)?.client.clone();
        let request = JoinRequest { name: self.own.clone(), device_id: id.to_wire() };
        let mut request = tonic::Request::new(request);
        request.set_timeout(JOIN_TIMEOUT);
        Ok(client.join(request).await?.into_inner())
    }
}

impl Resolve for Peers {
    fn address(&self, device: DeviceId) -> Option<String> {
        let name = self.name_of(device)?;
        self.members.get(&name).map(|member| member.raft.clone())
    }
}
