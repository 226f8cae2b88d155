//! The rest of Curve, in memory: an MDS that keeps volumes in a map, and an agent whose devices are
//! loop devices over sparse files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use csi_proto::csi::v1::controller_client::ControllerClient;
use csi_proto::csi::v1::controller_server::ControllerServer;
use csi_proto::csi::v1::group_controller_client::GroupControllerClient;
use csi_proto::csi::v1::group_controller_server::GroupControllerServer;
use csi_proto::csi::v1::identity_server::IdentityServer;
use csi_proto::csi::v1::node_client::NodeClient;
use csi_proto::csi::v1::node_server::NodeServer;
use csi_proto::csi::v1::volume_capability::access_mode::Mode;
use csi_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi_proto::csi::v1::{
    CapacityRange, ControllerPublishVolumeRequest, CreateVolumeRequest, VolumeCapability,
};
use curve_csi::attachments::{AttachError, AttachService, Attachment};
use curve_csi::capability::Sharing;
use curve_csi::clusters::{Clusters, Connection, ConnectionSource, SourceError};
use curve_csi::controller::nodes::{ListedNodes, NodeInfo};
use curve_csi::controller::{self, ControllerService};
use curve_csi::group_controller::GroupControllerService;
use curve_csi::handle::{ClusterName, VolumeHandle};
use curve_csi::identity::IdentityService;
use curve_csi::node::{self, NodeService};
use curve_csi::rpc::Rpcs;
use curve_csi::rpc::metrics::RpcMetrics;
use curve_csi::server::{self, Reach};
use curve_csi::volumes::{
    Connector, NewVolume, PoolSpace, SnapshotInfo, SnapshotPage, VolumeError, VolumeInfo,
    VolumePage, VolumeService,
};
use curve_types::{ClusterId, LimitsChange, VolumeId, VolumeLimits};
use curve_wire::pki::Identity;
use tonic::transport::{Channel, Endpoint, Server};

/// The one cluster that exists and answers.
pub const CLUSTER: &str = "curve/demo";
/// Another one, where a test asks for it: its MDS never answers.
const DEAD_CLUSTER: &str = "curve/dead";
/// The node whose plugin runs. `node-2` exists too.
pub const NODE: &str = "node-1";
/// Sizes in tests.
pub const MIB: u64 = 1 << 20;
/// Volumes that the node takes.
pub const VOLUMES_MAX: u32 = 5;
const POOL_CAPACITY: u64 = 64 << 30;
/// When every snapshot was made.
pub const CREATED_UNIX_MS: u64 = 1_700_000_000_123;

/// Volumes and snapshots by id, and the modes in which nodes have them.
#[derive(Default)]
pub struct MemoryMds {
    volumes: Mutex<BTreeMap<VolumeId, VolumeInfo>>,
    snapshots: Mutex<BTreeMap<VolumeId, SnapshotInfo>>,
    modes: Mutex<HashMap<(VolumeId, String), Sharing>>,
    /// What it answers instead of looking.
    refusal: Option<VolumeError>,
    /// What a method answers the next time that it is called, and whether it does its work.
    failure: Mutex<Option<Failure>>,
    /// Has the data of whatever was attached once, as a file named by its id.
    dir: Option<PathBuf>,
}

/// A call that does not go well.
struct Failure {
    method: &'static str,
    /// The work is done all the same: only the answer is lost.
    done: bool,
    error: VolumeError,
}

impl MemoryMds {
    /// One that the caller's certificate means nothing to.
    pub fn untrusting() -> Self {
        let refusal = VolumeError::Untrusted("not a certificate of this cluster".to_owned());
        Self { refusal: Some(refusal), ..Self::default() }
    }

    fn dead() -> Self {
        let refusal = VolumeError::Unavailable("no leader answers".to_owned());
        Self { refusal: Some(refusal), ..Self::default() }
    }

    fn over(dir: &Path) -> Self {
        Self { dir: Some(dir.to_owned()), ..Self::default() }
    }

