//! CreateVolume: a volume of the MDS by the orchestrator's name.

use std::sync::Arc;

use csi_proto::csi::v1::{CreateVolumeRequest, CreateVolumeResponse, TopologyRequirement};
use curve_types::{ByteSize, LimitsChange, VolumeLimits};
use sha2::{Digest, Sha256};

use super::{Context, to_csi, topology};
use crate::capability::Access;
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::limits;
use crate::parameters::{CLUSTER, Parameters};
use crate::size::SizeRange;
use crate::volumes::{VolumeError, VolumeInfo};

/// Longest name that is passed on; longer ones would not fit a Kubernetes object either.
const NAME_MAX: usize = 128;

struct Plan {
    name: String,
    parameters: Parameters,
    /// Of the VolumeAttributesClass: above those of the StorageClass.
    mutable: LimitsChange,
    range: SizeRange,
    size: u64,
}

impl Plan {
    /// What becomes of a volume's limits.
    fn limits(&self, before: VolumeLimits) -> VolumeLimits {
        self.mutable.apply_to(self.parameters.limits.apply_to(before))
    }
}

pub async fn create_volume(
    context: Arc<Context>,
    request: CreateVolumeRequest,
) -> Result<CreateVolumeResponse, CsiError> {
    let plan = plan(&request)?;
    let cluster = context.clusters.by_name(&plan.parameters.cluster).await?;
    let info = create_or_find(&context, &cluster, &plan).await?;
    let handle = VolumeHandle { cluster: cluster.id, volume: info.id };
    let remembered = [(CLUSTER.to_owned(), plan.parameters.cluster.to_string())].into();
    Ok(CreateVolumeResponse { volume: Some(to_csi(handle, &info, remembered)) })
}

fn plan(request: &CreateVolumeRequest) -> Result<Plan, CsiError> {
    check_name(&request.name)?;
    let accesses = Access::parse_all(&request.volume_capabilities)?;
    if request.volume_content_source.is_some() {
        let reason = "volumes are made empty: snapshots and clones are not supported";
        return Err(CsiError::invalid("volume_content_source", reason));
    }
    let mutable = limits::parse_mutable(&request.mutable_parameters)?;
    check_topology(request.accessibility_requirements.as_ref())?;
    let parameters = Parameters::require(&request.parameters)?;
    let range = SizeRange::parse(request.capacity_range)?;
    let fs_type = accesses.iter().find_map(Access::fs_type).map(|fs_type| fs_type.as_str());
    let size = range.plan_create(fs_type)?;
    Ok(Plan { name: engine_name(&request.name), parameters, mutable, range, size })
}

fn check_name(name: &str) -> Result<(), CsiError> {
    if name.is_empty() {
        return Err(CsiError::invalid("name", "is missing"));
    }
    if name.len() > NAME_MAX || name.chars().any(char::is_control) {
        let reason = format!("{name:?}: up to {NAME_MAX} bytes without control characters");
        return Err(CsiError::invalid("name", reason));
    }
    Ok(())
}

/// CSI allows any Unicode in a name, volumes of the engine have a narrower alphabet (Kubernetes'
/// `pvc-<uuid>` is within it). Other names are hashed: each still means the same volume every time.
fn engine_name(name: &str) -> String {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    let allowed = |c: char| alphanumeric(c) || matches!(c, '-' | '_' | '.');
    if name.chars().all(allowed) && name.starts_with(alphanumeric) && name.ends_with(alphanumeric) {
        return name.to_owned();
    }
    let digest = Sha256::digest(name);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// Nothing to choose from: either the one segment is allowed, or no node of ours is.
fn check_topology(requirement: Option<&TopologyRequirement>) -> Result<(), CsiError> {
    let requisite = requirement.map_or(&[][..], |requirement| &requirement.requisite);
    let ours = topology();
    if requisite.is_empty() || requisite.contains(&ours) {
        return Ok(());
    }
    Err(CsiError::Exhausted {
        what: "accessibility_requirements".to_owned(),
        reason: "none of the requested topologies has the node plugin".to_owned(),
    })
}

async fn create_or_find(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
) -> Result<VolumeInfo, CsiError> {
    let created = context
        .clusters
        .call(cluster, "create the volume", |service| async move {
            let limits = plan.limits(VolumeLimits::default());
            service.create(&plan.name, &plan.parameters.pool, plan.size, limits).await
        })
        .await;
    let found = match created {
        Err(CsiError::Volume { source: VolumeError::Exists(_), .. }) => {
            let step = "look up the existing volume";
            let found = context.clusters.call(cluster, step, |service| async move {
                service.get_by_name(&plan.name).await
            });
            found.await?
        }
        other => other?,
    };
    check_existing(plan, &found)?;
    Ok(found)
}

/// A volume of that name may be the result of an earlier, identical call; or of another one.
fn check_existing(plan: &Plan, found: &VolumeInfo) -> Result<(), CsiError> {
    let difference = if found.deleting {
        "it is being deleted".to_owned()
    } else if found.pool != plan.parameters.pool {
        format!("in pool {} instead of {}", found.pool, plan.parameters.pool)
    } else if !plan.range.contains(found.size) {
        format!("with {} instead of {}", ByteSize(found.size), ByteSize(plan.size))
    } else if plan.limits(found.limits) != found.limits {
        format!("with limits {} instead of {}", found.limits, plan.limits(found.limits))
    } else {
        return Ok(());
    };
    Err(CsiError::Exists { what: format!("volume {}", plan.name), difference })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_engines_alphabet_are_hashed() {
        let ordinary = "pvc-5f0c1f7e-3f0c-4b2a-9c6e-0a1b2c3d4e5f";
        assert_eq!(engine_name(ordinary), ordinary);
        for name in ["limit-vol+1", "größe", "-edge", "edge."] {
            let hashed = engine_name(name);
            assert_eq!(hashed.len(), "csi-".len() + 64, "{name}");
            assert_eq!(engine_name(&hashed), hashed, "{name}");
        }
        assert_ne!(engine_name("limit-vol+1"), engine_name("limit-vol+2"));
    }
}
