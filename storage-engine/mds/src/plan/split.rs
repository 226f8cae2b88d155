//! Splits copysets as disks are added, so that there are enough replicas for each disk to have its
//! share. One at a time per pool; `balance` then moves replicas.

use std::time::Duration;

use curve_types::PoolId;

use super::balance::is_calm;
use super::placement::copyset_count;
use crate::log::command::Kind;
use crate::state::Pool;
use crate::view::Scene;

/// A device must have been up for so long before copysets are split for it: that is not undone if
/// it goes.
const STEADY: Duration = Duration::from_secs(30);

/// Begins splits: of the largest copysets first, in order.
pub fn plan_splits(scene: Scene<'_>) -> Vec<Kind> {
    let wants = |(id, pool): &(&PoolId, &Pool)| {
        let candidates = scene.candidates(pool);
        let steady = candidates.filter(|(device, _)| scene.is_steady(*device, STEADY)).count();
        let copysets = scene.state.copysets_of(**id).count() as u32;
        copysets > 0
            && copysets < copyset_count(steady as u32)
            && scene.state.may_split(**id).is_ok()
            && is_calm(scene, **id)
    };
    let largest = |(id, _): (&PoolId, _)| {
        let copysets = scene.state.copysets_of(*id);
        let able = copysets.filter(|(_, copyset)| copyset.joining.is_none());
        let able = able.filter(|(_, copyset)| copyset.shards.halves().is_some());
        let (copyset, _) = able.max_by_key(|(id, copyset)| (copyset.shards.len(), !id.0))?;
        Some(Kind::BeginSplit(copyset.0))
    };
    scene.state.pools.iter().filter(wants).filter_map(largest).collect()
}
