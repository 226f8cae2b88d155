//! What the outside of the engine uses: the MDS client and the volume client.
//!
//! `mds` finds the leader and retries with one request id; `volume` turns block IO into chunk
//! commands for copyset leaders. No front end (NBD, FUSE), no placement decision and no storage
//! lives here.

mod backoff;
mod config;
mod device;
mod mds;
pub mod pattern;
mod session;
mod volume;

pub use config::{ClientConfig, ConfigError};
pub use device::{BlockDevice, BlockError};
pub use mds::{
    AttachOptions, CreatePool, CreateVolume, MdsClient, MdsError, MdsErrorKind, VolumeBy,
};
pub use session::{Session, SessionError};
pub use volume::{Volume, VolumeMetrics, VolumeOptions};
