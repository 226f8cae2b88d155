//! What tests of several modules need: an MDS without replicas, chunkservers that only remember.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use curve_raft::{ChangeError, GroupReport, Leadership, ProposeError, ReadError};
use curve_types::{CopysetId, DeviceId};
use curve_wire::auth::{Key, Principal};
use curve_wire::chunk::{ChunkError, Command, KIND_PROPOSE, encode_reply};
use curve_wire::pki::{Authority, Identity, Role};
use curve_wire::rpc::{self, Replier, Request};
use curve_wire::{proto, tls};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::lead::lead;
use crate::log::WireId;
use crate::machine::{Replication, SharedState};
use crate::metrics::Metrics;
use crate::node::{Node, Parts};
use crate::options::Peer;
use crate::peers::Peers;
use crate::run::{leader_routes, serve_grpc};

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A group of one that needs no disk.
pub struct Solo {
    device: DeviceId,
    state: SharedState,
    leadership: watch::Sender<Leadership>,
    /// Leads as far as it knows, but no quorum confirms it.
    cut_off: AtomicBool,
    /// One command after the other, as a log would have them.
    order: Mutex<()>,
}

#[async_trait]
impl Replication for Solo {
    async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        if !self.leadership.borrow().is_leader {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let _order = self.order.lock().expect("no panic while held");
        Ok(self.state.apply(command))
    }

