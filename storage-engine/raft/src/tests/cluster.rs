//! A small cluster with a key-value state machine, to start, kill and restart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use curve_store::{
    Apply, ChunkView, FormatOptions, Group, Install, LogPosition, SimDisk, Store, StoreOptions,
    Written, format_small,
};
use curve_types::{ChunkIndex, ChunkKey, ClusterId, CopysetId, DeviceId, VolumeId};
use curve_wire::auth::Key;
use curve_wire::rpc::{Replier, Request, Service, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::{
    Answer, Division, Factory, GroupHandle, HostOptions, ProposeError, RaftHost, ReadPolicy,
    Resolve, SnapshotSink, SnapshotSource, StateMachine, Timing,
};

pub const GROUP: CopysetId = CopysetId(7);
/// Nothing in these tests takes longer unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Faster than in production, slow enough for a loaded machine.
pub const QUICK: Timing = Timing {
    heartbeat: Duration::from_millis(150),
    election_min: Duration::from_millis(900),
    election_max: Duration::from_millis(1200),
    lease: Duration::from_millis(280),
    lease_hold: Duration::from_millis(300),
};

/// The command with this key moves all that lies in chunk 1 to the group `PART`.
pub const DIVIDE: &str = "divide";
pub const PART: CopysetId = CopysetId(2);

/// No replica can apply this value, as if its disk were rotten.
pub const POISON: &str = "poison";

pub type Map = BTreeMap<Bytes, Bytes>;

/// Keys and values in memory, and each value once more at the start of a chunk block, so that
/// checkpoints and snapshots have chunks to carry.
#[derive(Default)]
pub struct KeyValue {
    map: Arc<Mutex<Map>>,
}

fn block_of(key: &[u8]) -> (ChunkKey, u32) {
    let hash =
        key.iter().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    let volume = VolumeId::from_bytes([9; 16]);
    (ChunkKey { volume, index: ChunkIndex(hash % 3) }, hash % 64 * 4096)
}

/// Whether the key goes with `DIVIDE`.
pub fn moves(key: &[u8]) -> bool {
    block_of(key).0.index == ChunkIndex(1)
}

fn encode(map: &Map) -> Bytes {
    let mut out = BytesMut::new();
    for (key, value) in map {
        out.put_u32_le(key.len() as u32);
        out.put_u32_le(value.len() as u32);
        out.put_slice(key);
        out.put_slice(value);
    }
    out.freeze()
}

impl StateMachine for KeyValue {
    fn apply(
        &mut self,
        apply: &Apply<'_>,
        _position: LogPosition,
        header: Bytes,
        payload: Bytes,
    ) -> io::Result<Answer> {
        if payload == POISON {
            return Err(io::Error::other("the value is poisoned"));
        }
        if header == DIVIDE {
            let mut map = self.map.lock().expect("lock");
            let (part, rest) =
                std::mem::take(&mut *map).into_iter().partition(|(key, _)| moves(key));
            *map = rest;
            let moves = Box::new(|key: &ChunkKey| key.index == ChunkIndex(1));
            let division = Some(Division { id: PART, state: encode(&part), moves });
            return Ok(Answer { reply: Bytes::new(), division });
        }
        let (chunk, offset) = block_of(&header);
        apply.write(chunk, offset, payload.clone()).map_err(io::Error::other)?;
        let before = self.map.lock().expect("lock").insert(header, payload);
        Ok(before.unwrap_or_default().into())
    }

    fn state(&self) -> Bytes {
        encode(&self.map.lock().expect("lock"))
    }

    fn restore(&mut self, mut state: Bytes) -> io::Result<()> {
        let mut map = Map::new();
        while state.has_remaining() {
            let (key, value) = (state.get_u32_le() as usize, state.get_u32_le() as usize);
            map.insert(state.split_to(key), state.split_to(value));
        }
        *self.map.lock().expect("lock") = map;
        Ok(())
    }

    fn snapshot(&self, view: ChunkView) -> Box<dyn SnapshotSource> {
        let runs = view
            .chunks()
            .into_iter()
            .flat_map(|key| view.block_ranges(key).into_iter().map(move |run| (key, run)))
            .collect::<Vec<_>>();
        Box::new(Parts { view, runs: runs.into_iter() })
    }

    fn begin_install(&self) -> Box<dyn SnapshotSink> {
        Box::new(Blocks)
    }
}

struct Parts {
    view: ChunkView,
    runs: std::vec::IntoIter<(ChunkKey, std::ops::Range<u32>)>,
}

impl SnapshotSource for Parts {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some((key, run)) = self.runs.next() else { return Ok(None) };
        let mut out = BytesMut::new();
        out.put_slice(&key.volume.to_bytes());
        out.put_u32_le(key.index.0);
        out.put_u32_le(run.start * 4096);
        out.put_slice(&self.view.read(key, run).map_err(io::Error::other)?);
        Ok(Some(out.freeze()))
    }
}

