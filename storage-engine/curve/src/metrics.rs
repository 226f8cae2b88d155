//! The metrics port of what serves one only if asked to, or under an identity that is not its own.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use curve_wire::pki::Identity;
use curve_wire::telemetry::{self, Registry};
use tokio::net::TcpListener;

/// A bound port. Bound before anything else is taken over, so that an address that cannot be
/// listened on costs nobody a volume.
pub struct MetricsPort {
    listener: TcpListener,
    identity: Identity,
}

impl MetricsPort {
    pub async fn bind(address: SocketAddr, identity: Identity) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("listen for metrics at {address}"))?;
        Ok(Self { listener, identity })
    }
}

/// Serves `registry` if there is a port. Ends only by failing.
pub async fn serve(port: Option<MetricsPort>, registry: Registry) -> Result<()> {
    let Some(MetricsPort { listener, identity }) = port else {
        return std::future::pending().await;
    };
    telemetry::serve_metrics(listener, &identity, Arc::new(registry)).await.context("serve metrics")
}
