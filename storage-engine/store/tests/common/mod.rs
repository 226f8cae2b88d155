//! Shared by the store's tests: simulated devices, waiting for callbacks, made-up entries.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod crashes;
pub mod model;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use curve_store::{
    Done, FormatOptions, Install, LogEntry, LogPosition, RecoveredGroup, SimDisk, StateProvider,
    Store, StoreError, StoreOptions, Written, format_small,
};
use curve_types::{ChunkIndex, ChunkKey, ClusterId, DeviceId, VolumeId};

/// Leader of every made-up entry.
pub fn node() -> DeviceId {
    DeviceId::from_bytes([9; 16])
}

pub fn sim(size: u64, wal_len: u64) -> Arc<SimDisk> {
    sim_small(size, wal_len, u64::MAX)
}

/// Of a device like no other.
pub fn format_options(size: u64) -> FormatOptions {
    let (cluster, device) = (ClusterId::random(), DeviceId::random());
    FormatOptions { cluster, device, name: "test".into(), size }
}

pub fn sim_small(size: u64, wal_len: u64, data_blocks: u64) -> Arc<SimDisk> {
    let disk = SimDisk::new(size);
    format_small(&disk, &format_options(size), wal_len, data_blocks).expect("format");
    Arc::new(disk)
}

pub fn options() -> StoreOptions {
    StoreOptions {
        idle_mark_after: Duration::from_millis(2),
        wal_full_wait: Duration::from_millis(300),
        ..StoreOptions::default()
    }
}

pub fn open(disk: &Arc<SimDisk>) -> (Store, Vec<RecoveredGroup>) {
    open_with(disk, options())
}

pub fn open_with(disk: &Arc<SimDisk>, options: StoreOptions) -> (Store, Vec<RecoveredGroup>) {
    Store::open(disk.clone(), options).expect("open")
}

/// Runs something that takes a callback, and waits for the callback.
pub fn durable<T>(start: impl FnOnce(Done) -> Result<T, StoreError>) -> Result<T, StoreError> {
    let (answer, question) = mpsc::channel();
    let started = start(Box::new(move |result| {
        let _ = answer.send(result);
    }))?;
    question.recv_timeout(Duration::from_secs(60)).expect("the callback comes").map(|()| started)
}

pub fn checkpoint(store: &Store) -> Result<(), StoreError> {
    durable(|done| {
        store.checkpoint(done);
        Ok(())
    })
}

pub fn entry_of(term: u64, index: u64, payload: &[u8]) -> LogEntry {
    LogEntry {
        position: LogPosition { term, node: node(), index },
        kind: 1,
        header: Bytes::copy_from_slice(&index.to_le_bytes()),
        payload: Bytes::copy_from_slice(payload),
    }
}

pub fn entry(term: u64, index: u64, len: usize) -> LogEntry {
    let payload: Vec<u8> = (0..len).map(|i| (i as u64 * 7 + index + term * 3) as u8).collect();
    entry_of(term, index, &payload)
}

/// Puts blocks into an install as if nobody knew when they were written.
pub fn put(install: &Install, key: ChunkKey, offset: u32, data: Vec<u8>) -> Result<(), StoreError> {
    let written = vec![Written::UNKNOWN; data.len() / 4096];
    install.put(key, offset, &data.into(), &written)
}

pub fn chunk(volume: VolumeId, index: u32) -> ChunkKey {
    ChunkKey { volume, index: ChunkIndex(index) }
}

/// A provider that always answers the same.
pub struct Blob(pub Option<LogPosition>, pub Bytes);

impl StateProvider for Blob {
    fn state(&self) -> (Option<LogPosition>, Bytes) {
        (self.0, self.1.clone())
    }
}
