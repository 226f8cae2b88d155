//! What a volume's owner may limit: operations and bytes per second, for reads, writes and both.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// Limits of one attachment of a volume. 0 is no limit, and a volume that nobody limited has none.
///
/// The shape is that of QEMU's throttle groups and of Ceph's `rbd_qos_*`, with one depth for all
/// buckets in seconds instead of six in operations and bytes: that is how long a volume that was
/// idle may run without its limits mattering, which is what people mean by a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VolumeLimits {
    /// Reads and writes together, per second.
    pub iops: u64,
    pub read_iops: u64,
    pub write_iops: u64,
    /// Read and written together.
    pub bytes_per_second: u64,
    pub read_bytes_per_second: u64,
    pub write_bytes_per_second: u64,
    /// What was not used is kept for so long; 0: for as long as smooths single requests.
    pub burst_seconds: u64,
}

/// New values of some limits; the others stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitsChange {
    pub iops: Option<u64>,
    pub read_iops: Option<u64>,
    pub write_iops: Option<u64>,
    pub bytes_per_second: Option<u64>,
    pub read_bytes_per_second: Option<u64>,
    pub write_bytes_per_second: Option<u64>,
    pub burst_seconds: Option<u64>,
}

/// What a limit counts, and so which values make sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitKind {
    Iops,
    BytesPerSecond,
    BurstSeconds,
}

/// Why a value is no limit.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LimitError {
    #[error("is {value}: expected 0 (unlimited) or a number from {min} to {max}")]
    Range { value: u64, min: u64, max: u64 },
    #[error("is {text:?}: expected {expected}, or 0 or unlimited")]
    Text { text: String, expected: &'static str },
}

impl LimitKind {
    /// Fails for what nobody can have meant.
    pub fn check(self, value: u64) -> Result<(), LimitError> {
        let (min, max) = match self {
            // The most is above what any device does, and far from where the arithmetic ends.
            Self::Iops => (1, 1_000_000_000),
            // At the least, the largest request of a front end (32 MiB) is paid off in about the
            // two minutes after which a kernel reports a hung task.
            Self::BytesPerSecond => (1 << 18, 1 << 40),
            Self::BurstSeconds => (1, 3600),
        };
        match value == 0 || (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(LimitError::Range { value, min, max }),
        }
    }
}

impl LimitKind {
    /// Reads a limit as people write it: `500`, `100Mi`, `unlimited`.
    pub fn parse(self, text: &str) -> Result<u64, LimitError> {
        let value = match (self, text) {
            (_, "unlimited") => Some(0),
            (Self::BytesPerSecond, _) => text.parse().ok().map(|size: ByteSize| size.0),
            (Self::Iops | Self::BurstSeconds, _) => text.parse().ok(),
        };
        let expected = match self {
            Self::Iops => "a number per second, for example 500",
            Self::BytesPerSecond => "bytes per second, for example 100Mi",
            Self::BurstSeconds => "a number of seconds, for example 30",
        };
        let value = value.ok_or_else(|| LimitError::Text { text: text.to_owned(), expected })?;
        self.check(value)?;
        Ok(value)
    }
}

impl VolumeLimits {
    /// Every limit with its name.
    pub fn named(&self) -> [(&'static str, LimitKind, u64); 7] {
        let Self {
            iops,
            read_iops,
            write_iops,
            bytes_per_second,
            read_bytes_per_second,
            write_bytes_per_second,
            burst_seconds,
        } = *self;
        [
            ("iops", LimitKind::Iops, iops),
            ("read_iops", LimitKind::Iops, read_iops),
            ("write_iops", LimitKind::Iops, write_iops),
            ("bytes_per_second", LimitKind::BytesPerSecond, bytes_per_second),
            ("read_bytes_per_second", LimitKind::BytesPerSecond, read_bytes_per_second),
            ("write_bytes_per_second", LimitKind::BytesPerSecond, write_bytes_per_second),
            ("burst_seconds", LimitKind::BurstSeconds, burst_seconds),
        ]
    }

    /// Whether nothing is held back.
    pub fn is_unlimited(&self) -> bool {
        self.named().iter().all(|(_, kind, value)| *kind == LimitKind::BurstSeconds || *value == 0)
    }
}

/// The limits that there are, `write_iops 500, burst_seconds 10`, or `none`.
impl fmt::Display for VolumeLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.named().into_iter().filter(|(_, _, value)| *value != 0);
        let each: Vec<String> = set.map(|(name, _, value)| format!("{name} {value}")).collect();
        f.write_str(if each.is_empty() { "none" } else { "" })?;
        f.write_str(&each.join(", "))
    }
}