    /// Lets the next call of `method` (`create`, `create_snapshots`, `delete`) fail without effect.
    pub fn fail(&self, method: &'static str, error: VolumeError) {
        *self.failure.lock().expect("not poisoned") = Some(Failure { method, done: false, error });
    }

    /// Lets the next call of `method` do its work and its answer get lost.
    pub fn lose_answer(&self, method: &'static str) {
        let error = VolumeError::Unavailable("the answer got lost".to_owned());
        *self.failure.lock().expect("not poisoned") = Some(Failure { method, done: true, error });
    }

    /// For the beginning of a method: fails if it is to fail without effect.
    fn begin(&self, method: &str) -> Result<(), VolumeError> {
        self.take_failure(method, false)
    }

    /// For its end.
    fn end<T>(&self, method: &str, value: T) -> Result<T, VolumeError> {
        self.take_failure(method, true).map(|()| value)
    }

    fn take_failure(&self, method: &str, done: bool) -> Result<(), VolumeError> {
        let mut failure = self.failure.lock().expect("not poisoned");
        let now = failure.take_if(|failure| failure.method == method && failure.done == done);
        now.map_or(Ok(()), |failure| Err(failure.error))
    }

    /// Full names of all snapshots.
    pub fn snapshot_names(&self) -> Vec<String> {
        let snapshots = self.snapshots.lock().expect("not poisoned");
        snapshots.values().map(|snapshot| snapshot.full_name.clone()).collect()
    }

    /// Leaves the snapshots of that full name unfinished.
    pub fn unready(&self, full_name: &str) {
        let mut snapshots = self.snapshots.lock().expect("not poisoned");
        let named = snapshots.values_mut().filter(|snapshot| snapshot.full_name == full_name);
        named.for_each(|snapshot| snapshot.ready = false);
    }

    fn copy_data(&self, from: VolumeId, to: VolumeId) {
        let Some(dir) = &self.dir else { return };
        let (from, to) = (dir.join(from.to_string()), dir.join(to.to_string()));
        if from.exists() {
            let mut copy = Command::new("cp");
            let status = copy.arg("--sparse=always").arg(from).arg(to).status().expect("cp");
            assert!(status.success(), "cp");
        }
    }

    fn take_snapshot(&self, of: VolumeId, name: &str) -> Result<SnapshotInfo, VolumeError> {
        let volume = self.with(of, |volume| volume.clone())?;
        let mut snapshots = self.snapshots.lock().expect("not poisoned");
        let found = snapshots.values_mut().find(|s| (s.volume, s.name.as_str()) == (of, name));
        if let Some(found) = found {
            found.ready = true;
            return Ok(found.clone());
        }
        let info = SnapshotInfo {
            id: VolumeId::random(),
            full_name: format!("{}@{name}", volume.name),
            name: name.to_owned(),
            volume: of,
            pool: volume.pool,
            size: volume.size,
            created_unix_ms: CREATED_UNIX_MS,
            ready: true,
            deleting: false,
        };
        self.copy_data(of, info.id);
        snapshots.insert(info.id, info.clone());
        Ok(info)
    }

    fn answer(&self) -> Result<(), VolumeError> {
        self.refusal.clone().map_or(Ok(()), Err)
    }

    fn with<T>(
        &self,
        id: VolumeId,
        work: impl FnOnce(&mut VolumeInfo) -> T,
    ) -> Result<T, VolumeError> {
        let mut volumes = self.volumes.lock().expect("not poisoned");
        let missing = || VolumeError::Missing(format!("volume {id} does not exist"));
        volumes.get_mut(&id).map(work).ok_or_else(missing)
    }

    fn size(&self, id: VolumeId) -> Option<u64> {
        self.with(id, |volume| volume.size).ok()
    }

    fn mode(&self, id: VolumeId) -> Option<Sharing> {
        self.modes.lock().expect("not poisoned").get(&(id, NODE.to_owned())).copied()
    }
}

#[async_trait]
impl VolumeService for MemoryMds {
    async fn cluster_id(&self) -> Result<ClusterId, VolumeError> {
        Err(VolumeError::Failed("the connection names the cluster".to_owned()))
    }

