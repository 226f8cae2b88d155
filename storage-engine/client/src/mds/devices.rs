//! What a chunkserver asks of the MDS.

use curve_wire::proto::mds_device_client::MdsDeviceClient;
use curve_wire::proto::{HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse};

use super::leader::ANSWER_BYTES_MAX;
use super::{MdsClient, MdsError};

impl MdsClient {
    /// Asks for an identity, or to be admitted again. `request.request_id` is the caller's, since
    /// a process that restarts before it formatted must ask for the same grant again.
    pub async fn register(&self, request: RegisterRequest) -> Result<RegisterResponse, MdsError> {
        self.call("register the device", request, |channel, request| async move {
            MdsDeviceClient::new(channel).register(request).await
        })
        .await
    }

    /// Reports and takes orders.
    pub async fn heartbeat(
        &self,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, MdsError> {
        self.call("send a heartbeat", request, |channel, request| async move {
            let client = MdsDeviceClient::new(channel);
            client.max_decoding_message_size(ANSWER_BYTES_MAX).heartbeat(request).await
        })
        .await
    }
}
