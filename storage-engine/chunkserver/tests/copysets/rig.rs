//! Three block servers in one process on disks that can lose their power, and an MDS that knows
//! where they are and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use curve_chunkserver::{BlockServer, BlockServerOptions};
use curve_client::{MdsClient, Session, Volume, VolumeOptions};
use curve_raft::Timing;
use curve_store::{FormatOptions, SimDisk, Store, StoreOptions, format};
use curve_types::{
    ByteSize, ChunkKey, ClusterId, CopysetId, DeviceId, Epoch, SessionId, ShardRange, VolumeId,
};
use curve_wire::auth::{Credentials, Key, Principal, session_key};
use curve_wire::chunk::{
    ChunkReply, Command, KIND_PEER_READ, KIND_PROPOSE, KIND_READ, PeerRead, Read, decode_reply,
};
use curve_wire::pki::{Authority, Role};
use curve_wire::proto;
use curve_wire::rpc::Connection;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::copyset_of;
use crate::mds::FakeMds;

pub const COPYSETS: u32 = 2;

/// Fast enough for tests, slow enough for two busy cores.
fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        heartbeat: ms(150),
        election_min: ms(900),
        election_max: ms(1200),
        lease: ms(280),
        lease_hold: ms(300),
    }
}

struct Node {
    device: DeviceId,
    address: String,
    disk: Arc<SimDisk>,
    running: Option<Running>,
}

struct Running {
    server: Arc<BlockServer>,
    serving: JoinHandle<()>,
}

pub struct Rig {
    peer_key: Key,
    nodes: Vec<Node>,
    pub mds: MdsClient,
    fake: Arc<FakeMds>,
    attachments: Mutex<u64>,
}

impl Rig {
    pub async fn start(device_size: ByteSize) -> Result<Self> {
        curve_wire::telemetry::init_logging();
        let cluster = ClusterId::random();
        let peer_key = Key::random();
        let mut nodes = Vec::new();
        let mut listeners = Vec::new();
        for number in 0..3 {
            let device = DeviceId::random();
            let disk = SimDisk::new(device_size.0);
            let name = format!("cs-{number}");
            let options = FormatOptions { cluster, device, name, size: device_size.0 };
            format(&disk, &options)?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?.to_string();
            listeners.push(listener);
            nodes.push(Node { device, address, disk: Arc::new(disk), running: None });
        }
        let authority = Authority::generate("test")?;
        let fake = Arc::new(FakeMds::new(topology(&nodes)));
        let endpoint = fake.clone().serve(&authority.issue(Role::Mds, "mds-0")?).await?;
        let mds = MdsClient::connect(&[endpoint], &authority.issue(Role::Admin, "test")?)?;
        let mut rig = Self { peer_key, nodes, mds, fake, attachments: Mutex::new(0) };
        for (number, listener) in listeners.into_iter().enumerate() {
            rig.boot(number, listener).await?;
        }
        let voters: std::collections::BTreeSet<_> = rig.nodes.iter().map(|n| n.device).collect();
        for node in &rig.nodes {
            for id in (1..=COPYSETS).map(CopysetId) {
                node.host()?.initialize(id, voters.clone()).await?;
            }
        }
        Ok(rig)
    }

    async fn boot(&mut self, number: usize, listener: TcpListener) -> Result<()> {
        let addresses: HashMap<_, _> =
            self.nodes.iter().map(|node| (node.device, node.address.clone())).collect();
        let node = &mut self.nodes[number];
        let (store, recovered) = Store::open(node.disk.clone(), StoreOptions::default())?;
        let options = BlockServerOptions {
            device: node.device,
            peer_key: self.peer_key.clone(),
            store,
            recovered,
            timing: timing(),
        };
        let server = Arc::new(BlockServer::start(options).await?);
        server.addresses().replace(1, addresses);
        let serving = {
            let server = server.clone();
            tokio::spawn(async move { server.serve(listener.into()).await })
        };
        node.running = Some(Running { server, serving });
        Ok(())
    }