    async fn create(&self, volume: NewVolume<'_>) -> Result<VolumeInfo, VolumeError> {
        self.begin("create")?;
        let NewVolume { name, pool, size, limits, source } = volume;
        if pool != "default" {
            return Err(VolumeError::Missing(format!("pool is {pool:?}: expected one of default")));
        }
        let mut volumes = self.volumes.lock().expect("not poisoned");
        if let Some(found) = volumes.values().find(|volume| volume.name == name) {
            let same = (found.size, found.limits, found.source) == (size, limits, source);
            return if same { Ok(found.clone()) } else { Err(VolumeError::Exists("other".into())) };
        }
        if volumes.values().map(|volume| volume.size).sum::<u64>() + size > POOL_CAPACITY {
            return Err(VolumeError::Full(format!("pool {pool:?} is full")));
        }
        let info = VolumeInfo {
            id: VolumeId::random(),
            name: name.to_owned(),
            pool: pool.to_owned(),
            size,
            nodes: Vec::new(),
            deleting: false,
            limits,
            source,
        };
        if let Some(source) = source {
            let snapshots = self.snapshots.lock().expect("not poisoned");
            let missing = || VolumeError::Missing(format!("snapshot {source} does not exist"));
            let snapshot = snapshots.get(&source).ok_or_else(missing)?;
            assert!(snapshot.ready && snapshot.size <= size, "checked before");
            self.copy_data(source, info.id);
        }
        volumes.insert(info.id, info.clone());
        self.end("create", info)
    }

    async fn get(&self, id: VolumeId) -> Result<VolumeInfo, VolumeError> {
        self.answer()?;
        self.with(id, |volume| volume.clone())
    }

    async fn get_by_name(&self, name: &str) -> Result<VolumeInfo, VolumeError> {
        let volumes = self.volumes.lock().expect("not poisoned");
        let found = volumes.values().find(|volume| volume.name == name).cloned();
        found.ok_or_else(|| VolumeError::Missing(name.to_owned()))
    }

    async fn list(&self, after: &str, limit: u32) -> Result<VolumePage, VolumeError> {
        self.answer()?;
        let volumes = self.volumes.lock().expect("not poisoned");
        let by_name: BTreeMap<&str, &VolumeInfo> =
            volumes.values().map(|volume| (volume.name.as_str(), volume)).collect();
        let mut rest = by_name.into_values().filter(|volume| volume.name.as_str() > after);
        let page = rest.by_ref().take(limit as usize).cloned().collect();
        Ok(VolumePage { volumes: page, more: rest.next().is_some() })
    }

    async fn resize(&self, id: VolumeId, size: u64) -> Result<VolumeInfo, VolumeError> {
        self.with(id, |volume| {
            volume.size = size;
            volume.clone()
        })
    }

    async fn set_limits(
        &self,
        id: VolumeId,
        change: LimitsChange,
    ) -> Result<VolumeInfo, VolumeError> {
        self.with(id, |volume| {
            volume.limits = change.apply_to(volume.limits);
            volume.clone()
        })
    }

    async fn create_snapshots(
        &self,
        snapshots: &[(VolumeId, &str)],
    ) -> Result<Vec<SnapshotInfo>, VolumeError> {
        self.begin("create_snapshots")?;
        // All or none: only a volume that is missing is in the way of one.
        for (volume, _) in snapshots {
            self.with(*volume, |_| ())?;
        }
        let taken = snapshots.iter().map(|(volume, name)| self.take_snapshot(*volume, name));
        let taken = taken.collect::<Result<_, _>>()?;
        self.end("create_snapshots", taken)
    }

    async fn get_snapshot(&self, id: VolumeId) -> Result<SnapshotInfo, VolumeError> {
        self.answer()?;
        let snapshots = self.snapshots.lock().expect("not poisoned");
        let missing = || VolumeError::Missing(format!("snapshot {id} does not exist"));
        snapshots.get(&id).cloned().ok_or_else(missing)
    }