    async fn read_barrier(&self) -> Result<(), ReadError> {
        match self.leadership.borrow().is_leader {
            true if self.cut_off.load(Ordering::Relaxed) => Err(ReadError::NoQuorum),
            true => Ok(()),
            false => Err(ReadError::NotLeader { leader: None }),
        }
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    fn report(&self) -> Option<GroupReport> {
        Some(GroupReport {
            id: CopysetId::MDS,
            term: 1,
            leader: Some(self.device),
            is_leader: true,
            applied: Some(1),
            last: Some(1),
            config_index: Some(1),
            changing: false,
            voters: BTreeSet::from([self.device]),
            learners: BTreeSet::new(),
            caught_up: BTreeSet::new(),
            reachable: BTreeSet::new(),
            failure: None,
        })
    }

    async fn change_members(
        &self,
        _expected_config_index: u64,
        _voters: BTreeSet<DeviceId>,
        _learners: BTreeSet<DeviceId>,
    ) -> Result<u64, ChangeError> {
        Err(ChangeError::Invalid("a group of one does not change".to_owned()))
    }
}

/// An MDS that leads, behind its real gRPC server.
pub struct TestMds {
    pub authority: Authority,
    pub address: SocketAddr,
    pub node: Arc<Node>,
    pub chunkserver_key: Key,
    solo: Arc<Solo>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for TestMds {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl TestMds {
    pub async fn start(out_after: Duration) -> Self {
        tls::install_crypto_provider();
        let authority = Authority::generate("demo").expect("authority");
        let identity = authority.issue(Role::Mds, "mds-0").expect("identity");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let (device, state) = (DeviceId::random(), SharedState::default());
        let leads = Leadership { term: 1, leader: Some(device), is_leader: true };
        let solo = Arc::new(Solo {
            device,
            state: state.clone(),
            leadership: watch::Sender::new(leads),
            cut_off: AtomicBool::new(false),
            order: Mutex::new(()),
        });
        let peer = Peer {
            name: "mds-0".to_owned(),
            grpc: address.to_string(),
            raft: "127.0.0.1:1".to_owned(),
        };
        let cluster_key = Key::random();
        let node = Node::new(Parts {
            device,
            cluster_name: "demo".to_owned(),
            out_after,
            cluster_key: cluster_key.clone(),
            state,
            peers: Arc::new(Peers::new("mds-0", &[peer], &identity).expect("peers")),
            group: solo.clone(),
        });
        let routes = leader_routes(&node);
        let serve = tokio::spawn(async move {
            serve_grpc(routes, listener.into(), &identity).await.expect("serve");
        });
        let leading = tokio::spawn(lead(node.clone(), Arc::new(Metrics::default())));
        let chunkserver_key = cluster_key.chunkserver_peer_key();
        let mds =
            Self { authority, address, node, chunkserver_key, solo, tasks: vec![serve, leading] };
        mds.wait_leading().await;
        mds
    }

    async fn wait_leading(&self) {
        while self.node.leading().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Loses leadership and, after `meanwhile`, wins it again with an empty view.
    pub async fn fail_over(&self) {
        self.solo.leadership.send_modify(|now| now.is_leader = false);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(self.node.leading().is_err());
        self.solo
            .leadership
            .send_modify(|now| *now = Leadership { term: now.term + 1, is_leader: true, ..*now });
        self.wait_leading().await;
    }

    /// From now on no quorum confirms that it leads.
    pub fn cut_off(&self) {
        self.solo.cut_off.store(true, Ordering::Relaxed);
    }

    pub fn channel(&self, role: Role, name: &str) -> Channel {
        channel(self.address, &self.authority.issue(role, name).expect("identity"))
    }
}

pub fn channel(address: SocketAddr, identity: &Identity) -> Channel {
    Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| endpoint.tls_config(tls::client_config(identity, Role::Mds)))
        .expect("endpoint")
        .connect_lazy()
}

pub fn request_id() -> Bytes {
    curve_types::VolumeId::random().to_wire()
}

/// Which commands to a copyset a fake chunkserver answers with an error.
pub type Refusing = fn(u32, &Command) -> Option<ChunkError>;

/// What a fake chunkserver was told and did, by copyset.
#[derive(Default)]
pub struct Told {
    pub commands: Mutex<BTreeMap<u32, Vec<Command>>>,
    pub refuse: Mutex<Option<Refusing>>,
}

/// Remembers commands of the MDS as if they were committed.
struct Memory(Arc<Told>);

impl rpc::Service for Memory {
    fn on_request(&self, request: Request, replier: Replier) {
        assert_eq!(request.frame.header.kind, KIND_PROPOSE);
        let by_mds = matches!(request.principal, Principal::Mds { .. });
        let (header, payload) = Command::split(&request.frame.body).expect("a header");
        let command = Command::decode_parts(&header, payload).expect("a command");
        let group = request.frame.header.group;
        let refuse = *self.0.refuse.lock().expect("no panic while held");
        let reply = match (by_mds, refuse.and_then(|refuse| refuse(group, &command))) {
            (false, _) => Err(ChunkError::Forbidden),
            (true, Some(error)) => Err(error),
            (true, None) => {
                let mut commands = self.0.commands.lock().expect("no panic while held");
                commands.entry(group).or_default().push(command);
                Ok(Bytes::new())
            }
        };
        let (head, payload) = encode_reply(&reply);
        tokio::spawn(replier.reply(head, payload));
    }
}

/// Registers, heartbeats and remembers; leads every copyset whose first voter it is.
pub struct FakeChunkserver {
    pub name: String,
    pub device: DeviceId,
    pub told: Arc<Told>,
    pub address: String,
    client: proto::mds_device_client::MdsDeviceClient<Channel>,
    hosted: BTreeMap<u32, Vec<Bytes>>,
    /// What it says of the scrubs that it is told to do, which it has done at once.
    scrubs: BTreeMap<u32, proto::ScrubReport>,
    /// What it says that its tables are.
    pub digest: u64,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FakeChunkserver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakeChunkserver {
    pub async fn start(mds: &TestMds, name: &str) -> Self {
        let channel = mds.channel(Role::Chunkserver, name);
        let mut client = proto::mds_device_client::MdsDeviceClient::new(channel);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address").to_string();
        let request = proto::RegisterRequest {
            name: name.to_owned(),
            host: format!("host-of-{name}"),
            size: 11 << 30,
            address: address.clone(),
            request_id: request_id(),
            ..Default::default()
        };
        let granted = client.register(request).await.expect("register").into_inner();
        let device = DeviceId::from_wire(&granted.device_id).expect("an id");
        assert_eq!(granted.peer_key[..], mds.chunkserver_key.0);
        let told = Arc::new(Told::default());
        let service = Arc::new(Memory(told.clone()));
        let server =
            tokio::spawn(rpc::serve(listener.into(), device, mds.chunkserver_key.clone(), service));
        let (name, hosted, scrubs) = (name.to_owned(), BTreeMap::new(), BTreeMap::new());
        Self { name, device, told, address, client, hosted, scrubs, digest: 7, server }
    }

    pub async fn heartbeat(&mut self) -> proto::HeartbeatResponse {
        let replicas = self.hosted.iter().map(|(copyset, voters)| {
            let leader = voters.first() == Some(&self.device.to_wire());
            let voters = if leader { voters.clone() } else { Vec::new() };
            let (copyset, term, config_index) = (*copyset, 1, 1);
            proto::ReplicaReport {
                copyset,
                leader,
                term,
                voters,
                config_index,
                scrub: self.scrubs.get(&copyset).copied(),
                ..Default::default()
            }
        });
        let request = proto::HeartbeatRequest {
            device_id: self.device.to_wire(),
            address: self.address.clone(),
            host: format!("host-of-{}", self.name),
            capacity: 10 << 30,
            replicas: replicas.collect(),
            ..Default::default()
        };
        let response = self.client.heartbeat(request).await.expect("heartbeat").into_inner();
        for host in &response.host {
            self.hosted.entry(host.copyset).or_insert_with(|| host.initialize.clone());
        }
        self.scrub(&response.scrubs);
        response
    }
}

impl FakeChunkserver {
    fn scrub(&mut self, orders: &[proto::ScrubOrder]) {
        let ordered = |copyset: u32| orders.iter().any(|order| order.copyset == copyset);
        self.scrubs.retain(|copyset, _| ordered(*copyset));
        for order in orders.iter().filter(|order| order.walk) {
            let digest = proto::TableDigest { index: order.number, value: Some(self.digest) };
            let report = proto::ScrubReport {
                number: order.number,
                chunks_read: 1,
                chunks: 1,
                bytes_read: 4096,
                ended: true,
                repaired: 1,
                digest: Some(digest),
                ..Default::default()
            };
            self.scrubs.insert(order.copyset, report);
        }
    }
}

/// Three of them, with the default pool's copysets formed.
pub async fn formed_pool(mds: &TestMds) -> Vec<FakeChunkserver> {
    let mut servers = Vec::new();
    for name in ["cs-0", "cs-1", "cs-2"] {
        servers.push(FakeChunkserver::start(mds, name).await);
    }
    loop {
        for server in &mut servers {
            server.heartbeat().await;
        }
        let formed = {
            let state = mds.node.state.read();
            !state.copysets.is_empty() && state.copysets.values().all(|copyset| copyset.active)
        };
        if formed {
            return servers;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