struct Blocks;

impl SnapshotSink for Blocks {
    fn put(&mut self, install: &Install, mut part: Bytes) -> io::Result<()> {
        let mut volume = [0; 16];
        part.copy_to_slice(&mut volume);
        let index = ChunkIndex(part.get_u32_le());
        let offset = part.get_u32_le();
        let key = ChunkKey { volume: VolumeId::from_bytes(volume), index };
        let written = vec![Written::UNKNOWN; part.len() / 4096];
        install.put(key, offset, &part, &written).map_err(io::Error::other)
    }
}

#[derive(Clone, Default)]
pub struct Addresses(pub Arc<Mutex<HashMap<DeviceId, String>>>);

/// How one node reaches the others: by their addresses, unless a test put something between.
struct Routes {
    detours: Addresses,
    addresses: Addresses,
}

impl Resolve for Routes {
    fn address(&self, device: DeviceId) -> Option<String> {
        self.detours.address(device).or_else(|| self.addresses.address(device))
    }
}

/// A network between two nodes that can stop to deliver in one direction.
pub struct Detour {
    pub cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(from: TcpStream, to: TcpStream, mut cut: watch::Receiver<bool>) -> io::Result<()> {
    let (mut requests, mut replies_to) = from.into_split();
    let (mut replies, mut requests_to) = to.into_split();
    let forth = async {
        let mut buf = vec![0; 64 << 10];
        loop {
            let len = requests.read(&mut buf).await?;
            let _ = cut.wait_for(|cut| !cut).await;
            match len {
                0 => return io::Result::Ok(()),
                len => requests_to.write_all(&buf[..len]).await?,
            }
        }
    };
    tokio::try_join!(forth, tokio::io::copy(&mut replies, &mut replies_to))?;
    Ok(())
}

impl Resolve for Addresses {
    fn address(&self, device: DeviceId) -> Option<String> {
        self.0.lock().expect("lock").get(&device).cloned()
    }
}

struct Frames(RaftHost);

impl Service for Frames {
    fn on_request(&self, request: Request, replier: Replier) {
        self.0.on_request(request, replier);
    }
}

/// One process, running or not.
pub struct Node {
    pub device: DeviceId,
    pub disk: Arc<SimDisk>,
    detours: Addresses,
    /// By group, what its state machine holds.
    pub maps: Arc<Mutex<HashMap<CopysetId, Arc<Mutex<Map>>>>>,
    pub running: Option<Running>,
}

pub struct Running {
    pub host: RaftHost,
    pub store: Store,
    server: JoinHandle<()>,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub addresses: Addresses,
    pub key: Key,
    pub timing: Timing,
    pub read_policy: ReadPolicy,
    /// Length of each device's log.
    pub wal_len: u64,
}

impl Cluster {
    /// Nodes with blank disks, started.
    pub async fn start(count: usize) -> Self {
        Self::with(count, QUICK, 8 << 20).await
    }

