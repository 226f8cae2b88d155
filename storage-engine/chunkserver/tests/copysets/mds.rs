//! The part of an MDS that an open volume needs.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use curve_wire::pki::Identity;
use curve_wire::proto::mds_topology_server::{MdsTopology, MdsTopologyServer};
use curve_wire::proto::mds_volume_server::{MdsVolume, MdsVolumeServer};
use curve_wire::proto::*;
use curve_wire::tls;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

pub struct FakeMds {
    topology: Topology,
    size: AtomicU64,
}

/// Serves an `Arc` of it, which is foreign to both traits' crates.
struct Served(Arc<FakeMds>);

impl FakeMds {
    pub fn new(topology: Topology) -> Self {
        Self { topology, size: AtomicU64::new(0) }
    }

    /// Size that the next renewal answers with.
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    pub async fn serve(self: Arc<Self>, identity: &Identity) -> Result<String> {
        tls::install_crypto_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let served = tonic::transport::Server::builder()
            .tls_config(tls::server_config(identity))?
            .add_service(MdsTopologyServer::new(Served(self.clone())))
            .add_service(MdsVolumeServer::new(Served(self)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(served);
        Ok(address)
    }
}

#[tonic::async_trait]
impl MdsTopology for Served {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Topology, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let once = tokio_stream::once(Ok(self.0.topology.clone()));
        Ok(Response::new(Box::pin(once.chain(tokio_stream::pending()))))
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not needed by an open volume"))
}

#[tonic::async_trait]
impl MdsVolume for Served {
    async fn renew_session(
        &self,
        _: Request<RenewSessionRequest>,
    ) -> Result<Response<RenewSessionResponse>, Status> {
        let size = self.0.size.load(Ordering::Relaxed);
        Ok(Response::new(RenewSessionResponse { size, lease_ms: 3000, limits: None }))
    }

    async fn create(&self, _: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        not_here()
    }

    async fn get(&self, _: Request<VolumeRef>) -> Result<Response<Volume>, Status> {
        not_here()
    }

    async fn list(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        not_here()
    }

    async fn resize(&self, _: Request<ResizeVolumeRequest>) -> Result<Response<Volume>, Status> {
        not_here()
    }

    async fn create_snapshots(
        &self,
        _: Request<CreateSnapshotsRequest>,
    ) -> Result<Response<CreateSnapshotsResponse>, Status> {
        not_here()
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        not_here()
    }

    async fn rollback(&self, _: Request<RollbackRequest>) -> Result<Response<Volume>, Status> {
        not_here()
    }

    async fn set_limits(&self, _: Request<SetLimitsRequest>) -> Result<Response<Volume>, Status> {
        not_here()
    }

    async fn delete(
        &self,
        _: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        not_here()
    }

    async fn publish(
        &self,
        _: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        not_here()
    }

    async fn unpublish(
        &self,
        _: Request<UnpublishRequest>,
    ) -> Result<Response<UnpublishResponse>, Status> {
        not_here()
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Result<Response<Session>, Status> {
        not_here()
    }

    async fn detach(&self, _: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        not_here()
    }
}
