//! ValidateVolumeCapabilities: whether an existing volume can be used in the given ways.

use csi_proto::csi::v1::validate_volume_capabilities_response::Confirmed;
use csi_proto::csi::v1::{ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse};

use super::{Context, require_volume_id};
use crate::capability::Access;
use crate::error::CsiError;
use crate::limits;
use crate::parameters::Parameters;
use crate::volumes::VolumeInfo;

pub async fn validate(
    context: &Context,
    request: ValidateVolumeCapabilitiesRequest,
) -> Result<ValidateVolumeCapabilitiesResponse, CsiError> {
    require_volume_id(&request.volume_id)?;
    if request.volume_capabilities.is_empty() {
        return Err(CsiError::invalid("volume_capabilities", "are missing"));
    }
    let (_, _, info) = context.volume(&request.volume_id).await?;
    Ok(match objection(&request, &info) {
        Some(message) => ValidateVolumeCapabilitiesResponse { confirmed: None, message },
        None => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
    })
}

fn objection(request: &ValidateVolumeCapabilitiesRequest, info: &VolumeInfo) -> Option<String> {
    if let Err(error) = Access::parse_all(&request.volume_capabilities) {
        return Some(error.to_string());
    }
    if let Err(error) = limits::parse_mutable(&request.mutable_parameters) {
        return Some(error.to_string());
    }
    match Parameters::parse(&request.parameters) {
        Err(error) => Some(error.to_string()),
        Ok(Some(parameters)) if parameters.pool != info.pool => {
            Some(format!("the volume is in pool {}, not in {}", info.pool, parameters.pool))
        }
        Ok(_) => None,
    }
}