    async fn list_snapshots(
        &self,
        volume: Option<VolumeId>,
        after: &str,
        limit: u32,
    ) -> Result<SnapshotPage, VolumeError> {
        self.answer()?;
        let snapshots = self.snapshots.lock().expect("not poisoned");
        let of = snapshots.values().filter(|s| volume.is_none_or(|volume| volume == s.volume));
        let by_name: BTreeMap<&str, &SnapshotInfo> =
            of.map(|snapshot| (snapshot.full_name.as_str(), snapshot)).collect();
        let mut rest = by_name.into_values().filter(|s| s.full_name.as_str() > after);
        let page = rest.by_ref().take(limit as usize).cloned().collect();
        Ok(SnapshotPage { snapshots: page, more: rest.next().is_some() })
    }

    async fn delete(&self, id: VolumeId) -> Result<(), VolumeError> {
        self.begin("delete")?;
        let mut volumes = self.volumes.lock().expect("not poisoned");
        if volumes.get(&id).is_some_and(|volume| !volume.nodes.is_empty()) {
            return Err(VolumeError::Refused("it is published".to_owned()));
        }
        volumes.remove(&id);
        self.snapshots.lock().expect("not poisoned").remove(&id);
        self.end("delete", ())
    }

    async fn publish(&self, id: VolumeId, node: &str, sharing: Sharing) -> Result<(), VolumeError> {
        let mut modes = self.modes.lock().expect("not poisoned");
        let before = *modes.entry((id, node.to_owned())).or_insert(sharing);
        if before != sharing {
            return Err(VolumeError::Exists(format!("it is published with {before:?}")));
        }
        self.with(id, |volume| {
            let nodes: BTreeSet<String> = volume.nodes.drain(..).chain([node.to_owned()]).collect();
            volume.nodes = nodes.into_iter().collect();
        })
    }

    async fn unpublish(&self, id: VolumeId, node: Option<&str>) -> Result<(), VolumeError> {
        let stays = |name: &str| node.is_some_and(|node| node != name);
        self.modes.lock().expect("not poisoned").retain(|(of, name), _| *of != id || stays(name));
        self.with(id, |volume| volume.nodes.retain(|name| stays(name)))
    }

    async fn pools(&self) -> Result<Vec<PoolSpace>, VolumeError> {
        self.answer()?;
        let volumes = self.volumes.lock().expect("not poisoned");
        let provisioned = volumes.values().map(|volume| volume.size).sum();
        Ok(vec![PoolSpace { name: "default".to_owned(), capacity: POOL_CAPACITY, provisioned }])
    }
}

/// Hands out the one `MemoryMds`, unless the connection leads to `DEAD_CLUSTER`.
struct MemoryConnector(Arc<MemoryMds>);

#[async_trait]
impl Connector for MemoryConnector {
    async fn connect(&self, to: &Connection) -> Result<Arc<dyn VolumeService>, VolumeError> {
        let dead = to.label == DEAD_CLUSTER;
        Ok(if dead { Arc::new(MemoryMds::dead()) } else { self.0.clone() })
    }
}

/// The clusters of one test.
struct Connections(Vec<Connection>);

impl Connections {
    fn to(labels: &[&str]) -> Self {
        let connection = |label: &&str| Connection {
            label: (*label).to_owned(),
            cluster: Some(ClusterId::random()),
            mds: vec!["nowhere:1".to_owned()],
            identity: Identity {
                ca_pem: String::new(),
                cert_pem: String::new(),
                key_pem: String::new(),
            },
        };
        Self(labels.iter().map(connection).collect())
    }
}

#[async_trait]
impl ConnectionSource for Connections {
    async fn find(&self, name: &ClusterName) -> Result<Option<Connection>, SourceError> {
        Ok(self.0.iter().find(|connection| connection.label == name.to_string()).cloned())
    }

    async fn all(&self) -> Result<Vec<Connection>, SourceError> {
        Ok(self.0.clone())
    }
}

/// Attaches volumes of the `MemoryMds` as loop devices over files in a directory.
pub struct LoopAgent {
    mds: Arc<MemoryMds>,
    dir: PathBuf,
    attached: Mutex<HashMap<VolumeHandle, Attachment>>,
}

