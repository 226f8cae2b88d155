//! Limits of a volume's IO. Kept and handed out here; each attachment keeps itself to them.

use curve_types::{LimitsChange, VolumeLimits};

use super::apply::{Applied, volume_id};
use super::{Reason, Refusal, State};
use crate::log::{self, WireId, answer};

impl State {
    pub(super) fn set_limits(&mut self, set: log::SetLimits) -> Applied {
        let id = volume_id(&set.volume_id)?;
        let volume = self.live_volume(id)?;
        let change = LimitsChange::from(set.change.unwrap_or_default());
        let limits = change.apply_to(volume.limits);
        validate_limits(limits)?;
        volume.limits = limits;
        Ok(answer::Kind::VolumeId(id.to_wire()))
    }
}

pub(super) fn validate_limits(limits: VolumeLimits) -> Result<(), Refusal> {
    for (name, kind, value) in limits.named() {
        let invalid = |error| Refusal::new(Reason::Invalid, format!("{name} {error}"));
        kind.check(value).map_err(invalid)?;
    }
    Ok(())
}

curve_types::convert_limits!(log::VolumeLimits);

/// None for a volume without limits, as most are.
pub(super) fn store_limits(limits: VolumeLimits) -> Option<log::VolumeLimits> {
    (limits != VolumeLimits::default()).then(|| LimitsChange::from(limits).into())
}

pub(super) fn load_limits(stored: Option<log::VolumeLimits>) -> VolumeLimits {
    LimitsChange::from(stored.unwrap_or_default()).apply_to(VolumeLimits::default())
}
