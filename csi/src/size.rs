//! How large a volume becomes, given what the orchestrator asks. Pure arithmetic.

use csi_proto::csi::v1::CapacityRange;
use curve_types::{ByteSize, VOLUME_SIZE_MAX};

use crate::error::CsiError;

/// Sizes are multiples of this: fine enough for any claim, coarse enough for every block size.
pub const SIZE_STEP: u64 = 1 << 20;
/// Given when the request bounds nothing.
const SIZE_DEFAULT: u64 = 1 << 30;
/// mkfs.xfs makes no file system on less.
const XFS_SIZE_MIN: u64 = 300 << 20;

/// Bounds of one request, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeRange {
    /// Smallest acceptable.
    pub required: u64,
    /// Largest acceptable; `None` without bound.
    pub limit: Option<u64>,
}

impl SizeRange {
    /// Checks the fields against each other. Absent means "any".
    pub fn parse(range: Option<CapacityRange>) -> Result<Self, CsiError> {
        let range = range.unwrap_or_default();
        let bytes = |value: i64, name: &str| {
            u64::try_from(value).map_err(|_| {
                CsiError::invalid("capacity_range", format!("{name} is negative: {value}"))
            })
        };
        let required = bytes(range.required_bytes, "required_bytes")?;
        let limit = Some(bytes(range.limit_bytes, "limit_bytes")?).filter(|limit| *limit > 0);
        if let Some(limit) = limit.filter(|limit| *limit < required) {
            let reason = format!("limit_bytes {limit} is less than required_bytes {required}");
            return Err(CsiError::invalid("capacity_range", reason));
        }
        Ok(Self { required, limit })
    }

    /// Whether an existing volume satisfies the request.
    pub fn contains(self, size: u64) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }

    /// Size of a new volume: what is required, rounded up. `fs_type` may raise the minimum.
    pub fn plan_create(self, fs_type: Option<&str>) -> Result<u64, CsiError> {
        let least = if fs_type == Some("xfs") { XFS_SIZE_MIN } else { SIZE_STEP };
        let wanted = if self.required > 0 {
            self.required
        } else {
            self.limit.map_or(SIZE_DEFAULT, |limit| SIZE_DEFAULT.min(limit / SIZE_STEP * SIZE_STEP))
        };
        self.round_up(wanted.max(least))
    }

    /// Size of a new volume that begins with the `source` bytes of another: never less than that.
    pub fn plan_clone(self, source: u64) -> Result<u64, CsiError> {
        if self.contains(source) {
            return Ok(source);
        }
        match self.limit {
            Some(limit) if limit < source => {
                let size = ByteSize(source);
                let reason = format!("the source has {size}, limit_bytes is {limit}");
                Err(CsiError::OutOfRange { field: "capacity_range", reason })
            }
            _ => self.round_up(self.required),
        }
    }

    /// Size that a volume of `current` bytes is to have; never less than it has.
    pub fn plan_expand(self, current: u64) -> Result<u64, CsiError> {
        if self.contains(current) {
            return Ok(current);
        }
        if current > self.required {
            let reason = format!(
                "the volume has {} already and volumes do not shrink; limit_bytes is {}",
                ByteSize(current),
                self.limit.unwrap_or(0),
            );
            return Err(CsiError::OutOfRange { field: "capacity_range", reason });
        }
        self.round_up(self.required)
    }

    fn round_up(self, wanted: u64) -> Result<u64, CsiError> {
        let out_of_range = |reason| CsiError::OutOfRange { field: "capacity_range", reason };
        if wanted > VOLUME_SIZE_MAX {
            let (asked, most) = (ByteSize(wanted), ByteSize(VOLUME_SIZE_MAX));
            return Err(out_of_range(format!("{asked} asked, a volume has at most {most}")));
        }
        let size = wanted.next_multiple_of(SIZE_STEP);
        match self.limit {
            Some(limit) if size > limit => Err(out_of_range(format!(
                "the smallest size that serves is {size} bytes ({}), limit_bytes is {limit}",
                ByteSize(size)
            ))),
            _ => Ok(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(required: i64, limit: i64) -> SizeRange {
        let range = CapacityRange { required_bytes: required, limit_bytes: limit };
        SizeRange::parse(Some(range)).expect("consistent")
    }

    #[test]
    fn a_new_volume_is_what_was_asked_rounded_up_to_a_mebibyte() {
        let any = SizeRange::parse(None).expect("absent is fine");
        assert_eq!(any.plan_create(None).expect("default"), SIZE_DEFAULT);
        assert_eq!(range(1, 0).plan_create(None).expect("tiny"), MIB);
        assert_eq!(range(5 << 20, 0).plan_create(None).expect("exact"), 5 * MIB);
        assert_eq!(range((5 << 20) + 1, 0).plan_create(None).expect("odd"), 6 * MIB);
        assert_eq!(range(0, 5 << 20).plan_create(None).expect("only a limit"), 5 * MIB);
    }

    #[test]
    fn a_limit_that_cannot_be_met_is_out_of_range() {
        let odd = (5 << 20) + 1;
        assert!(matches!(range(odd, odd).plan_create(None), Err(CsiError::OutOfRange { .. })));
        assert!(matches!(range(0, 1000).plan_create(None), Err(CsiError::OutOfRange { .. })));
        assert!(matches!(range(i64::MAX, 0).plan_create(None), Err(CsiError::OutOfRange { .. })));
    }

    #[test]
    fn xfs_volumes_are_at_least_what_mkfs_accepts() {
        assert_eq!(range(1, 0).plan_create(Some("xfs")).expect("raised"), XFS_SIZE_MIN);
        let small = range(1, 100 << 20).plan_create(Some("xfs"));
        assert!(matches!(small, Err(CsiError::OutOfRange { .. })));
    }

    #[test]
    fn bounds_that_contradict_each_other_are_refused() {
        for (required, limit) in [(-1, 0), (0, -1), (2, 1)] {
            let range = CapacityRange { required_bytes: required, limit_bytes: limit };
            assert!(matches!(SizeRange::parse(Some(range)), Err(CsiError::Invalid { .. })));
        }
    }

    #[test]
    fn a_clone_is_as_large_as_its_source_or_larger() {
        let any = SizeRange::parse(None).expect("absent is fine");
        assert_eq!(any.plan_clone(8 * MIB).expect("the same"), 8 * MIB);
        assert_eq!(range(1, 8 << 20).plan_clone(8 * MIB).expect("the same"), 8 * MIB);
        assert_eq!(range((9 << 20) + 1, 0).plan_clone(8 * MIB).expect("larger"), 10 * MIB);
        assert!(matches!(range(1, 4 << 20).plan_clone(8 * MIB), Err(CsiError::OutOfRange { .. })));
    }

    #[test]
    fn expansion_never_shrinks() {
        assert_eq!(range(3 << 20, 0).plan_expand(8 * MIB).expect("large already"), 8 * MIB);
        assert_eq!(range(9 << 20, 0).plan_expand(8 * MIB).expect("grows"), 9 * MIB);
        assert!(matches!(range(1, 4 << 20).plan_expand(8 * MIB), Err(CsiError::OutOfRange { .. })));
    }
}
