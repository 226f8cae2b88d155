//! A whole cluster in one process: one MDS, three chunkservers on files, a client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use curve_chunkserver::{ChunkserverError, ChunkserverOptions, Listeners};
use curve_client::{
    AttachOptions, BlockDevice, BlockError, CreatePool, CreateVolume, MdsClient, MdsErrorKind,
    Volume,
};
use curve_mds::MdsOptions;
use curve_types::{ByteSize, LimitsChange};
use curve_wire::auth::Key;
use curve_wire::pki::{Authority, CLUSTER_KEY_FILE, Identity, Role};
use curve_wire::proto::{FailureDomain, Health};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Process<E> {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), E>>,
}

impl<E: std::error::Error + Send + Sync + 'static> Process<E> {
    /// Fails with the process's own words if it ended as soon as it was started.
    async fn check(self) -> Result<Self> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        match self.task.is_finished() {
            true => {
                self.task.await??;
                bail!("the process ended")
            }
            false => Ok(self),
        }
    }

    async fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        Ok(self.task.await??)
    }
}

struct Cluster {
    dir: TempDir,
    authority: Authority,
    endpoint: String,
    _mds: Process<curve_mds::RunError>,
    chunkservers: HashMap<String, Process<ChunkserverError>>,
    client: MdsClient,
}

