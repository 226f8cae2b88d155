//! The Identity service, the same from controller and node plugin apart from what Probe looks at.

use std::sync::Arc;

use async_trait::async_trait;
use csi_proto::csi::v1::identity_server::Identity;
use csi_proto::csi::v1::plugin_capability::service::Type as Service;
use csi_proto::csi::v1::plugin_capability::volume_expansion::Type as Expansion;
use csi_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse, plugin_capability,
};
use tonic::{Request, Response, Status};

use crate::error::CsiError;
use crate::rpc::Rpcs;
use crate::{DRIVER_NAME, DRIVER_VERSION};

/// Says whether the plugin could serve a volume now.
#[async_trait]
pub trait Readiness: Send + Sync {
    /// Fails with what is missing.
    async fn check(&self) -> Result<(), CsiError>;
}

/// Implements the service.
pub struct IdentityService {
    rpcs: Rpcs,
    readiness: Arc<dyn Readiness>,
}

impl IdentityService {
    pub fn new(rpcs: Rpcs, readiness: Arc<dyn Readiness>) -> Self {
        Self { rpcs, readiness }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let response = GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: DRIVER_VERSION.to_owned(),
            manifest: Default::default(),
        };
        self.rpcs.read("GetPluginInfo", "", async { Ok(response) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: Service| plugin_capability::Service { r#type: kind.into() };
        let online = plugin_capability::VolumeExpansion { r#type: Expansion::Online.into() };
        let capabilities = [
            plugin_capability::Type::Service(service(Service::ControllerService)),
            plugin_capability::Type::Service(service(Service::GroupControllerService)),
            plugin_capability::Type::Service(service(Service::VolumeAccessibilityConstraints)),
            plugin_capability::Type::VolumeExpansion(online),
        ];
        let capabilities =
            capabilities.map(|kind| PluginCapability { r#type: Some(kind) }).to_vec();
        let response = GetPluginCapabilitiesResponse { capabilities };
        self.rpcs.read("GetPluginCapabilities", "", async { Ok(response) }).await
    }

    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        let ready = match self.readiness.check().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = Status::from(error).message(), "not ready");
                false
            }
        };
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}