    pub async fn with(count: usize, timing: Timing, wal_len: u64) -> Self {
        if std::env::var_os("CURVE_LOG").is_some() {
            curve_wire::telemetry::init_logging();
        }
        let mut cluster = Self {
            nodes: Vec::new(),
            addresses: Addresses::default(),
            key: Key::random(),
            timing,
            read_policy: ReadPolicy::Lease,
            wal_len,
        };
        for _ in 0..count {
            cluster.add().await;
        }
        cluster
    }

    /// One more node with a blank disk; its number.
    pub async fn add(&mut self) -> usize {
        let device = DeviceId::random();
        let disk = Arc::new(SimDisk::new(128 << 20));
        let options = FormatOptions {
            cluster: ClusterId::random(),
            device,
            name: "test".to_owned(),
            size: 128 << 20,
        };
        format_small(&*disk, &options, self.wal_len, 16 << 10).expect("format");
        self.nodes.push(Node {
            device,
            disk,
            detours: Addresses::default(),
            maps: Arc::default(),
            running: None,
        });
        let number = self.nodes.len() - 1;
        self.run(number).await;
        number
    }

    pub async fn run(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let (store, recovered) =
            Store::open(node.disk.clone(), StoreOptions::default()).expect("open");
        let maps = node.maps.clone();
        maps.lock().expect("lock").clear();
        let factory: Factory = Arc::new(move |id, _: &Group, state: Option<Bytes>| {
            let map = Arc::<Mutex<Map>>::default();
            maps.lock().expect("lock").insert(id, map.clone());
            let mut machine = KeyValue { map };
            machine.restore(state.unwrap_or_default())?;
            Ok(Box::new(machine) as Box<dyn StateMachine>)
        });
        let options = HostOptions {
            device: node.device,
            store: store.clone(),
            recovered,
            peer_key: self.key.clone(),
            resolver: Arc::new(Routes {
                detours: node.detours.clone(),
                addresses: self.addresses.clone(),
            }),
            timing: self.timing,
            read_policy: self.read_policy,
            snapshot_bytes_per_second: 0,
        };
        let host = RaftHost::start(options, factory).await.expect("start");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        self.addresses.0.lock().expect("lock").insert(node.device, address);
        let frames = Arc::new(Frames(host.clone()));
        let server = tokio::spawn(serve(listener.into(), node.device, self.key.clone(), frames));
        node.running = Some(Running { host, store, server });
    }

    /// Puts something between two running nodes that have not dialled yet.
    pub async fn detour(&self, from: usize, to: usize) -> Detour {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let to = self.nodes[to].device;
        let target = self.addresses.address(to).expect("address");
        self.nodes[from].detours.0.lock().expect("lock").insert(to, address);
        let cut = watch::Sender::new(false);
        let watch = cut.subscribe();
        let task = tokio::spawn(async move {
            let mut relays = JoinSet::new();
            while let Ok((from, _)) = listener.accept().await {
                let Ok(to) = TcpStream::connect(&target).await else { continue };
                relays.spawn(relay(from, to, watch.clone()));
            }
        });
        Detour { cut, task }
    }

    /// Kills the process and the machine under it: connections break, what was not synced is gone.
    pub async fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let Running { host, store, server } = node.running.take().expect("running");
        server.abort();
        let _ = server.await;
        node.disk = Arc::new(node.disk.after_crash(|| false));
        host.kill().await;
        drop((host, store));
    }

    pub async fn restart(&mut self, number: usize) {
        self.run(number).await;
    }

    pub fn devices(&self, numbers: &[usize]) -> BTreeSet<DeviceId> {
        numbers.iter().map(|n| self.nodes[*n].device).collect()
    }

    pub fn host(&self, number: usize) -> &RaftHost {
        &self.nodes[number].running.as_ref().expect("running").host
    }

    pub fn group(&self, number: usize) -> GroupHandle {
        self.host(number).group(GROUP).expect("group")
    }

