//! `curve volume attach`: block devices on this machine. A small agent in the background, started
//! when first needed, holds them; it ends when the last one is detached.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use curve_client::MdsClient;
use curve_wire::proto::{
    self, AttachBlockRequest, DetachBlockRequest, ListAttachmentsRequest, ListAttachmentsResponse,
    ResizeBlockRequest,
};
use serde_json::json;

use super::{Mode, node_name};
use crate::agent;
use crate::cluster::ClusterArgs;
use crate::output::{self, Format, id_text};

/// Attaching fences an older session and waits for its copysets.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);
const START_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub struct Args {
    name: String,
    #[command(flatten)]
    mode: Mode,
    #[command(flatten)]
    state: StateArgs,
    /// Let the background agent serve metrics over mutual TLS at this address, with the
    /// configuration's certificate. Refused if an agent runs already and does not.
    #[arg(long, value_name = "ADDR")]
    listen_metrics: Option<SocketAddr>,
}

/// Where the background agent of this machine lives.
#[derive(clap::Args)]
pub struct StateArgs {
    /// Directory of the background agent that holds this machine's devices.
    #[arg(long, value_name = "DIR", default_value = "/run/curve-local")]
    state_dir: PathBuf,
}

impl StateArgs {
    fn socket(&self) -> PathBuf {
        self.state_dir.join("agent.sock")
    }
}

pub async fn attach(
    args: Args,
    cluster: &ClusterArgs,
    mds: &MdsClient,
    format: Format,
) -> Result<()> {
    let Args { name, mode, state, listen_metrics } = args;
    ensure!(nix::unistd::geteuid().is_root(), "making block devices needs root: run it with sudo");
    let volume = mds.get_volume(&*name).await?;
    let handle = handle(mds, &volume).await?;
    if mode.force {
        fence_others(mds, &volume, mode).await?;
    }
    let (connection, tls_dir) = remember_connection(&state, cluster)?;
    start_agent(&state, listen_metrics.map(|address| (address, &*tls_dir))).await?;
    let request = AttachBlockRequest {
        cluster: connection,
        volume_handle: handle,
        read_only: mode.read_only,
        shared: false,
    };
    let attached = agent::client(&state.socket(), CALL_TIMEOUT).attach_block(request).await;
    let attached = attached.map_err(refusal)?.into_inner();
    let proto::AttachBlockResponse { device, size, epoch, transport } = attached;
    output::print(
        format,
        || json!({"device": device, "size": size, "epoch": epoch, "transport": transport}),
        || format!("{device}\n"),
    )
}

pub async fn detach(state: &StateArgs, mds: &MdsClient, name: &str) -> Result<()> {
    let volume = mds.get_volume(name).await?;
    let volume_handle = handle(mds, &volume).await?;
    if !is_attached(state, &volume_handle).await {
        bail!("volume {name:?} is not attached by `curve volume attach` on this machine");
    }
    let mut agent = agent::client(&state.socket(), CALL_TIMEOUT);
    agent.detach_block(DetachBlockRequest { volume_handle }).await.map_err(refusal)?;
    Ok(())
}

/// Grows the device of a volume that is attached on this machine.
pub async fn resize(state: &StateArgs, mds: &MdsClient, volume: &proto::Volume) -> Result<()> {
    let volume_handle = handle(mds, volume).await?;
    if is_attached(state, &volume_handle).await {
        let mut agent = agent::client(&state.socket(), CALL_TIMEOUT);
        agent.resize_block(ResizeBlockRequest { volume_handle }).await.map_err(refusal)?;
    }
    Ok(())
}

async fn is_attached(state: &StateArgs, handle: &str) -> bool {
    let mut agent = agent::client(&state.socket(), CALL_TIMEOUT);
    let Ok(listed) = agent.list_attachments(ListAttachmentsRequest {}).await else { return false };
    listed.into_inner().attachments.iter().any(|found| found.volume_handle == handle)
}