fn write_identity(identity: &Identity, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    identity.save(dir)?;
    Ok(())
}

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Cluster {
    async fn start() -> Result<Self> {
        curve_wire::telemetry::init_logging();
        let dir = tempfile::tempdir()?;
        let authority = Authority::generate("test")?;
        let tls_dir = dir.path().join("mds-tls");
        write_identity(&authority.issue(Role::Mds, "mds-0")?, &tls_dir)?;
        std::fs::write(tls_dir.join(CLUSTER_KEY_FILE), Key::random().to_hex())?;
        let grpc = TcpListener::bind(LOOPBACK).await?;
        let raft = TcpListener::bind(LOOPBACK).await?;
        let metrics = TcpListener::bind(LOOPBACK).await?;
        let (grpc_at, raft_at) = (grpc.local_addr()?, raft.local_addr()?);
        let endpoint = grpc_at.to_string();
        let options = MdsOptions {
            name: "mds-0".into(),
            data_dir: dir.path().join("mds"),
            device_size: ByteSize(64 << 20),
            peers: vec![format!("mds-0,{grpc_at},{raft_at}").parse()?],
            listen_grpc: grpc_at,
            listen_raft: raft_at,
            listen_metrics: metrics.local_addr()?,
            tls_dir,
            cluster_name: "test".into(),
            out_after: Duration::from_secs(600),
        };
        let listeners =
            curve_mds::Listeners { grpc: grpc.into(), raft: raft.into(), metrics: metrics.into() };
        let (stop, stopped) = oneshot::channel();
        let serving = curve_mds::serve(options, listeners, async {
            let _ = stopped.await;
        });
        let mds = Process { stop, task: tokio::spawn(serving) };
        let mds = mds.check().await?;
        let identity = authority.issue(Role::Admin, "test")?;
        let client = MdsClient::connect(std::slice::from_ref(&endpoint), &identity)?;
        let chunkservers = HashMap::new();
        Ok(Self { dir, authority, endpoint, _mds: mds, chunkservers, client })
    }

    fn options(
        &self,
        name: &str,
        listen: SocketAddr,
        listen_metrics: SocketAddr,
    ) -> Result<ChunkserverOptions> {
        let tls_dir = self.dir.path().join(format!("{name}-tls"));
        write_identity(&self.authority.issue(Role::Chunkserver, name)?, &tls_dir)?;
        Ok(ChunkserverOptions {
            name: name.into(),
            host: name.into(),
            zone: String::new(),
            device_class: String::new(),
            device: self.dir.path().join(format!("{name}.device")),
            device_size: ByteSize(128 << 20),
            log_device: None,
            listen,
            advertise: listen.to_string(),
            listen_metrics,
            mds: vec![self.endpoint.clone()],
            tls_dir,
        })
    }

    async fn start_chunkserver(&mut self, name: &str) -> Result<()> {
        let data = TcpListener::bind(LOOPBACK).await?;
        let metrics = TcpListener::bind(LOOPBACK).await?;
        let options = self.options(name, data.local_addr()?, metrics.local_addr()?)?;
        let listeners = Listeners { data: data.into(), metrics: metrics.into() };
        let (stop, stopped) = oneshot::channel();
        let serving = curve_chunkserver::serve(options, listeners, async {
            let _ = stopped.await;
        });
        let process = Process { stop, task: tokio::spawn(serving) };
        self.chunkservers.insert(name.into(), process);
        Ok(())
    }

    async fn stop_chunkserver(&mut self, name: &str) -> Result<()> {
        self.chunkservers.remove(name).context("it runs")?.stop().await
    }

    async fn start_three(&mut self) -> Result<()> {
        for name in ["cs-0", "cs-1", "cs-2"] {
            self.start_chunkserver(name).await?;
        }
        self.wait_up(3).await
    }

    /// Waits until `count` chunkservers are up.
    async fn wait_up(&self, count: usize) -> Result<()> {
        self.wait("chunkservers up", |status| {
            status.devices.iter().filter(|device| device.up).count() == count
        })
        .await
    }

    async fn wait_whole(&self) -> Result<()> {
        self.wait("a healthy cluster", |status| {
            status.health() == Health::Ok && status.copysets_whole > 0
        })
        .await
    }

    async fn wait(
        &self,
        what: &str,
        done: impl Fn(&curve_wire::proto::ClusterStatus) -> bool,
    ) -> Result<()> {
        let mut last = None;
        for _ in 0..400 {
            let status = self.client.status().await?;
            if done(&status) {
                return Ok(());
            }
            last = Some(status);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("no {what}: {last:?}")
    }

    async fn pool_and_volume(&self, size: u64) -> Result<()> {
        let pool = CreatePool {
            name: "default".into(),
            replicas: 3,
            failure_domain: FailureDomain::Host,
            device_class: String::new(),
            overcommit_percent: None,
        };
        self.client.create_pool(pool).await?;
        self.wait_whole().await?;
        let volume = CreateVolume {
            name: "v".into(),
            pool: "default".into(),
            size,
            limits: Default::default(),
            source: None,
        };
        self.client.create_volume(volume).await?;
        Ok(())
    }

    async fn attach(&self, force: bool) -> Result<Volume> {
        let options = AttachOptions { node: "n".into(), force, ..Default::default() };
        let session = self.client.attach("v", &options).await?;
        Ok(Volume::open(self.client.clone(), session).await?)
    }
}

fn fill(byte: u8, len: usize) -> Bytes {
    Bytes::from(vec![byte; len])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_lives_through_restarts_fences_and_deletion() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.start_three().await?;
    cluster.pool_and_volume(32 << 20).await?;
    let first = cluster.attach(false).await?;
    first.write(3 << 20, fill(1, 2 << 20)).await?;
    ensure!(first.read(3 << 20, 2 << 20).await? == fill(1, 2 << 20));

    // One chunkserver restarts at another address; IO goes on without it and with it.
    cluster.stop_chunkserver("cs-1").await?;
    first.write(0, fill(2, 4096)).await?;
    cluster.start_chunkserver("cs-1").await?;
    cluster.wait_up(3).await?;
    first.write(4096, fill(3, 4096)).await?;
    cluster.wait_whole().await?;

    let elsewhere = AttachOptions { node: "m".into(), ..Default::default() };
    let busy = cluster.client.attach("v", &elsewhere).await;
    ensure!(busy.is_err_and(|error| error.kind == MdsErrorKind::FailedPrecondition));
    let second = cluster.attach(true).await?;
    ensure!(first.write(0, fill(9, 4096)).await == Err(BlockError::Fenced));
    ensure!(second.read(0, 4096).await? == fill(2, 4096));

    cluster.client.resize_volume("v", 48 << 20).await?;
    ensure!(second.refresh_size().await? == 48 << 20);
    second.write((48 << 20) - 512, fill(4, 512)).await?;

    // All at once, with everything on disk.
    for name in ["cs-0", "cs-1", "cs-2"] {
        cluster.stop_chunkserver(name).await?;
    }
    let read = tokio::spawn({
        let second = second.clone();
        async move { second.read(4096, 4096).await }
    });
    cluster.start_three().await?;
    ensure!(read.await?? == fill(3, 4096), "IO waited for the restart");
    ensure!(second.read((48 << 20) - 512, 512).await? == fill(4, 512));

    let session = second.session().clone();
    second.close();
    cluster.client.detach(session.id, session.volume).await?;
    cluster.client.delete_volume("v").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_device_comes_back_as_another_and_a_foreign_one_does_not() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.start_three().await?;
    let ids = |status: &curve_wire::proto::ClusterStatus| {
        let ids = status.devices.iter().filter(|d| d.name == "cs-2" && d.up);
        ids.map(|device| device.device_id.clone()).collect::<Vec<_>>()
    };
    let before = ids(&cluster.client.status().await?);
    cluster.stop_chunkserver("cs-2").await?;
    let device = cluster.dir.path().join("cs-2.device");
    std::fs::remove_file(&device)?;
    cluster.start_chunkserver("cs-2").await?;
    cluster
        .wait("another device", |status| !ids(status).is_empty() && ids(status) != before)
        .await?;

    cluster.stop_chunkserver("cs-2").await?;
    let errors = [(vec![0xab; 64 << 20], "unknown data"), (vec![0; 4096], "64 MiB")];
    for (bytes, expected) in errors {
        std::fs::write(&device, bytes)?;
        cluster.start_chunkserver("cs-2").await?;
        let process = cluster.chunkservers.remove("cs-2").context("just started")?;
        let outcome = tokio::time::timeout(Duration::from_secs(20), process.task).await??;
        let error = outcome.expect_err("the device is no good").to_string();
        ensure!(error.contains(expected) && error.contains("cs-2.device"), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_devices_keep_their_identities_and_their_data() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.start_three().await?;
    cluster.pool_and_volume(32 << 20).await?;
    let volume = cluster.attach(false).await?;
    volume.write(1 << 20, fill(5, 2 << 20)).await?;
    let id_of = |status: &curve_wire::proto::ClusterStatus, name: &str| {
        let device = status.devices.iter().find(|device| device.name == name && device.up);
        device.map(|device| device.device_id.clone())
    };
    let before = cluster.client.status().await?;
    let names = ["cs-1", "cs-2"];
    for name in names {
        cluster.stop_chunkserver(name).await?;
    }
    let [one, other] = names.map(|name| cluster.dir.path().join(format!("{name}.device")));
    let aside = cluster.dir.path().join("aside");
    for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
        std::fs::rename(from, to)?;
    }
    for name in names {
        cluster.start_chunkserver(name).await?;
    }
    cluster
        .wait("the identities of the devices", |now| {
            id_of(now, "cs-1") == id_of(&before, "cs-2")
                && id_of(now, "cs-2") == id_of(&before, "cs-1")
        })
        .await?;
    cluster.wait_whole().await?;
    volume.write(2 << 20, fill(6, 1 << 20)).await?;
    // Both have what the third has: either alone is a quorum with the one that is left.
    cluster.stop_chunkserver("cs-0").await?;
    ensure!(volume.read(1 << 20, 1 << 20).await? == fill(5, 1 << 20));
    ensure!(volume.read(2 << 20, 1 << 20).await? == fill(6, 1 << 20));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_nodes_that_share_a_volume_is_fenced_alone() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.start_three().await?;
    cluster.pool_and_volume(32 << 20).await?;
    let mds = &cluster.client;
    let attach = async |node: &str| -> Result<Volume> {
        let options = AttachOptions { node: node.into(), shared: true, ..Default::default() };
        Ok(Volume::open(mds.clone(), mds.attach("v", &options).await?).await?)
    };
    // Ends only by what copysets answer: a volume that was just opened has not asked the MDS yet.
    let reopen = async |volume: &Volume| -> Result<Volume> {
        Ok(Volume::open(mds.clone(), volume.session().clone()).await?)
    };
    for node in ["a", "b"] {
        mds.publish_volume("v", node, false, true).await?;
    }
    let first = attach("a").await?;
    let other = attach("b").await?;
    first.write(0, fill(1, 4096)).await?;
    other.write(8 << 20, fill(2, 4096)).await?;

    let second = attach("a").await?;
    ensure!(second.session().epoch == other.session().epoch);
    ensure!(reopen(&first).await?.read(0, 4096).await == Err(BlockError::Fenced));
    ensure!(reopen(&first).await?.write(0, fill(9, 4096)).await == Err(BlockError::Fenced));
    // Where the session never wrote, and as whoever resumes it.
    ensure!(first.write(16 << 20, fill(9, 4096)).await == Err(BlockError::Fenced));
    let resumed = Volume::open(mds.clone(), first.session().clone().next_incarnation()).await;
    ensure!(resumed.is_err_and(|error| error == BlockError::Fenced));
    for volume in [&second, &other] {
        ensure!(volume.read(0, 4096).await? == fill(1, 4096));
        ensure!(volume.read(16 << 20, 4096).await? == fill(0, 4096));
        volume.write(0, fill(1, 4096)).await?;
    }

    mds.unpublish_volume("v", "a").await?;
    ensure!(reopen(&second).await?.read(0, 4096).await == Err(BlockError::Fenced));
    ensure!(second.write(0, fill(9, 4096)).await == Err(BlockError::Fenced));
    other.write(4096, fill(3, 4096)).await?;
    ensure!(other.read(4096, 4096).await? == fill(3, 4096));
    ensure!(other.read(0, 4096).await? == fill(1, 4096));
    let found = mds.get_volume("v").await?;
    ensure!(found.sessions.len() == 1 && found.published_nodes == ["b"]);
    Ok(())
}

/// Four writers of 4 KiB each, until the volume ends. Counts what they have written.
fn write_on_and_on(volume: &Volume) -> Arc<AtomicU64> {
    let written = Arc::new(AtomicU64::new(0));
    for writer in 0..4 {
        let (volume, written) = (volume.clone(), written.clone());
        tokio::spawn(async move {
            while volume.write(writer << 22, fill(1, 4096)).await.is_ok() {
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    written
}

/// Whether a rate keeps to its limit, and does not stay far below: a busy machine may.
fn keeps_to(rate: f64, limit: f64) -> bool {
    (0.5..1.15).contains(&(rate / limit))
}

/// The counter's rate over some seconds.
async fn rate_of(counter: &AtomicU64) -> f64 {
    let (began, before) = (Instant::now(), counter.load(Ordering::Relaxed));
    tokio::time::sleep(Duration::from_secs(5)).await;
    (counter.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_keeps_to_its_limits_and_to_changed_ones_while_it_is_written() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.start_three().await?;
    cluster.pool_and_volume(32 << 20).await?;
    let mds = &cluster.client;
    let limit = LimitsChange { write_iops: Some(60), ..Default::default() };
    mds.set_volume_limits("v", limit).await?;
    // Set before it is attached: from the first write on.
    let volume = cluster.attach(false).await?;
    let written = write_on_and_on(&volume);
    let rate = rate_of(&written).await;
    ensure!(keeps_to(rate, 60.0), "{rate} writes/s of 60");

    // While writes wait; the renewal that would tell the client by itself is due every ten seconds.
    for iops in [20, 80] {
        let limit = LimitsChange { write_iops: Some(iops), ..Default::default() };
        mds.set_volume_limits("v", limit).await?;
        volume.refresh_size().await?;
        let rate = rate_of(&written).await;
        ensure!(keeps_to(rate, iops as f64), "{rate} writes/s of {iops}");
    }

    // Reads are not held up by a limit of writes, and bytes are counted too.
    let began = Instant::now();
    for _ in 0..100 {
        volume.read(0, 4096).await?;
    }
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?} for 100 reads", began.elapsed());
    let bytes = LimitsChange { read_bytes_per_second: Some(4 << 20), ..Default::default() };
    mds.set_volume_limits("v", bytes).await?;
    volume.refresh_size().await?;
    let began = Instant::now();
    for _ in 0..16 {
        volume.read(0, 1 << 20).await?;
    }
    let rate = f64::from(16 << 20) / began.elapsed().as_secs_f64();
    // The first passes at once, on credit, and the last need not be paid for.
    ensure!(keeps_to(rate / 16.0 * 15.0, f64::from(4 << 20)), "{rate} bytes/s of 4 MiB/s");

    // A volume that ends does not keep those who wait.
    let slow = LimitsChange { write_iops: Some(1), ..Default::default() };
    mds.set_volume_limits("v", slow).await?;
    volume.refresh_size().await?;
    let waiting = tokio::spawn({
        let volume = volume.clone();
        async move { volume.write(0, fill(3, 4096)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    volume.close();
    let ended = tokio::time::timeout(Duration::from_secs(5), waiting).await??;
    ensure!(ended == Err(BlockError::Closed));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_learns_its_limits_by_its_renewal_alone() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.start_three().await?;
    cluster.pool_and_volume(32 << 20).await?;
    let volume = cluster.attach(false).await?;
    let limit = LimitsChange { iops: Some(20), ..Default::default() };
    cluster.client.set_volume_limits("v", limit).await?;
    let written = write_on_and_on(&volume);
    // A third of the lease, and a second for a busy machine.
    let renewal = Duration::from_millis(volume.session().lease_ms / 3);
    tokio::time::sleep(renewal + Duration::from_secs(1)).await;
    let mut rate = rate_of(&written).await;
    if !keeps_to(rate, 20.0) {
        // A renewal that was late.
        tokio::time::sleep(renewal).await;
        rate = rate_of(&written).await;
    }
    ensure!(keeps_to(rate, 20.0), "{rate} writes/s of 20");
    volume.close();
    Ok(())
}
