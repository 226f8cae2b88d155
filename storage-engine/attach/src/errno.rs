//! Block errors as the kernel and NBD peers know them, each in one exhaustive match.

use curve_client::BlockError;

use crate::nbd::NbdErrno;

/// For NBD replies.
pub fn to_nbd(error: &BlockError) -> NbdErrno {
    match error {
        BlockError::NoSpace => NbdErrno::NoSpace,
        BlockError::OutOfRange { .. } => NbdErrno::Invalid,
        BlockError::ReadOnly => NbdErrno::Perm,
        BlockError::Closed => NbdErrno::Shutdown,
        BlockError::Fenced
        | BlockError::Deleted
        | BlockError::Damaged
        | BlockError::Unavailable { .. }
        | BlockError::Refused { .. } => NbdErrno::Io,
    }
}

/// For FUSE replies. ENOSPC makes file systems go on where EIO would shut them down, so it is only
/// for what more room can cure.
pub fn to_fuse(error: &BlockError) -> fuser::Errno {
    match error {
        BlockError::NoSpace => fuser::Errno::ENOSPC,
        BlockError::OutOfRange { .. } => fuser::Errno::EINVAL,
        BlockError::ReadOnly => fuser::Errno::EROFS,
        BlockError::Fenced
        | BlockError::Deleted
        | BlockError::Damaged
        | BlockError::Unavailable { .. }
        | BlockError::Refused { .. }
        | BlockError::Closed => fuser::Errno::EIO,
    }
}
