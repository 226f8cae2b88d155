//! Appends of 4 KiB to a store on a real file, interleaved in one run with the same number of raw
//! writes and fdatasyncs beside it. `cargo run -p curve-store --example append_bench -- DIR`

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use curve_store::{
    Disk, FileDisk, FormatOptions, Group, LogEntry, LogPosition, StateProvider, Store,
    StoreOptions, format,
};
use curve_types::{ClusterId, CopysetId, DeviceId};

const SIZE: u64 = 1 << 30;
/// Entries between two purges.
const PURGE_EVERY: u64 = 2_000;
const ROUND: Duration = Duration::from_millis(1500);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: append_bench DIR (on a real disk)")?;
    let path = Path::new(&dir).join("append-bench.device");
    let raw_path = Path::new(&dir).join("append-bench.raw");
    let disk = Arc::new(FileDisk::open_or_create(&path, SIZE)?);
    let (cluster, device) = (ClusterId::random(), DeviceId::random());
    format(&*disk, &FormatOptions { cluster, device, name: "bench".into(), size: SIZE })?;
    let raw = FileDisk::open_or_create(&raw_path, 64 << 20)?;
    prepare(&raw)?;
    let (store, _) = Store::open(disk, StoreOptions::default())?;
    let group = store.create_group(CopysetId(1), Box::new(|_| ()))?;
    let machine = Arc::new(AppliedAll::default());
    let provider: Arc<dyn StateProvider> = machine.clone();
    group.set_state_provider(&provider);
    let mut next = 0;
    for round in 0..3 {
        let (writes, took) = raw_round(&raw)?;
        report(&format!("round {round} raw 4 KiB write + fdatasync"), writes, took);
        for depth in [1, 8, 32] {
            let (appends, took) = append_round(&group, &machine, depth, &mut next)?;
            report(&format!("round {round} append 4 KiB, {depth} in flight"), appends, took);
        }
    }
    let usage = store.usage();
    println!("{} records in {} batches", usage.wal_records_written, usage.wal_batches_written);
    drop((group, store));
    std::fs::remove_file(path)?;
    std::fs::remove_file(raw_path)?;
    Ok(())
}

/// A state machine that does nothing but count, so that the log can be purged.
#[derive(Default)]
struct AppliedAll(AtomicU64);

impl StateProvider for AppliedAll {
    fn state(&self) -> (Option<LogPosition>, Bytes) {
        (self.0.load(Ordering::Relaxed).checked_sub(1).map(position), Bytes::new())
    }
}

fn position(index: u64) -> LogPosition {
    LogPosition { term: 1, node: DeviceId::default(), index }
}

fn report(what: &str, count: u64, took: Duration) {
    let each = took.as_micros() as f64 / count as f64;
    println!("{what}: {:.0}/s, {each:.1} us each", count as f64 / took.as_secs_f64());
}

/// A page-aligned buffer without unsafe code: the aligned part of a larger one.
fn aligned(bytes: &mut [u8]) -> &mut [u8] {
    let skip = bytes.as_ptr().align_offset(4096);
    &mut bytes[skip..skip + 4096]
}

/// Writes the file once, so that the measured writes need no block allocation.
fn prepare(raw: &FileDisk) -> std::io::Result<()> {
    let mut bytes = vec![0; 8192];
    let block = aligned(&mut bytes);
    (0..raw.len() / 4096).try_for_each(|at| raw.write_at(block, at * 4096))?;
    raw.sync()
}

fn raw_round(raw: &FileDisk) -> std::io::Result<(u64, Duration)> {
    let mut bytes = vec![7; 8192];
    let block = aligned(&mut bytes);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < ROUND {
        raw.write_at(block, count % (raw.len() / 4096) * 4096)?;
        raw.sync()?;
        count += 1;
    }
    Ok((count, start.elapsed()))
}

fn append_round(
    group: &Group,
    machine: &AppliedAll,
    depth: u64,
    next: &mut u64,
) -> Result<(u64, Duration), Box<dyn std::error::Error>> {
    let payload = Bytes::from(vec![5; 4096]);
    let header = Bytes::from(vec![1; 48]);
    let (finished, wait) = mpsc::channel();
    let append = |index: u64| {
        let position = LogPosition { term: 1, node: DeviceId::default(), index };
        let entry =
            LogEntry { position, kind: 1, header: header.clone(), payload: payload.clone() };
        let finished = finished.clone();
        group.append(vec![entry], Box::new(move |result| drop(finished.send(result))))
    };
    let (start, mut count, mut in_flight) = (Instant::now(), 0, 0);
    while start.elapsed() < ROUND || in_flight > 0 {
        while in_flight < depth && start.elapsed() < ROUND {
            append(*next)?;
            *next += 1;
            in_flight += 1;
        }
        if in_flight > 0 {
            wait.recv()??;
            in_flight -= 1;
            count += 1;
        }
        while let Ok(result) = wait.try_recv() {
            result?;
            in_flight -= 1;
            count += 1;
        }
        let applied = *next - in_flight;
        if applied >= machine.0.load(Ordering::Relaxed) + PURGE_EVERY {
            machine.0.store(applied, Ordering::Relaxed);
            group.purge(position(applied - 1), Box::new(|_| ()))?;
        }
    }
    Ok((count, start.elapsed()))
}