impl LoopAgent {
    fn size(&self, handle: VolumeHandle) -> Result<u64, AttachError> {
        let missing = || AttachError::Missing(format!("volume {handle} does not exist"));
        self.mds.size(handle.volume).ok_or_else(missing)
    }

    fn file(&self, handle: VolumeHandle) -> PathBuf {
        self.dir.join(handle.volume.to_string())
    }

    /// The device of the one attached volume.
    pub fn device(&self) -> Option<PathBuf> {
        let attached = self.attached.lock().expect("not poisoned");
        attached.values().next().map(|attachment| attachment.device.clone())
    }

    /// Limits of the one volume, as the MDS has them.
    pub fn limits(&self) -> VolumeLimits {
        let volumes = self.mds.volumes.lock().expect("not poisoned");
        volumes.values().next().expect("a volume").limits
    }

    /// Loses all state, as a wiped state directory would; the devices stay.
    pub fn forget(&self) {
        self.attached.lock().expect("not poisoned").clear();
    }
}

#[async_trait]
impl AttachService for LoopAgent {
    async fn attach(
        &self,
        _cluster: &ClusterName,
        handle: VolumeHandle,
        sharing: Sharing,
    ) -> Result<Attachment, AttachError> {
        let size = self.size(handle)?;
        let published = self.mds.mode(handle.volume);
        if published.is_none_or(|mode| mode.read_only && !sharing.read_only) {
            return Err(AttachError::Refused(format!("{handle} is not published so")));
        }
        let mut attached = self.attached.lock().expect("not poisoned");
        if let Some(attachment) = attached.get(&handle) {
            return Ok(Attachment { size, ..attachment.clone() });
        }
        let file = self.file(handle);
        let open = std::fs::OpenOptions::new().create(true).append(true).open(&file);
        open.and_then(|opened| opened.set_len(size)).expect("make the volume's file");
        let mut args = vec!["--find", "--show"];
        args.extend(sharing.read_only.then_some("--read-only"));
        let device = PathBuf::from(losetup(&args, &file).trim());
        let attachment = Attachment { handle, device, size };
        attached.insert(handle, attachment.clone());
        Ok(attachment)
    }

    async fn detach(&self, handle: VolumeHandle) -> Result<(), AttachError> {
        if let Some(attachment) = self.attached.lock().expect("not poisoned").remove(&handle) {
            losetup(&["--detach"], &attachment.device);
        }
        Ok(())
    }

    async fn resize(&self, handle: VolumeHandle) -> Result<u64, AttachError> {
        let size = self.size(handle)?;
        let attached = self.attached.lock().expect("not poisoned");
        let missing = || AttachError::Missing(format!("{handle} is not attached"));
        let device = &attached.get(&handle).ok_or_else(missing)?.device;
        let open = std::fs::OpenOptions::new().append(true).open(self.file(handle));
        open.and_then(|opened| opened.set_len(size)).expect("grow the volume's file");
        losetup(&["--set-capacity"], device);
        Ok(size)
    }

    async fn list(&self) -> Result<Vec<Attachment>, AttachError> {
        let attached = self.attached.lock().expect("not poisoned").clone();
        let current = |attachment: Attachment| {
            let size = self.mds.size(attachment.handle.volume).unwrap_or(0);
            Attachment { size, ..attachment }
        };
        Ok(attached.into_values().map(current).collect())
    }
}

impl Drop for LoopAgent {
    fn drop(&mut self) {
        for attachment in self.attached.lock().expect("not poisoned").values() {
            losetup(&["--detach"], &attachment.device);
        }
    }
}

fn losetup(args: &[&str], last: &Path) -> String {
    let output = Command::new("losetup").args(args).arg(last).output().expect("losetup");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "losetup {args:?} {}: {error}", last.display());
    String::from_utf8(output.stdout).expect("text")
}

/// The driver on two sockets, over doubles. What it leaves mounted is its test's fault.
pub struct Driver {
    pub dir: tempfile::TempDir,
    pub mds: Arc<MemoryMds>,
    pub agent: Arc<LoopAgent>,
    pub controller: ControllerClient<Channel>,
    pub groups: GroupControllerClient<Channel>,
    pub node: NodeClient<Channel>,
}

