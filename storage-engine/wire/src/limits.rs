//! Limits of a volume between their message and their type.

use curve_types::{LimitsChange, VolumeLimits};

use crate::proto;

impl From<LimitsChange> for proto::VolumeLimits {
    fn from(change: LimitsChange) -> Self {
        let LimitsChange {
            iops,
            read_iops,
            write_iops,
            bytes_per_second,
            read_bytes_per_second,
            write_bytes_per_second,
            burst_seconds,
        } = change;
        Self {
            iops,
            read_iops,
            write_iops,
            bytes_per_second,
            read_bytes_per_second,
            write_bytes_per_second,
            burst_seconds,
        }
    }
}

impl From<proto::VolumeLimits> for LimitsChange {
    fn from(message: proto::VolumeLimits) -> Self {
        let proto::VolumeLimits {
            iops,
            read_iops,
            write_iops,
            bytes_per_second,
            read_bytes_per_second,
            write_bytes_per_second,
            burst_seconds,
        } = message;
        Self {
            iops,
            read_iops,
            write_iops,
            bytes_per_second,
            read_bytes_per_second,
            write_bytes_per_second,
            burst_seconds,
        }
    }
}

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
