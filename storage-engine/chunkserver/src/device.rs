//! How a disk gets its identity: looked at first, formatted only if blank and only with a grant of
//! the MDS, opened only in its own cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use curve_client::{MdsClient, MdsError, MdsErrorKind};
use curve_raft::in_thread;
use curve_store::{
    DeviceState, Disk, FormatOptions, RecoveredGroup, Store, StoreError, StoreOptions, Superblock,
    check_blank_log, check_log, format, format_with_log, inspect, simulate::open_or_create,
    with_log,
};
use curve_types::{ClusterId, DeviceId};
use curve_wire::auth::Key;
use curve_wire::proto::{RegisterRequest, RegisterResponse};
use thiserror::Error;

use crate::ChunkserverOptions;

/// Between two tries while no MDS answers: it may be starting with us.
const REGISTER_PAUSE: Duration = Duration::from_secs(1);

/// Why a device cannot be served.
#[derive(Debug, Error)]
pub enum DeviceError {
    #[error("open device {path}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error(
        "device {path} holds {what}; accepted are a new or zeroed file of at least 64 MiB, or a \
         device that this cluster formatted"
    )]
    Foreign { path: PathBuf, what: String },
    #[error(
        "device {path} is a Curve device but cannot be used: {what}; to give it up, overwrite it \
         with zeroes: it then joins as a new device and its data comes from the other replicas"
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "the log {path} cannot be used; a device and its log belong together: to give one up, \
         overwrite both with zeroes"
    )]
    Log { path: PathBuf, source: StoreError },
    #[error("device {path} ({device} of cluster {cluster}) was not admitted")]
    Refused { path: PathBuf, device: DeviceId, cluster: ClusterId, source: MdsError },
    #[error("no identity was granted to the blank device {path}")]
    NotGranted { path: PathBuf, source: MdsError },
    #[error("the MDS answered the registration with a malformed {field}")]
    Answer { field: &'static str },
    #[error("device {path}")]
    Store { path: PathBuf, source: StoreError },
}

/// A device in service.
pub(crate) struct OpenDevice {
    pub device: DeviceId,
    pub peer_key: Key,
    pub store: Store,
    pub recovered: Vec<RecoveredGroup>,
}

/// Makes the device file if there is none, gets it admitted, and opens it.
pub(crate) async fn open(
    options: &ChunkserverOptions,
    mds: &MdsClient,
) -> Result<OpenDevice, DeviceError> {
    let path = options.device.clone();
    let size = options.device_size.0;
    let log_device = options.log_device.clone();
    let (disk, log, found) = in_thread(move || {
        let open = |path: &Path, size| {
            open_or_create(path, size)
                .map_err(|source| DeviceError::Open { path: path.to_owned(), source })
        };
        let disk = open(&path, size)?;
        let found = look(&*disk, &path)?;
        let log = log_device.map(|(path, size)| {
            let log = open(&path, size.0)?;
            // Before the MDS gives the device a name.
            let checked = match &found {
                None => check_blank_log(&*log),
                Some(found) => check_log(&*log, found),
            };
            checked.map_err(|source| DeviceError::Log { path, source })?;
            Ok(log)
        });
        Ok((disk, log.transpose()?, found))
    })
    .await?;
    let size = disk.len();
    let (admitted, grant) = match found {
        None => (register_blank(options, mds, size).await?, true),
        Some(Superblock { device, cluster, .. }) => {
            (register_again(options, mds, size, device, cluster).await?, false)
        }
    };
    let (name, path) = (options.name.clone(), options.device.clone());
    in_thread(move || {
        let store_error = |source| DeviceError::Store { path: path.clone(), source };
        let Admitted { device, cluster, peer_key } = admitted;
        if grant {
            tracing::info!(path = %path.display(), %device, %cluster, "formatting a blank device");
        }
        let format_options = FormatOptions { cluster, device, name, size };
        let disk = match (log, grant) {
            (None, true) => format(&*disk, &format_options).map(|_| disk),
            (None, false) => Ok(disk),
            (Some(log), true) => format_with_log(disk, log, &format_options),
            (Some(log), false) => with_log(disk, log),
        };
        let opened = disk.and_then(|disk| Store::open(disk, StoreOptions::default()));
        let (store, recovered) = opened.map_err(store_error)?;
        tracing::info!(path = %path.display(), %device, copysets = recovered.len(), "opened");
        Ok(OpenDevice { device, peer_key, store, recovered })
    })
    .await
}

