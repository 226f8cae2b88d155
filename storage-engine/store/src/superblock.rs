//! Identity and layout of a device: the two superblock copies, formatting, and telling a blank
//! device from a foreign one.

use curve_types::{ClusterId, DeviceId};

use crate::{Disk, StoreError};

/// What a device is to become.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    pub cluster: ClusterId,
    /// Granted by the MDS; at once the Raft node id.
    pub device: DeviceId,
    /// Human name of the process that owns the device, at most 255 bytes; for error messages.
    pub name: String,
    /// Bytes of the device to use; a multiple of 4096 is taken by rounding down.
    pub size: u64,
}

/// Identity of a formatted device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    pub cluster: ClusterId,
    pub device: DeviceId,
    pub name: String,
    /// Bytes of the device that the format uses.
    pub size: u64,
}

/// What lies on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceState {
    /// Superblocks are all zero: may be formatted.
    Blank,
    /// Somebody else's bytes: never formatted by us.
    Foreign { what: String },
    /// Ours.
    Formatted(Superblock),
    /// Ours, but unreadable or cut short.
    Damaged { what: String },
}

/// Looks at a device without changing it.
pub fn inspect(_disk: &dyn Disk) -> Result<DeviceState, StoreError> {
    unimplemented!("follows")
}

/// Formats a blank device. Refuses any other.
pub fn format(_disk: &dyn Disk, _options: &FormatOptions) -> Result<Superblock, StoreError> {
    unimplemented!("follows")
}
