//! One disk: a write-ahead log shared by all Raft groups on it, and the chunk space of each group.
//!
//! Synchronous: durable completions arrive as callbacks on the disk's IO thread. Nothing here
//! knows Raft, the network or a runtime. Bytes on disk are described in `FORMAT.md`.

mod aligned;
mod alloc;
mod apply;
mod block_set;
mod checkpoint;
mod chunk;
mod codec;
mod core;
mod damage;
mod data;
mod digest;
mod disk;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod group;
mod health;
mod install;
mod log;
mod log_device;
mod payload;
mod recover;
mod repair;
mod root;
pub mod simulate;
mod space;
mod split;
mod store;
mod superblock;
mod touch;
mod upkeep;
mod view;
mod wal;

#[cfg(feature = "sim")]
pub use crate::{disk::SimDisk, superblock::format_small};
pub use apply::Apply;
pub use block_set::BlockSet;
pub use chunk::Written;
pub use digest::HeldTables;
pub use disk::{AsyncReads, Disk, FileDisk};
pub use error::StoreError;
pub use group::Group;
pub use install::{ChunkHead, CopyOf, Install, Keep};
pub use log::{LogEntry, LogPosition, LogState, Vote};
#[cfg(feature = "sim")]
pub use log_device::format_small_with_log;
pub use log_device::{check_blank_log, check_log, format_with_log, with_log};
pub use repair::Repair;
pub use space::{BegunRead, CopyKind, Fetched};
pub use split::NewGroup;
pub use store::{Done, RecoveredGroup, StateProvider, Store, StoreOptions, Usage};
pub use superblock::{DeviceState, FormatOptions, Superblock, format, inspect};
pub use view::{ChunkDelta, ChunkView};
pub use wal::writer::Commits;
