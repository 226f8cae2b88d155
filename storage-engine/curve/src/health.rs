//! `curve health`: the client side of readiness probes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use curve_wire::pki::{Identity, Role};
use curve_wire::proto::mds_peer_client::MdsPeerClient;
use curve_wire::proto::{DescribeRequest, ListAttachmentsRequest};
use curve_wire::tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::{agent, lifetime};

/// Shorter than the period at which anyone probes.
const TIMEOUT: Duration = Duration::from_secs(4);

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve health mds --tls-dir /etc/curve/tls")]
pub struct Args {
    #[command(subcommand)]
    process: Process,
}

#[derive(clap::Subcommand)]
enum Process {
    /// The MDS answers and belongs to a cluster.
    #[command(after_help = "Example:
  curve health mds --tls-dir /etc/curve/tls")]
    Mds {
        #[arg(long, value_name = "DIR")]
        tls_dir: PathBuf,
        #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7100")]
        address: String,
    },
    /// The chunkserver answers at its metrics port.
    #[command(after_help = "Example:
  curve health chunkserver --tls-dir /etc/curve/tls")]
    Chunkserver {
        #[arg(long, value_name = "DIR")]
        tls_dir: PathBuf,
        #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7209")]
        address: String,
    },
    /// The agent answers at its socket.
    #[command(after_help = "Example:
  curve health agent")]
    Agent {
        #[arg(long, value_name = "PATH", default_value = "/run/curve/agent.sock")]
        socket: PathBuf,
    },
}

pub fn run(args: Args) -> Result<()> {
    lifetime::run_command(async {
        let probe = async {
            match &args.process {
                Process::Mds { tls_dir, address } => mds(tls_dir, address).await,
                Process::Chunkserver { tls_dir, address } => {
                    metrics(tls_dir, address, Role::Chunkserver).await
                }
                Process::Agent { socket } => agent(socket).await,
            }
        };
        tokio::time::timeout(TIMEOUT, probe).await.context("no answer in time")?
    })
}

async fn mds(tls_dir: &Path, address: &str) -> Result<()> {
    let identity = Identity::load(tls_dir)?;
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .with_context(|| format!("address {address}"))?
        .tls_config(tls::client_config(&identity, Role::Mds))
        .context("use the certificates")?;
    let mut client = MdsPeerClient::new(endpoint.connect_lazy());
    let answer = client.describe(DescribeRequest {}).await;
    let answer = answer.with_context(|| format!("ask the MDS at {address}"))?.into_inner();
    ensure!(!answer.cluster_id.is_empty(), "the MDS does not belong to a cluster yet");
    Ok(())
}

async fn agent(socket: &Path) -> Result<()> {
    let mut client = agent::client(socket, TIMEOUT);
    client
        .list_attachments(ListAttachmentsRequest {})
        .await
        .with_context(|| format!("ask the agent at {}", socket.display()))?;
    Ok(())
}

/// Asks for metrics, which a process serves only once it runs.
async fn metrics(tls_dir: &Path, address: &str, role: Role) -> Result<()> {
    let identity = Identity::load(tls_dir)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_tls(&identity)?));
    let stream = TcpStream::connect(address).await;
    let stream = stream.with_context(|| format!("connect to {address}"))?;
    let name = ServerName::try_from(role.server_name()).context("server name")?;
    let mut stream = connector.connect(name, stream).await.context("authenticate")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: curve\r\nConnection: close\r\n\r\n").await?;
    let mut start = [0; 15];
    stream.read_exact(&mut start).await.context("read the answer")?;
    if !start.starts_with(b"HTTP/1.1 200") {
        bail!("the answer is {:?}", String::from_utf8_lossy(&start));
    }
    Ok(())
}

fn client_tls(identity: &Identity) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(identity.ca_pem.as_bytes()) {
        roots.add(cert.context("ca.crt")?)?;
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("tls.crt")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).context("tls.key")?;
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    builder.with_client_auth_cert(chain, key).context("use the certificates")
}
