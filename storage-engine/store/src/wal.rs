//! The write-ahead log: one ring of 4 KiB-aligned batches for all groups of the disk.
//!
//! `format` is its bytes, `space` the accounting of the ring, `queue` what waits to be written,
//! `writer` the IO thread, `scan` reading it back at open, `ring` raw access.

pub(crate) mod format;
pub(crate) mod queue;
pub(crate) mod ring;
pub(crate) mod scan;
pub(crate) mod space;
pub(crate) mod writer;