    pub fn map(&self, number: usize) -> Map {
        self.map_of(GROUP, number)
    }

    /// Empty if it has no such group.
    pub fn map_of(&self, id: CopysetId, number: usize) -> Map {
        let maps = self.nodes[number].maps.lock().expect("lock");
        maps.get(&id).map(|map| map.lock().expect("lock").clone()).unwrap_or_default()
    }

    /// Forms `GROUP` of the first `count` nodes.
    pub async fn form(&self, count: usize) {
        self.form_group(GROUP, count).await;
    }

    pub async fn form_group(&self, id: CopysetId, count: usize) {
        let numbers: Vec<usize> = (0..count).collect();
        let voters = self.devices(&numbers);
        for number in numbers {
            self.host(number).initialize(id, voters.clone()).await.expect("initialize");
        }
    }

    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].running.is_some())
    }

    /// The node that leads, once there is one.
    pub async fn leader(&self) -> usize {
        self.leader_of(GROUP).await
    }

    pub async fn leader_of(&self, id: CopysetId) -> usize {
        let leads = |n: &usize| self.host(*n).group(id).is_some_and(|group| group.is_leader());
        wait_for("a leader", || self.running().find(leads)).await
    }

    /// The node that wins the first election, when no election comes by itself: each forms the
    /// group with a first entry of its own, and the greatest counts as the newest.
    pub fn first_leader(&self) -> usize {
        (0..self.nodes.len()).max_by_key(|n| self.nodes[*n].device).expect("some")
    }

    pub async fn elect_first_leader(&self) {
        let group = self.group(self.first_leader());
        while !group.is_leader() {
            let _ = group.core.raft.trigger().elect(false).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Proposes at whoever leads until it is acknowledged.
    pub async fn put(&self, key: &str, value: &str) {
        self.put_to(GROUP, key, value).await;
    }

    pub async fn put_to(&self, id: CopysetId, key: &str, value: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader_of(id).await;
            let (header, payload) = (key.to_owned().into(), value.to_owned().into());
            let group = self.host(leader).group(id).expect("it leads");
            match group.propose(header, payload).await {
                Ok(_) => return,
                Err(ProposeError::TooLong(_)) => panic!("too long"),
                Err(error) => assert!(Instant::now() < deadline, "put {key}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts what `pairs` has.
    pub async fn put_pairs(&self, range: std::ops::Range<usize>) {
        for n in range {
            self.put(&format!("key {n}"), &format!("value {n}")).await;
        }
    }

    /// Waits until these nodes hold exactly `expected`.
    pub async fn agree(&self, numbers: &[usize], expected: &Map) {
        self.agree_on(GROUP, numbers, expected).await;
    }

    pub async fn agree_on(&self, id: CopysetId, numbers: &[usize], expected: &Map) {
        for number in numbers {
            let same = || (self.map_of(id, *number) == *expected).then_some(());
            wait_for(&format!("node {number} to hold {} keys", expected.len()), same).await;
        }
    }

    /// Checks the chunks that `KeyValue` wrote, for keys whose blocks nobody else wrote.
    pub fn check_chunks(&self, number: usize, expected: &Map) {
        self.check_chunks_of(GROUP, number, expected);
    }

    pub fn check_chunks_of(&self, id: CopysetId, number: usize, expected: &Map) {
        let store = &self.nodes[number].running.as_ref().expect("running").store;
        let group = store.group(id).expect("group");
        let mut owners = BTreeMap::<_, Vec<_>>::new();
        for (key, value) in expected {
            owners.entry(block_of(key)).or_default().push(value);
        }
        for ((chunk, offset), values) in owners {
            if let [value] = values[..] {
                let found = group.read(chunk, offset, value.len() as u32).expect("read");
                assert_eq!(found, *value);
            }
        }
    }
}

pub async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn pairs(range: std::ops::Range<usize>) -> Map {
    range.map(|n| (Bytes::from(format!("key {n}")), Bytes::from(format!("value {n}")))).collect()
}
