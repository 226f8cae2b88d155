//! The hosts: three MDS processes, chunkservers and clients, as they are.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use curve_chunkserver::ChunkserverOptions;
use curve_client::MdsClient;
use curve_mds::MdsOptions;
use curve_types::ByteSize;
use curve_wire::auth::Key;
use curve_wire::pki::{Authority, CLUSTER_KEY_FILE, Identity, Role};
use turmoil::Sim;

use crate::workload::Shared;

pub const MDS: [&str; 3] = ["mds-0", "mds-1", "mds-2"];
pub const CHUNKSERVERS: [&str; 4] = ["cs-0", "cs-1", "cs-2", "cs-3"];

pub fn servers() -> impl Iterator<Item = &'static str> {
    MDS.into_iter().chain(CHUNKSERVERS)
}

const GRPC: u16 = 9000;
const RAFT: u16 = 9001;
const DATA: u16 = 9002;
const METRICS: u16 = 9003;

/// So short that replicas move to other devices within a run.
const OUT_AFTER: Duration = Duration::from_secs(8);

/// The certificates of one cluster, in real files.
pub struct Files {
    dir: PathBuf,
    client: Identity,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn endpoints() -> Vec<String> {
    MDS.iter().map(|name| format!("{name}:{GRPC}")).collect()
}

impl Files {
    pub fn write(dir: &Path) -> Result<Self> {
        let authority = Authority::generate("sim")?;
        let cluster_key = Key::random().to_hex();
        let roles = MDS.map(|name| (name, Role::Mds)).into_iter();
        let roles = roles.chain(CHUNKSERVERS.map(|name| (name, Role::Chunkserver)));
        for (name, role) in roles {
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir)?;
            authority.issue(role, name)?.save(&dir)?;
            if role == Role::Mds {
                std::fs::write(dir.join(CLUSTER_KEY_FILE), &cluster_key)?;
            }
        }
        let client = authority.issue(Role::Admin, "client")?;
        Ok(Self { dir: dir.to_owned(), client })
    }

    /// The device of the MDS or chunkserver of that name.
    pub fn device(&self, name: &str) -> PathBuf {
        let file = if name.starts_with("mds") { "mds.device" } else { "device" };
        self.dir.join(name).join(file)
    }

    fn mds(&self, name: &str) -> Result<MdsOptions> {
        let peer = |name: &str| format!("{name},{name}:{GRPC},{name}:{RAFT}").parse();
        Ok(MdsOptions {
            name: name.to_owned(),
            data_dir: self.dir.join(name),
            device_size: ByteSize(64 << 20),
            peers: MDS.iter().map(|name| peer(name)).collect::<Result<_, _>>()?,
            listen_grpc: any(GRPC),
            listen_raft: any(RAFT),
            listen_metrics: any(METRICS),
            tls_dir: self.dir.join(name),
            cluster_name: "sim".to_owned(),
            out_after: OUT_AFTER,
        })
    }

    fn chunkserver(&self, name: &str) -> ChunkserverOptions {
        ChunkserverOptions {
            name: name.to_owned(),
            host: name.to_owned(),
            zone: String::new(),
            device_class: String::new(),
            device: self.device(name),
            device_size: ByteSize(128 << 20),
            log_device: None,
            listen: any(DATA),
            advertise: format!("{name}:{DATA}"),
            listen_metrics: any(METRICS),
            mds: endpoints(),
            tls_dir: self.dir.join(name),
        }
    }

    pub fn client(&self) -> Client {
        Client(self.client.clone())
    }

    /// Adds the servers, which start with the first step.
    pub fn add_servers(&self, sim: &mut Sim<'_>, shared: &Shared) -> Result<()> {
        for name in MDS {
            let options = self.mds(name)?;
            let shared = shared.clone();
            sim.host(name, move || {
                let (options, shared) = (options.clone(), shared.clone());
                async move {
                    ended(&shared, name, curve_mds::run(options, std::future::pending()).await);
                    Ok(())
                }
            });
        }
        for name in CHUNKSERVERS {
            let options = self.chunkserver(name);
            let shared = shared.clone();
            sim.host(name, move || {
                let (options, shared) = (options.clone(), shared.clone());
                async move {
                    ended(
                        &shared,
                        name,
                        curve_chunkserver::run(options, std::future::pending()).await,
                    );
                    Ok(())
                }
            });
        }
        Ok(())
    }
}

/// May use the cluster.
pub struct Client(Identity);

impl Client {
    pub fn connect(&self) -> Result<MdsClient> {
        Ok(MdsClient::connect(&endpoints(), &self.0)?)
    }
}

/// What the faults of a disk come to.
const DISK_FAULTS: [&str; 2] = ["Input/output error", "does not match its checksum"];

/// A process that ends by itself is started again later. It may do so for a fault of its disk only.
fn ended<E: std::error::Error>(shared: &Shared, name: &str, outcome: Result<(), E>) {
    let why = outcome.err().map(|error| curve_wire::with_causes(&error)).unwrap_or_default();
    tracing::warn!(name, why, "a process has ended");
    if !DISK_FAULTS.iter().any(|fault| why.contains(fault)) {
        shared.violate(format!("{name} ended without a fault of its disk: {why}"));
    }
}
