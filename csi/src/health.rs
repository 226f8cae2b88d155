//! The client side of Probe, for exec probes of the pods.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use csi_proto::csi::v1::ProbeRequest;
use csi_proto::csi::v1::identity_client::IdentityClient;
use tonic::transport::Endpoint;

use crate::server;

/// Shorter than the period at which anyone probes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fails unless the plugin answers; with `ready`, unless it also could serve a volume.
pub async fn check(socket: &Path, ready: bool) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_static("http://localhost").timeout(TIMEOUT);
    let mut client = IdentityClient::new(server::unix_channel(endpoint, socket));
    let answer = client.probe(ProbeRequest {}).await;
    let answer = answer.with_context(|| format!("probe {}", socket.display()))?.into_inner();
    if ready && answer.ready == Some(false) {
        bail!("the plugin answers but is not ready: its log says why");
    }
    Ok(())
}
