//! Limits of a volume between their message and their type.

use curve_types::{LimitsChange, VolumeLimits};

use crate::proto;

curve_types::convert_limits!(proto::VolumeLimits);

impl From<VolumeLimits> for proto::VolumeLimits {
    fn from(limits: VolumeLimits) -> Self {
        LimitsChange::from(limits).into()
    }
}

impl From<proto::VolumeLimits> for VolumeLimits {
    /// Absent is unlimited.
    fn from(message: proto::VolumeLimits) -> Self {
        LimitsChange::from(message).apply_to(Self::default())
    }
}
