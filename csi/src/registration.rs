//! Tells kubelet that the driver is on this node: serves the registration service on a socket that
//! kubelet discovers, in place of the node-driver-registrar sidecar.

use std::path::Path;

use csi_proto::pluginregistration::registration_server::{Registration, RegistrationServer};
use csi_proto::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::DRIVER_NAME;
use crate::server::{self, Reach};

/// Kubelet's word for what registers.
const PLUGIN_TYPE: &str = "CSIPlugin";
/// Version of the CSI protocol as kubelet compares it: all of CSI 1.x is 1.0.0.
const PROTOCOL_VERSION: &str = "1.0.0";

struct RegistrationService {
    /// Path of the CSI socket as kubelet sees it.
    endpoint: String,
    refused: watch::Sender<Option<String>>,
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(
        &self,
        _request: Request<InfoRequest>,
    ) -> Result<Response<PluginInfo>, Status> {
        tracing::info!(endpoint = self.endpoint, "kubelet asks for the driver");
        Ok(Response::new(PluginInfo {
            r#type: PLUGIN_TYPE.to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![PROTOCOL_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("kubelet has registered the driver");
        } else {
            self.refused.send_replace(Some(error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Serves registration until `stop` is done. Fails if kubelet refuses the driver: a new process
/// asks again, and the restarts are what an administrator sees.
pub async fn serve(
    socket: &Path,
    csi_socket: &Path,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (refused, mut verdict) = watch::channel(None);
    let endpoint = csi_socket.display().to_string();
    let service = RegistrationService { endpoint, refused };
    let listener = server::bind(socket, Reach::Owner)?;
    let router = Server::builder().add_service(RegistrationServer::new(service));
    let refusal = async move {
        // The sender lives as long as the server, so the wait cannot fail before.
        if verdict.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
        verdict.borrow().clone().unwrap_or_default()
    };
    tokio::select! {
        served = server::serve(listener, router, stop) => served,
        error = refusal => anyhow::bail!("kubelet refused to register the driver: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi_proto::pluginregistration::registration_client::RegistrationClient;
    use tonic::transport::Endpoint;

    #[tokio::test]
    async fn kubelet_learns_the_driver_and_a_refusal_ends_the_process() {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("reg.sock");
        let serving = tokio::spawn({
            let socket = socket.clone();
            async move { serve(&socket, Path::new("/csi.sock"), std::future::pending()).await }
        });
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
        let endpoint = Endpoint::from_static("http://localhost");
        let mut kubelet = RegistrationClient::new(server::unix_channel(endpoint, &socket));
        let info = kubelet.get_info(InfoRequest {}).await.expect("answers").into_inner();
        assert_eq!((info.name.as_str(), info.endpoint.as_str()), (DRIVER_NAME, "/csi.sock"));
        let status = |plugin_registered, error: &str| RegistrationStatus {
            plugin_registered,
            error: error.to_owned(),
        };
        kubelet.notify_registration_status(status(true, "")).await.expect("answers");
        assert!(!serving.is_finished());
        // The answer may be lost as the server goes down with the refusal.
        let _ = kubelet.notify_registration_status(status(false, "no such version")).await;
        let error = serving.await.expect("no panic").expect_err("refused");
        assert!(error.to_string().contains("no such version"), "{error}");
    }
}