impl Driver {
    /// Serves in tasks of the current runtime.
    pub fn start() -> Self {
        Self::start_with(Connections::to(&[CLUSTER]))
    }

    /// Beside `CLUSTER` there is one whose MDS does not answer.
    pub fn start_beside_a_dead_cluster() -> Self {
        Self::start_with(Connections::to(&[CLUSTER, DEAD_CLUSTER]))
    }

    fn start_with(connections: Connections) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let files = dir.path().join("volumes");
        std::fs::create_dir(&files).expect("mkdir");
        let mds = Arc::new(MemoryMds::over(&files));
        let clusters = Clusters::new(Arc::new(connections), Arc::new(MemoryConnector(mds.clone())));
        let limit = NodeInfo { volumes_max: Some(VOLUMES_MAX) };
        let nodes =
            Box::new(ListedNodes([(NODE.to_owned(), limit), ("node-2".to_owned(), limit)].into()));
        let context = Arc::new(controller::Context { clusters, nodes });
        let rpcs = Rpcs::new(RpcMetrics::register(&mut Default::default()));
        let router = Server::builder()
            .add_service(IdentityServer::new(IdentityService::new(rpcs.clone(), context.clone())))
            .add_service(ControllerServer::new(ControllerService::new(
                rpcs.clone(),
                context.clone(),
            )))
            .add_service(GroupControllerServer::new(GroupControllerService::new(
                rpcs.clone(),
                context,
            )));
        let agent =
            Arc::new(LoopAgent { mds: mds.clone(), dir: files, attached: Mutex::default() });
        let controller = serve(&dir.path().join("controller.sock"), router);
        let context = Arc::new(node::Context {
            agent: agent.clone(),
            node_id: NODE.to_owned(),
            volumes_max: VOLUMES_MAX,
        });
        let router = Server::builder()
            .add_service(IdentityServer::new(IdentityService::new(rpcs.clone(), context.clone())))
            .add_service(NodeServer::new(NodeService::new(rpcs, context)));
        let node = serve(&dir.path().join("node.sock"), router);
        let groups = GroupControllerClient::new(controller.clone());
        let (controller, node) = (ControllerClient::new(controller), NodeClient::new(node));
        Self { dir, mds, agent, controller, groups, node }
    }

    /// Makes a volume; answers its id.
    pub async fn create(&mut self, request: CreateVolumeRequest) -> String {
        let made = self.controller.create_volume(request).await.expect("made").into_inner();
        made.volume.expect("volume").volume_id
    }

    /// Publishes a volume to `NODE`.
    pub async fn publish(&mut self, id: &str, capability: &VolumeCapability) {
        let request = ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: NODE.to_owned(),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        self.controller.controller_publish_volume(request).await.expect("published");
    }

    /// A path inside the driver's directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn serve(socket: &Path, router: tonic::transport::server::Router) -> Channel {
    let listener = server::bind(socket, Reach::Owner).expect("bind");
    tokio::spawn(server::serve(listener, router, std::future::pending()));
    server::unix_channel(Endpoint::from_static("http://localhost"), socket)
}

/// A request with nothing unusual in it.
pub fn create_request(name: &str, size: u64, capability: VolumeCapability) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: size as i64, limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        parameters: [("cluster".to_owned(), CLUSTER.to_owned())].into(),
        ..Default::default()
    }
}

pub fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.to_owned(), ..Default::default() };
    capability(AccessType::Mount(mount), mode)
}

pub fn block(mode: Mode) -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), mode)
}

fn capability(access_type: AccessType, mode: Mode) -> VolumeCapability {
    let access_mode = Some(AccessMode { mode: mode.into() });
    VolumeCapability { access_type: Some(access_type), access_mode }
}

/// Loop devices and mounts need it: a test that skipped itself would pass without having run.
pub fn require_root() {
    assert!(nix::unistd::geteuid().is_root(), "run as root: loop devices and mounts need it");
}
