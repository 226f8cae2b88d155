//! Logs and metrics, the same for every process.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
pub use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing_subscriber::EnvFilter;

use crate::net::{self, Listener, Stream};
use crate::pki::Identity;
use crate::tls::{TlsError, rustls_server_config};

/// Connections to the metrics port at a time; a scraper needs one.
const SCRAPES_MAX: usize = 16;
/// A scrape that takes longer is cut off, so that slow strangers hold no slot.
const SCRAPE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// What is logged without `CURVE_LOG`: openraft tells at `info` of every message of every group.
const FILTER_DEFAULT: &str = "info,openraft=warn";

/// Logs go to stderr: JSON lines, or readable text on a terminal. `CURVE_LOG` filters.
pub fn init_logging() {
    let filter =
        EnvFilter::try_from_env("CURVE_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER_DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call in one process keeps the first setting.
    let _ = if std::io::stderr().is_terminal() {
        builder.try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}

/// Why there are no metrics.
#[derive(Debug, Error)]
pub enum MetricsError {
    #[error("listen for metrics at {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("serve metrics")]
    Serve(#[source] TlsError),
}

/// The metrics port of what serves one only if asked to, or under an identity that is not its own.
/// Bound before anything else is taken over, so that an address that cannot be listened on costs
/// nobody a volume.
pub struct MetricsPort {
    listener: Listener,
    identity: Identity,
}

impl MetricsPort {
    pub async fn bind(address: SocketAddr, identity: Identity) -> Result<Self, MetricsError> {
        let listener = net::bind(address).await;
        let listener = listener.map_err(|source| MetricsError::Listen { address, source })?;
        Ok(Self { listener, identity })
    }

    /// Serves `registry` if there is a port. Ends only by failing.
    pub async fn serve(port: Option<Self>, registry: Arc<Registry>) -> Result<(), MetricsError> {
        let Some(Self { listener, identity }) = port else {
            return std::future::pending().await;
        };
        serve_metrics(listener, &identity, registry).await.map_err(MetricsError::Serve)
    }
}

/// Serves `GET /metrics` over HTTPS to clients with a certificate of the cluster, until dropped.
pub async fn serve_metrics(
    listener: Listener,
    identity: &Identity,
    registry: Arc<Registry>,
) -> Result<(), TlsError> {
    let acceptor = TlsAcceptor::from(rustls_server_config(identity)?);
    let slots = Arc::new(Semaphore::new(SCRAPES_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("never closed");
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, registry) = (acceptor.clone(), registry.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let scrape = serve_scrape(stream, address, acceptor, registry);
            let _ = tokio::time::timeout(SCRAPE_TIMEOUT, scrape).await;
        });
    }
}

async fn serve_scrape(
    stream: Stream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    registry: Arc<Registry>,
) {
    let stream = match acceptor.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%address, %error, "refused a connection to the metrics port");
            return;
        }
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &registry);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%address, %error, "metrics connection ended");
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let plain = |status, text: String| {
        Response::builder()
            .status(status)
            .header("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
            .body(Full::new(Bytes::from(text)))
            .expect("static parts are valid")
    };
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "only GET /metrics is served here\n".to_owned());
    }
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => plain(StatusCode::OK, text),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
