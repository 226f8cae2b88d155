//! Whole MDS processes on loopback, with real logs on real files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use curve_raft::device::{DeviceState, FileDisk};
use curve_types::DeviceId;
use curve_wire::pki::{Authority, CLUSTER_KEY_FILE, Role, generate_cluster_key, write_private};
use curve_wire::proto::mds_admin_client::MdsAdminClient;
use curve_wire::proto::{
    ClusterStatus, CreatePoolRequest, GetStatusRequest, ListPoolsRequest, Pool,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tonic::{Code, Status};

use super::*;
use crate::log::WireId;
use crate::options::Peer;
use crate::testing::{channel, request_id};

/// Elections take up to three seconds here, on a busy machine more.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
}

struct Cluster {
    dir: tempfile::TempDir,
    authority: Authority,
    peers: Vec<Peer>,
    /// Where the MDS find each other's gRPC port, if not at `peers`.
    detours: Vec<Detour>,
    running: Vec<Option<Running>>,
}

impl Cluster {
    /// Sets up certificates and addresses; starts nothing.
    async fn prepare(count: usize) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let authority = Authority::generate("demo").expect("authority");
        let key = generate_cluster_key();
        let mut peers = Vec::new();
        for n in 0..count {
            let name = format!("mds-{n}");
            let tls = dir.path().join("tls").join(&name);
            authority.issue(Role::Mds, &name).expect("issue").save(&tls).expect("save");
            write_private(&tls.join(CLUSTER_KEY_FILE), &key).expect("key");
            let (grpc, raft) = (own_address(), own_address());
            peers.push(Peer { name, grpc, raft });
        }
        let running = (0..count).map(|_| None).collect();
        Self { dir, authority, peers, detours: Vec::new(), running }
    }

    async fn start_all(count: usize) -> Self {
        let mut cluster = Self::prepare(count).await;
        for n in 0..count {
            cluster.start(n).await;
        }
        cluster
    }

    fn data_dir(&self, n: usize) -> PathBuf {
        self.dir.path().join(&self.peers[n].name)
    }

    fn options(&self, n: usize) -> MdsOptions {
        let Peer { name, grpc, raft } = self.peers[n].clone();
        let mut peers = self.peers.clone();
        for (peer, detour) in peers.iter_mut().zip(&self.detours) {
            peer.grpc.clone_from(&detour.address);
        }
        MdsOptions {
            data_dir: self.data_dir(n),
            device_size: ByteSize(64 << 20),
            peers,
            listen_grpc: grpc.parse().expect("address"),
            listen_raft: raft.parse().expect("address"),
            listen_metrics: ([127, 0, 0, 1], 0).into(),
            tls_dir: self.dir.path().join("tls").join(&name),
            cluster_name: "demo".to_owned(),
            out_after: Duration::from_secs(600),
            name,
        }
    }

    async fn start(&mut self, n: usize) {
        let (stop, stopped) = oneshot::channel::<()>();
        let options = self.options(n);
        let listeners = Listeners::bind(&options).await.expect("listen");
        let task = tokio::task::spawn_blocking(move || {
            // A runtime of its own, as a process has: what still runs ends with it.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(serve(options, listeners, async {
                let _ = stopped.await;
            }))
        });
        self.running[n] = Some(Running { stop, task });
    }

    async fn stop(&mut self, n: usize) {
        let Running { stop, task } = self.running[n].take().expect("running");
        let _ = stop.send(());
        task.await.expect("no panic").expect("clean");
        // The store's threads let go of the file a moment later.
        let started = Instant::now();
        while FileDisk::open(&self.data_dir(n).join(DEVICE_FILE)).is_err() {
            assert!(started.elapsed() < PATIENCE, "the device file stays locked");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop_all(&mut self) {
        for n in 0..self.running.len() {
            if self.running[n].is_some() {
                self.stop(n).await;
            }
        }
    }

    fn device(&self, n: usize) -> DeviceId {
        let disk = FileDisk::open(&self.data_dir(n).join(DEVICE_FILE)).expect("open");
        match inspect(&disk).expect("inspect") {
            DeviceState::Formatted(superblock) => superblock.device,
            other => panic!("{other:?}"),
        }
    }

    fn admin(&self, n: usize) -> MdsAdminClient<tonic::transport::Channel> {
        let identity = self.authority.issue(Role::Admin, "me").expect("identity");
        MdsAdminClient::new(channel(self.peers[n].grpc.parse().expect("address"), &identity))
    }

    async fn ask(&self, n: usize) -> Result<ClusterStatus, Status> {
        let mut admin = self.admin(n);
        let answer = admin.get_status(GetStatusRequest {});
        match tokio::time::timeout(Duration::from_secs(5), answer).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("no answer")),
        }
    }

    /// Whoever leads, once somebody does and the status is as wanted.
    async fn wait(&self, wanted: impl Fn(&ClusterStatus) -> bool) -> (usize, ClusterStatus) {
        let started = Instant::now();
        let mut last = None;
        loop {
            for n in (0..self.peers.len()).filter(|n| self.running[*n].is_some()) {
                match self.ask(n).await {
                    Ok(status) if wanted(&status) => return (n, status),
                    other => last = Some(other),
                }
            }
            assert!(started.elapsed() < PATIENCE, "last: {last:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn create_pool(&self, leader: usize, name: &str) -> Pool {
        let request = CreatePoolRequest {
            name: name.to_owned(),
            replicas: 3,
            request_id: request_id(),
            ..Default::default()
        };
        self.admin(leader).create_pool(request).await.expect("create").into_inner()
    }

    async fn pools(&self, leader: usize) -> Vec<String> {
        let answer = self.admin(leader).list_pools(ListPoolsRequest {}).await.expect("list");
        let pools = answer.into_inner().pools.into_iter();
        pools.filter_map(|status| Some(status.pool?.name)).collect()
    }
}

/// Passes connections on, and can leave those it has hanging, as a node that was cut off does.
struct Detour {
    address: String,
    freeze: watch::Sender<()>,
}

impl Detour {
    async fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address").to_string();
        let (freeze, frozen) = watch::channel(());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (to, mut frozen) = (to.clone(), frozen.clone());
                frozen.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(&to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = frozen.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { address, freeze }
    }
}

/// An address of this process alone, on a loopback network of its own: a port of 127.0.0.1 may go to
/// somebody's outgoing connection while the MDS that had it is stopped.
fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.{high}.{low}.{}:7100", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn up(status: &ClusterStatus) -> usize {
    status.mds.iter().filter(|mds| mds.up).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_mds_keeps_what_it_acknowledged_over_a_restart() {
    let mut cluster = Cluster::start_all(1).await;
    let (_, formed) = cluster.wait(|_| true).await;
    assert_eq!(formed.cluster_name, "demo");
    cluster.create_pool(0, "fast").await;
    cluster.stop(0).await;
    let device = cluster.device(0);
    cluster.start(0).await;
    let (_, again) = cluster.wait(|_| true).await;
    assert_eq!(again.cluster_id, formed.cluster_id);
    assert_eq!(again.mds[0].device_id, device.to_wire());
    assert_eq!(cluster.pools(0).await, ["default", "fast"]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_mds_survive_the_loss_of_their_leader_and_take_a_wiped_one_back() {
    let mut cluster = Cluster::start_all(3).await;
    let (first, formed) = cluster.wait(|status| up(status) == 3).await;
    cluster.create_pool(first, "one").await;

    let follower = (first + 1) % 3;
    let refused = cluster.ask(follower).await.expect_err("only the leader answers");
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "not the leader"));

    cluster.stop(first).await;
    let (second, _) = cluster.wait(|status| up(status) == 2).await;
    assert_ne!(second, first);
    cluster.create_pool(second, "two").await;

    // It comes back with an empty directory, under a new identity.
    let old = cluster.device(first);
    std::fs::remove_dir_all(cluster.data_dir(first)).expect("wipe");
    cluster.start(first).await;
    let name = cluster.peers[first].name.clone();
    let taken_in = |status: &ClusterStatus| {
        let member = status.mds.iter().find(|mds| mds.name == name);
        member.is_some_and(|mds| mds.up && mds.device_id != old.to_wire()) && up(status) == 3
    };
    let (second, joined) = cluster.wait(taken_in).await;
    assert_eq!(joined.cluster_id, formed.cluster_id);

    // Only with its vote is there a quorum now, and it holds everything.
    let third = (0..3).find(|n| *n != first && *n != second).expect("a third");
    cluster.stop(third).await;
    let (leader, _) = cluster.wait(|status| up(status) == 2).await;
    assert_eq!(cluster.pools(leader).await, ["default", "one", "two"]);
    cluster.create_pool(leader, "three").await;
    cluster.stop_all().await;
}

/// Its old connections stay open for many minutes, and nothing comes over them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_were_cut_off_are_heard_again_over_new_connections() {
    let mut cluster = Cluster::prepare(3).await;
    for n in 0..3 {
        cluster.detours.push(Detour::start(cluster.peers[n].grpc.clone()).await);
    }
    for n in 0..3 {
        cluster.start(n).await;
    }
    cluster.wait(|status| up(status) == 3).await;
    cluster.detours.iter().for_each(|detour| detour.freeze.send_replace(()));
    tokio::time::sleep(crate::peers::PEER_DOWN_AFTER + Duration::from_secs(1)).await;
    cluster.wait(|status| up(status) == 3).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_majority_forms_no_second_cluster() {
    let mut cluster = Cluster::start_all(3).await;
    let (leader, _) = cluster.wait(|status| up(status) == 3).await;
    cluster.stop_all().await;
    for n in (0..3).filter(|n| *n != leader) {
        std::fs::remove_dir_all(cluster.data_dir(n)).expect("wipe");
    }
    for n in 0..3 {
        cluster.start(n).await;
    }
    // Longer than two election timeouts: nobody leads, nobody begins anew.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(7) {
        for n in 0..3 {
            let refused = cluster.ask(n).await.expect_err("no quorum");
            assert_eq!(refused.code(), Code::Unavailable);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_on_the_raft_and_the_metrics_port() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut cluster = Cluster::prepare(1).await;
    let options = cluster.options(0);
    let scrapes = TcpListener::bind(options.listen_metrics).await.expect("listen");
    let (metrics, raft) = (scrapes.local_addr().expect("address"), options.listen_raft);
    let listeners = Listeners::bind(&options).await.expect("listen");
    let listeners = Listeners { metrics: scrapes.into(), ..listeners };
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(options, listeners, async {
        let _ = stopped.await;
    }));
    cluster.running[0] = Some(Running { stop, task });
    for address in [raft, metrics] {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _ = read.expect("the connection is closed");
        assert!(!answer.starts_with(b"HTTP"), "{address}: {}", String::from_utf8_lossy(&answer));
    }
    cluster.wait(|_| true).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_left_alone() {
    let cluster = Cluster::prepare(1).await;
    let path = cluster.data_dir(0).join(DEVICE_FILE);
    std::fs::create_dir_all(cluster.data_dir(0)).expect("directory");
    let foreign = vec![0x5a; 64 << 20];
    std::fs::write(&path, &foreign).expect("write");
    let options = cluster.options(0);
    let error = run(options, std::future::pending()).await.expect_err("refused").to_string();
    assert!(error.contains("is not Curve's"), "{error}");
    assert!(std::fs::read(&path).expect("read") == foreign, "it is untouched");

    // The device of another process of the cluster, put into the wrong directory.
    std::fs::remove_file(&path).expect("remove");
    let opened = open_device(&cluster.data_dir(0), ByteSize(64 << 20), "mds-7").expect("format");
    drop(opened);
    let started = Instant::now();
    let error = loop {
        let error = run(cluster.options(0), std::future::pending()).await.expect_err("refused");
        if !matches!(error, RunError::OpenDevice { .. }) || started.elapsed() > PATIENCE {
            break error.to_string();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(error.contains("belongs to MDS \"mds-7\", this is \"mds-0\""), "{error}");
}

#[tokio::test]
async fn unusable_settings_are_named() {
    let cluster = Cluster::prepare(1).await;
    let options = cluster.options(0);
    let missing = MdsOptions { tls_dir: "/nonexistent".into(), ..options.clone() };
    let error = run(missing, std::future::pending()).await.expect_err("refused");
    assert!(curve_wire::with_causes(&error).contains("/nonexistent/ca.crt"), "{error}");
    write_private(&options.tls_dir.join(CLUSTER_KEY_FILE), "short").expect("write");
    let error = run(options, std::future::pending()).await.expect_err("refused").to_string();
    assert!(error.contains("cluster.key does not hold 64 hexadecimal digits"), "{error}");
}
