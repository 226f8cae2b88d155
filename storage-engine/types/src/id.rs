//! Identities. Each is a type of its own so that one can never be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
        )]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh random identity.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The 16 bytes used on disk and on the wire, in RFC 4122 order.
            pub fn to_bytes(self) -> [u8; 16] {
                *self.0.as_bytes()
            }

            /// Inverse of `to_bytes`.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// True for the all-zero value, which names nothing.
            pub fn is_nil(self) -> bool {
                self.0.is_nil()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Ok(Self(Uuid::parse_str(text)?))
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug, Serialize,
            Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// One Curve cluster, chosen when its first MDS group is formed.
    ClusterId
);
uuid_id!(
    /// One formatted device (or MDS data directory), and at once its Raft node id. A wiped device
    /// comes back under another id, so that it can never vote for what it forgot.
    DeviceId
);
uuid_id!(
    /// One block volume, for its whole life; names may be reused, this is not.
    VolumeId
);

number_id!(
    /// A Raft group of chunkservers, unique in the cluster. Group 0 is the MDS's own.
    CopysetId(u32)
);
number_id!(
    /// A pool, unique in the cluster and never reused.
    PoolId(u32)
);
number_id!(
    /// One attachment of a volume, unique in the cluster and never reused.
    SessionId(u64)
);
number_id!(
    /// Orders the attachments of one volume: a higher epoch fences every lower one. The upper 32
    /// bits count attachments and are raised by the MDS; the lower 32 count how often the holder
    /// of a session resumed it, and are raised by the holder.
    Epoch(u64)
);

/// Width of an epoch's lower half.
const INCARNATION_BITS: u32 = 32;

impl Epoch {
    /// What the MDS grants to a volume's `n`th attachment, before its holder ever restarted.
    pub const fn of_attachment(n: u64) -> Self {
        Self(n << INCARNATION_BITS)
    }

    /// Which of the volume's attachments this is; what a session's key is made for.
    pub const fn attachment(self) -> u64 {
        self.0 >> INCARNATION_BITS
    }

    /// How often the holder of the session has resumed it.
    pub const fn incarnation(self) -> u64 {
        self.0 & ((1 << INCARNATION_BITS) - 1)
    }

    /// Fences every attachment so far, with all their incarnations.
    pub const fn next_attachment(self) -> Self {
        Self::of_attachment(self.attachment() + 1)
    }

    /// Fences what the previous holder of the same session left in flight.
    pub const fn next_incarnation(self) -> Self {
        Self(self.0 + 1)
    }
}

impl CopysetId {
    /// The MDS's own Raft group.
    pub const MDS: Self = Self(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_counts_attachments_above_incarnations() {
        let third = Epoch(3 << 32);
        assert_eq!(Epoch::of_attachment(3), third);
        assert_eq!((third.attachment(), third.incarnation()), (3, 0));
        let resumed = third.next_incarnation().next_incarnation();
        assert_eq!((resumed.attachment(), resumed.incarnation()), (3, 2));
        assert_eq!(Epoch::default().next_attachment(), Epoch::of_attachment(1));
        let last = Epoch(third.0 | u64::from(u32::MAX));
        assert!(third < resumed && resumed < last && last < resumed.next_attachment());
        assert_eq!(resumed.next_attachment(), Epoch::of_attachment(4));
    }
}
