//! CreateVolume: a volume of the MDS by the orchestrator's name, empty or with the data of a
//! snapshot or of another volume.

mod source;

use std::sync::Arc;

use csi_proto::csi::v1::{CreateVolumeRequest, CreateVolumeResponse, TopologyRequirement};
use curve_types::{ByteSize, LimitsChange, VolumeId, VolumeLimits};

use self::source::Source;
use super::{Context, to_csi, topology};
use crate::capability::{Access, FsType};
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::handle::VolumeHandle;
use crate::parameters::{CLUSTER, Parameters};
use crate::size::SizeRange;
use crate::volumes::{NewVolume, VolumeError, VolumeInfo};
use crate::{limits, names};

struct Plan {
    name: String,
    parameters: Parameters,
    /// Of the VolumeAttributesClass: above those of the StorageClass.
    mutable: LimitsChange,
    range: SizeRange,
    fs_type: Option<FsType>,
    source: Option<Source>,
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
    let info = match plan.source {
        None => {
            let size = plan.range.plan_create(plan.fs_type.map(FsType::as_str))?;
            create_or_find(&context, &cluster, &plan, size, None).await?
        }
        Some(source) => source::create_from(&context, &cluster, &plan, source).await?,
    };
    let handle = VolumeHandle { cluster: cluster.id, volume: info.id };
    let remembered = [(CLUSTER.to_owned(), plan.parameters.cluster.to_string())].into();
    let mut volume = to_csi(handle, &info, remembered);
    volume.content_source = request.volume_content_source;
    Ok(CreateVolumeResponse { volume: Some(volume) })
}

fn plan(request: &CreateVolumeRequest) -> Result<Plan, CsiError> {
    names::check(&request.name)?;
    let accesses = Access::parse_all(&request.volume_capabilities)?;
    let source = request.volume_content_source.as_ref().map(Source::parse).transpose()?;
    let mutable = limits::parse_mutable(&request.mutable_parameters)?;
    check_topology(request.accessibility_requirements.as_ref())?;
    let parameters = Parameters::require(&request.parameters)?;
    let range = SizeRange::parse(request.capacity_range)?;
    let fs_type = accesses.iter().find_map(Access::fs_type);
    Ok(Plan { name: names::volume(&request.name), parameters, mutable, range, fs_type, source })
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

/// `source` is the snapshot that the volume is made from.
async fn create_or_find(
    context: &Context,
    cluster: &Cluster,
    plan: &Plan,
    size: u64,
    source: Option<VolumeId>,
) -> Result<VolumeInfo, CsiError> {
    let created = context
        .clusters
        .call(cluster, "create the volume", |service| async move {
            let (name, pool) = (plan.name.as_str(), plan.parameters.pool.as_str());
            let limits = plan.limits(VolumeLimits::default());
            service.create(NewVolume { name, pool, size, limits, source }).await
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
    check_existing(plan, size, &found)?;
    match (source, found.source) {
        (wanted, made_from) if wanted == made_from => Ok(found),
        (None, _) => Err(exists(plan, "with the data of a snapshot instead of empty")),
        (_, None) => Err(exists(plan, "it was made empty")),
        _ => Err(exists(plan, "with the data of another source")),
    }
}

/// A volume of that name may be the result of an earlier, identical call; or of another one.
fn check_existing(plan: &Plan, size: u64, found: &VolumeInfo) -> Result<(), CsiError> {
    let difference = if found.deleting {
        "it is being deleted".to_owned()
    } else if found.pool != plan.parameters.pool {
        format!("in pool {} instead of {}", found.pool, plan.parameters.pool)
    } else if !plan.range.contains(found.size) {
        format!("with {} instead of {}", ByteSize(found.size), ByteSize(size))
    } else if plan.limits(found.limits) != found.limits {
        format!("with limits {} instead of {}", found.limits, plan.limits(found.limits))
    } else {
        return Ok(());
    };
    Err(exists(plan, difference))
}

fn exists(plan: &Plan, difference: impl Into<String>) -> CsiError {
    CsiError::Exists { what: format!("volume {}", plan.name), difference: difference.into() }
}