/// None of a blank device.
fn look(disk: &dyn Disk, path: &Path) -> Result<Option<Superblock>, DeviceError> {
    let state =
        inspect(disk).map_err(|source| DeviceError::Store { path: path.to_owned(), source })?;
    match state {
        DeviceState::Blank => Ok(None),
        DeviceState::Formatted(found) => Ok(Some(found)),
        DeviceState::Foreign { what } => Err(DeviceError::Foreign { path: path.to_owned(), what }),
        DeviceState::Damaged { what } => Err(DeviceError::Damaged { path: path.to_owned(), what }),
    }
}

struct Admitted {
    device: DeviceId,
    cluster: ClusterId,
    peer_key: Key,
}

fn request(options: &ChunkserverOptions, size: u64) -> RegisterRequest {
    RegisterRequest {
        name: options.name.clone(),
        host: options.host.clone(),
        zone: options.zone.clone(),
        device_class: options.device_class.clone(),
        size,
        device_id: Bytes::new(),
        cluster_id: Bytes::new(),
        address: options.advertise.clone(),
        // One per start of the process: a retry is given the same grant.
        request_id: Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes()),
    }
}

async fn register_blank(
    options: &ChunkserverOptions,
    mds: &MdsClient,
    size: u64,
) -> Result<Admitted, DeviceError> {
    let answer = register(mds, request(options, size))
        .await
        .map_err(|source| DeviceError::NotGranted { path: options.device.clone(), source })?;
    let admitted = admitted(answer)?;
    if admitted.device.is_nil() || admitted.cluster.is_nil() {
        return Err(DeviceError::Answer { field: "device_id or cluster_id (nil)" });
    }
    Ok(admitted)
}

async fn register_again(
    options: &ChunkserverOptions,
    mds: &MdsClient,
    size: u64,
    device: DeviceId,
    cluster: ClusterId,
) -> Result<Admitted, DeviceError> {
    let request = RegisterRequest {
        device_id: Bytes::copy_from_slice(&device.to_bytes()),
        cluster_id: Bytes::copy_from_slice(&cluster.to_bytes()),
        ..request(options, size)
    };
    let answer = register(mds, request).await.map_err(|source| DeviceError::Refused {
        path: options.device.clone(),
        device,
        cluster,
        source,
    })?;
    let admitted = admitted(answer)?;
    if (admitted.device, admitted.cluster) != (device, cluster) {
        // The MDS refuses a foreign device itself; it must never be taken for another.
        return Err(DeviceError::Answer { field: "device_id or cluster_id (not the device's)" });
    }
    Ok(admitted)
}

/// Asks until an MDS answers.
async fn register(mds: &MdsClient, request: RegisterRequest) -> Result<RegisterResponse, MdsError> {
    loop {
        match mds.register(request.clone()).await {
            Err(error) if error.kind == MdsErrorKind::Unavailable => {
                tracing::warn!(%error, "waiting for an MDS");
                tokio::time::sleep(REGISTER_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

fn admitted(answer: RegisterResponse) -> Result<Admitted, DeviceError> {
    let id = |raw: &[u8], field| raw.try_into().map_err(|_| DeviceError::Answer { field });
    let key = answer.peer_key[..].try_into();
    Ok(Admitted {
        device: DeviceId::from_bytes(id(&answer.device_id, "device_id")?),
        cluster: ClusterId::from_bytes(id(&answer.cluster_id, "cluster_id")?),
        peer_key: Key(key.map_err(|_| DeviceError::Answer { field: "peer_key" })?),
    })
}