/// The agent's words are about the volume already.
fn refusal(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

async fn handle(mds: &MdsClient, volume: &proto::Volume) -> Result<String> {
    let cluster = mds.status().await?.cluster_id;
    Ok(format!("1/{}/{}", id_text(&cluster), id_text(&volume.id)))
}

/// Opens and ends a session by force: the agent's own, which follows, then finds nobody.
async fn fence_others(mds: &MdsClient, volume: &proto::Volume, mode: Mode) -> Result<()> {
    let node = node_name()?;
    let Mode { force, read_only } = mode;
    let options = curve_client::AttachOptions { node, read_only, shared: false, force };
    let session = mds.attach(&*volume.name, &options).await?;
    Ok(mds.detach(session.id, session.volume).await?)
}

/// Leaves the cluster's configuration where the agent looks, under a name made from its path.
/// Gives that name, and the directory of the certificate.
fn remember_connection(state: &StateArgs, cluster: &ClusterArgs) -> Result<(String, PathBuf)> {
    let path = cluster.path()?;
    let path = path.canonicalize().with_context(|| format!("find {}", path.display()))?;
    let config = cluster.load()?;
    let tls_dir = config.tls_dir.canonicalize();
    let tls_dir = tls_dir.with_context(|| format!("find {}", config.tls_dir.display()))?;
    let name = format!("c{:016x}", fnv(path.as_os_str().as_encoded_bytes()));
    let dir = state.state_dir.join("connections/local").join(&name);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let text = toml::to_string(&json!({"mds": config.mds, "tls_dir": tls_dir}))?;
    let file = dir.join("client.toml");
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok((format!("local/{name}"), tls_dir))
}

/// Fowler-Noll-Vo 1a: names need to differ, not to be secret.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Starts the background agent unless one answers already. `port` is where it is to serve metrics,
/// and the directory of the certificate.
async fn start_agent(state: &StateArgs, port: Option<(SocketAddr, &Path)>) -> Result<()> {
    let socket = state.socket();
    if let Some(running) = ask(&socket).await {
        return check_metrics(state, &running, port);
    }
    let dir = &state.state_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let log_path = dir.join("agent.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("open {}", log_path.display()))?;
    let metrics = port.map(|(address, tls_dir)| {
        let address = OsString::from(address.to_string());
        ["--listen-metrics".into(), address, "--metrics-tls-dir".into(), tls_dir.into()]
    });
    let mut child = Command::new("/proc/self/exe")
        .args(["agent", "--exit-when-idle", "--node", &node_name()?, "--socket"])
        .arg(&socket)
        .arg("--state-dir")
        .arg(dir)
        .arg("--connection-dir")
        .arg(dir.join("connections"))
        .args(metrics.into_iter().flatten())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C at this terminal is not meant for the devices.
        .process_group(0)
        .spawn()
        .context("start the background agent")?;
    let deadline = Instant::now() + START_TIMEOUT;
    let running = loop {
        if let Some(running) = ask(&socket).await {
            break running;
        }
        let ended = child.try_wait().context("watch the background agent")?;
        // Another one may have been started at the same moment and won.
        let alone = ended.is_some() && deadline < Instant::now() + START_TIMEOUT / 2;
        ensure!(
            !alone && Instant::now() < deadline,
            "the background agent did not start: see {}",
            log_path.display()
        );
        tokio::time::sleep(POLL).await;
    };
    check_metrics(state, &running, port)
}

/// `None` if no agent answers.
async fn ask(socket: &Path) -> Option<ListAttachmentsResponse> {
    let mut agent = agent::client(socket, Duration::from_secs(5));
    if !socket.exists() {
        return None;
    }
    Some(agent.list_attachments(ListAttachmentsRequest {}).await.ok()?.into_inner())
}

/// Whoever asks for metrics gets them where it asked, also from an agent that ran already.
fn check_metrics(
    state: &StateArgs,
    running: &ListAttachmentsResponse,
    port: Option<(SocketAddr, &Path)>,
) -> Result<()> {
    let Some((wanted, _)) = port else { return Ok(()) };
    let has = match &*running.listen_metrics {
        "" => "without metrics".to_owned(),
        address => format!("with metrics at {address}"),
    };
    ensure!(
        running.listen_metrics == wanted.to_string(),
        "--listen-metrics is {wanted}, but the agent of {} runs {has}: the option counts when the \
         agent starts; it ends ten seconds after the last volume is detached",
        state.state_dir.display()
    );
    Ok(())
}
