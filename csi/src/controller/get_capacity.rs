//! GetCapacity: bytes of volume that can still be made, in a pool or everywhere. Everywhere means
//! every cluster: one that does not answer fails the call, since the orchestrator would keep a sum
//! without it as the truth. Provisioners ask per StorageClass, and so need its cluster only.

use csi_proto::csi::v1::{GetCapacityRequest, GetCapacityResponse};
use curve_types::VOLUME_SIZE_MAX;

use super::{Context, topology};
use crate::capability::Access;
use crate::clusters::Cluster;
use crate::error::CsiError;
use crate::parameters::Parameters;
use crate::size::SIZE_STEP;
use crate::volumes::PoolSpace;

pub async fn get_capacity(
    context: &Context,
    request: GetCapacityRequest,
) -> Result<GetCapacityResponse, CsiError> {
    if !request.volume_capabilities.is_empty() {
        Access::parse_all(&request.volume_capabilities)?;
    }
    let parameters = Parameters::parse(&request.parameters)?;
    let elsewhere = request.accessible_topology.is_some_and(|asked| {
        let ours = topology();
        !asked.segments.is_empty() && asked != ours
    });
    let free = match parameters {
        _ if elsewhere => vec![0],
        Some(parameters) => {
            let cluster = context.clusters.by_name(&parameters.cluster).await?;
            let pools = pools(context, &cluster).await?;
            vec![free_in_pool(&pools, &parameters.pool)?]
        }
        None => {
            let mut free = Vec::new();
            for cluster in context.clusters.all().await? {
                free.extend(pools(context, &cluster).await?.iter().map(free_space));
            }
            free
        }
    };
    let largest = free.iter().copied().max().unwrap_or(0).min(VOLUME_SIZE_MAX);
    Ok(GetCapacityResponse {
        available_capacity: free.iter().sum::<u64>() as i64,
        maximum_volume_size: Some(largest as i64),
        minimum_volume_size: Some(SIZE_STEP as i64),
    })
}

async fn pools(context: &Context, cluster: &Cluster) -> Result<Vec<PoolSpace>, CsiError> {
    let step = "list its pools";
    context.clusters.call(cluster, step, |service| async move { service.pools().await }).await
}

fn free_space(pool: &PoolSpace) -> u64 {
    pool.capacity.saturating_sub(pool.provisioned) / SIZE_STEP * SIZE_STEP
}

fn free_in_pool(pools: &[PoolSpace], name: &str) -> Result<u64, CsiError> {
    if let Some(pool) = pools.iter().find(|pool| pool.name == name) {
        return Ok(free_space(pool));
    }
    let known: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    let reason = format!("pool {name} does not exist; known are {}", known.join(", "));
    Err(CsiError::invalid("parameters", reason))
}