impl LimitsChange {
    pub fn apply_to(self, before: VolumeLimits) -> VolumeLimits {
        VolumeLimits {
            iops: self.iops.unwrap_or(before.iops),
            read_iops: self.read_iops.unwrap_or(before.read_iops),
            write_iops: self.write_iops.unwrap_or(before.write_iops),
            bytes_per_second: self.bytes_per_second.unwrap_or(before.bytes_per_second),
            read_bytes_per_second: self
                .read_bytes_per_second
                .unwrap_or(before.read_bytes_per_second),
            write_bytes_per_second: self
                .write_bytes_per_second
                .unwrap_or(before.write_bytes_per_second),
            burst_seconds: self.burst_seconds.unwrap_or(before.burst_seconds),
        }
    }

    /// Whether it changes nothing at all, whatever was before.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<VolumeLimits> for LimitsChange {
    fn from(limits: VolumeLimits) -> Self {
        Self {
            iops: Some(limits.iops),
            read_iops: Some(limits.read_iops),
            write_iops: Some(limits.write_iops),
            bytes_per_second: Some(limits.bytes_per_second),
            read_bytes_per_second: Some(limits.read_bytes_per_second),
            write_bytes_per_second: Some(limits.write_bytes_per_second),
            burst_seconds: Some(limits.burst_seconds),
        }
    }
}

/// Turns `LimitsChange` into a message that has the same fields, and back.
#[macro_export]
macro_rules! convert_limits {
    ($message:path) => {
        impl From<$crate::LimitsChange> for $message {
            fn from(change: $crate::LimitsChange) -> Self {
                Self {
                    iops: change.iops,
                    read_iops: change.read_iops,
                    write_iops: change.write_iops,
                    bytes_per_second: change.bytes_per_second,
                    read_bytes_per_second: change.read_bytes_per_second,
                    write_bytes_per_second: change.write_bytes_per_second,
                    burst_seconds: change.burst_seconds,
                }
            }
        }

        impl From<$message> for $crate::LimitsChange {
            fn from(message: $message) -> Self {
                Self {
                    iops: message.iops,
                    read_iops: message.read_iops,
                    write_iops: message.write_iops,
                    bytes_per_second: message.bytes_per_second,
                    read_bytes_per_second: message.read_bytes_per_second,
                    write_bytes_per_second: message.write_bytes_per_second,
                    burst_seconds: message.burst_seconds,
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let before = VolumeLimits { iops: 100, burst_seconds: 5, ..Default::default() };
        let change = LimitsChange { iops: Some(0), write_iops: Some(7), ..Default::default() };
        let after = VolumeLimits { write_iops: 7, burst_seconds: 5, ..Default::default() };
        assert_eq!(change.apply_to(before), after);
        assert_eq!(LimitsChange::from(after).apply_to(before), after);
        assert_eq!(after.to_string(), "write_iops 7, burst_seconds 5");
        assert_eq!(VolumeLimits::default().to_string(), "none");
        assert!(VolumeLimits { burst_seconds: 5, ..Default::default() }.is_unlimited());
    }

    #[test]
    fn a_value_that_makes_no_sense_is_refused_with_what_does() {
        LimitKind::Iops.check(0).expect("unlimited");
        LimitKind::BytesPerSecond.check(1 << 20).expect("a MiB");
        let error = LimitKind::BytesPerSecond.check(4096).expect_err("hangs").to_string();
        assert_eq!(
            error,
            "is 4096: expected 0 (unlimited) or a number from 262144 to 1099511627776"
        );
        LimitKind::BurstSeconds.check(3601).expect_err("too long");
        LimitKind::Iops.check(u64::MAX).expect_err("too many");
    }
}
