//! Bugs that tests plant to show that they would find them. A build without the feature `planted`
//! has none: every question is answered no when it is compiled.

/// One bug, and what it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The store acknowledges what it has written and not synced.
    AcknowledgeBeforeSync,
    /// The store acknowledges a vote that is not synced.
    SkipVoteSync,
    /// The store gives out blocks again to which the last checkpoint still refers.
    ReuseBlockBeforeCheckpoint,
    /// The store takes the last batch of the log for one that was torn, and cuts it.
    TruncateAcknowledged,
    /// A copyset carries out the writes of an attachment that was fenced.
    IgnoreEpoch,
    /// A copyset answers that it has taken a snapshot, and has kept nothing.
    EmptySnapshot,
    /// The store never frees what was superseded or deleted.
    LeakBlocks,
}

impl Bug {
    pub const ALL: [(&str, Self); 7] = [
        ("acknowledge-before-sync", Self::AcknowledgeBeforeSync),
        ("skip-vote-sync", Self::SkipVoteSync),
        ("reuse-block-before-checkpoint", Self::ReuseBlockBeforeCheckpoint),
        ("truncate-acknowledged", Self::TruncateAcknowledged),
        ("ignore-epoch", Self::IgnoreEpoch),
        ("empty-snapshot", Self::EmptySnapshot),
        ("leak-blocks", Self::LeakBlocks),
    ];
}

/// One of `Bug`, or `NONE`.
#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(NONE);
#[cfg(feature = "planted")]
const NONE: u8 = u8::MAX;

/// From now on the process has this bug, in the place of any before.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    let planted = bug.map_or(NONE, |bug| bug as u8);
    PLANTED.store(planted, std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "planted")]
pub fn has(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

#[cfg(not(feature = "planted"))]
#[inline(always)]
pub fn has(_: Bug) -> bool {
    false
}