    /// Number of the node that leads a copyset.
    pub async fn leader(&self, copyset: CopysetId) -> Result<usize> {
        for _ in 0..400 {
            let leads = |node: &Node| {
                node.host().ok().and_then(|host| host.group(copyset)).is_some_and(|g| g.is_leader())
            };
            if let Some(number) = self.nodes.iter().position(leads) {
                return Ok(number);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        anyhow::bail!("copyset {copyset} has no leader")
    }

    /// The power of one node goes; what it had not synced is torn or lost.
    pub async fn power_off(&mut self, number: usize) -> Result<()> {
        let node = &mut self.nodes[number];
        let running = node.running.take().context("the node runs")?;
        node.disk.crash_at(node.disk.operations());
        running.serving.abort();
        let _ = running.serving.await;
        running.server.stop().await;
        let disk = node.disk.after_crash(rand::random);
        node.disk = Arc::new(disk);
        Ok(())
    }

    pub async fn power_on(&mut self, number: usize) -> Result<()> {
        let listener = TcpListener::bind(&self.nodes[number].address).await?;
        self.boot(number, listener).await
    }

    /// A session of `volume` as the MDS would open it; older ones are not fenced.
    pub fn session(&self, volume: VolumeId, size: u64) -> Result<Session> {
        let mut attachments = self.attachments.lock().expect("unpoisoned");
        *attachments += 1;
        let (id, epoch) = (SessionId(*attachments), Epoch::of_attachment(*attachments));
        let principal = Principal::Session { session: id, volume, epoch, read_only: false };
        let key = session_key(&self.peer_key, &principal);
        let session = proto::Session {
            id: id.0,
            epoch: epoch.0,
            key: Bytes::copy_from_slice(&key.0),
            node: "test".into(),
            volume_id: Bytes::copy_from_slice(&volume.to_bytes()),
            size,
            pool: 1,
            lease_ms: 3000,
            read_only: false,
            last_seen_ms: 0,
            limits: None,
        };
        self.fake.set_size(size);
        Ok(session.try_into()?)
    }

    pub async fn open(&self, session: &Session) -> Result<Volume> {
        Ok(Volume::open(self.mds.clone(), session.clone()).await?)
    }

    pub async fn open_impatient(&self, session: &Session, deadline: Duration) -> Result<Volume> {
        let options = VolumeOptions { io_deadline: deadline, ..VolumeOptions::default() };
        Ok(Volume::open_with(self.mds.clone(), session.clone(), options).await?)
    }

    pub async fn connect(&self, number: usize, principal: Principal) -> Result<Connection> {
        let credentials = match principal {
            Principal::Session { .. } => {
                Credentials::session(principal, session_key(&self.peer_key, &principal))
            }
            _ => Credentials::peer(principal, &self.peer_key),
        };
        let node = &self.nodes[number];
        Ok(Connection::open(&node.address, &credentials, node.device).await?)
    }

    /// Commits a command of the MDS in every copyset.
    pub async fn command_everywhere(&self, command: &Command) -> Result<()> {
        for copyset in (1..=COPYSETS).map(CopysetId) {
            let leader = self.leader(copyset).await?;
            let mds = Principal::Mds { device: DeviceId::random() };
            let connection = self.connect(leader, mds).await?;
            let reply = propose(&connection, copyset, command).await?;
            ensure!(reply.is_ok(), "{command:?} in {copyset}: {reply:?}");
        }
        Ok(())
    }

    pub fn address(&self, number: usize) -> &str {
        &self.nodes[number].address
    }

    pub fn device(&self, number: usize) -> DeviceId {
        self.nodes[number].device
    }

    /// Flips a bit of every copy of the block that the node's device has. Returns how many it has.
    pub fn damage(&self, number: usize, block: &[u8]) -> usize {
        let disk = &self.nodes[number].disk;
        let copies = disk.find(block);
        copies.iter().for_each(|at| disk.flip_bit(at + 77, 2));
        copies.len()
    }

    /// Says of these copysets, and of no others, that a device of theirs is full.
    pub fn set_full(&self, copysets: &[CopysetId]) {
        let running = self.nodes.iter().filter_map(|node| node.running.as_ref());
        running.for_each(|node| node.server.set_full(copysets.iter().copied().collect()));
    }

    /// Gives the node these orders to scrub, and no others.
    pub fn scrub(&self, number: usize, orders: Vec<proto::ScrubOrder>) -> Result<()> {
        self.nodes[number].running.as_ref().context("the node runs")?.server.scrub(orders);
        Ok(())
    }

    /// What the node says of a scrub once `is_done` of it.
    pub async fn scrubbed(
        &self,
        number: usize,
        copyset: CopysetId,
        is_done: impl Fn(&proto::ScrubReport) -> bool,
    ) -> Result<proto::ScrubReport> {
        let running = self.nodes[number].running.as_ref().context("the node runs")?;
        let mut report = None;
        for _ in 0..1500 {
            report = running.server.scrub_reports().get(&copyset).copied();
            if let Some(report) = report.filter(&is_done) {
                return Ok(report);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("the scrub of {copyset} on node {number} is at {report:?}")
    }

    /// Makes the node's own copy another one than its log says, with a checksum that matches.
    pub fn diverge(&self, number: usize, key: ChunkKey, data: Bytes) -> Result<()> {
        let running = self.nodes[number].running.as_ref().context("the node runs")?;
        let reports = running.server.host().reports();
        let report = reports.iter().find(|report| report.id == copyset_of(key));
        let applied = report.and_then(|report| report.applied).context("it has applied")?;
        let group = running.server.store().group(copyset_of(key)).context("a replica")?;
        Ok(group.begin_apply(applied)?.write(key, 0, data)?)
    }

    /// The beginning of a chunk as the node has it, whoever leads.
    pub fn stored(&self, number: usize, key: ChunkKey, len: usize) -> Result<Bytes> {
        let running = self.nodes[number].running.as_ref().context("the node runs")?;
        let group = running.server.store().group(copyset_of(key)).context("a replica")?;
        Ok(group.read(key, 0, len as u32)?)
    }

    /// From then on the node reads from its device what it has applied.
    pub async fn checkpoint(&self, number: usize) -> Result<()> {
        let running = self.nodes[number].running.as_ref().context("the node runs")?;
        let (answer, answered) = oneshot::channel();
        running.server.store().checkpoint(Box::new(|result| drop(answer.send(result))));
        Ok(answered.await??)
    }

    /// Makes the node look for a peer's blocks where something listens and never answers.
    pub fn mislead(&self, number: usize, peer: usize, silent: &TcpListener) -> Result<()> {
        let silent = silent.local_addr()?.to_string();
        let address = |(at, node): (usize, &Node)| {
            (node.device, if at == peer { silent.clone() } else { node.address.clone() })
        };
        let addresses = self.nodes.iter().enumerate().map(address).collect();
        let running = self.nodes[number].running.as_ref().context("the node runs")?;
        running.server.addresses().replace(2, addresses);
        Ok(())
    }

    /// What the node exports, as Prometheus sees it.
    pub fn metrics(&self, number: usize) -> Result<String> {
        let mut registry = Registry::default();
        let running = self.nodes[number].running.as_ref().context("the node runs")?;
        running.server.register_metrics(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    /// The first failure of the node's device.
    pub async fn device_failure(&self, number: usize) -> Result<String> {
        let running = self.nodes[number].running.as_ref().context("the node runs")?;
        self.nodes[number].disk.fail_at(self.nodes[number].disk.operations());
        Ok(running.server.device_failure().await.to_string())
    }
}

impl Node {
    fn host(&self) -> Result<&curve_raft::RaftHost> {
        Ok(self.running.as_ref().context("the node runs")?.server.host())
    }
}

pub async fn propose(
    connection: &Connection,
    copyset: CopysetId,
    command: &Command,
) -> Result<ChunkReply> {
    let (head, payload) = command.encode();
    let frame = connection.call(KIND_PROPOSE, copyset.0, head, payload).await?;
    Ok(decode_reply(&frame.body)?)
}

pub async fn read(connection: &Connection, copyset: CopysetId, read: Read) -> Result<ChunkReply> {
    let frame = connection.call(KIND_READ, copyset.0, read.encode(), Bytes::new()).await?;
    Ok(decode_reply(&frame.body)?)
}

pub async fn peer_read(
    connection: &Connection,
    copyset: CopysetId,
    read: PeerRead,
) -> Result<ChunkReply> {
    let frame = connection.call(KIND_PEER_READ, copyset.0, read.encode(), Bytes::new()).await?;
    Ok(decode_reply(&frame.body)?)
}

fn topology(nodes: &[Node]) -> proto::Topology {
    let id = |device: DeviceId| Bytes::copy_from_slice(&device.to_bytes());
    let devices = nodes
        .iter()
        .map(|node| proto::DeviceAddress {
            device_id: id(node.device),
            address: node.address.clone(),
            name: String::new(),
        })
        .collect();
    let copysets =
        ShardRange::divide(COPYSETS).zip(1..).map(|(shards, copyset)| proto::CopysetInfo {
            id: copyset,
            pool: 1,
            shard_first: shards.first,
            shard_end: shards.end,
            voters: nodes.iter().map(|node| id(node.device)).collect(),
            leader: Bytes::new(),
        });
    proto::Topology {
        version: 1,
        cluster_id: Bytes::new(),
        devices: Some(proto::DeviceMap { version: 1, devices }),
        copysets: copysets.collect(),
    }
}
