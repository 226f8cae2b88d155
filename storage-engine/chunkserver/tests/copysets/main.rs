//! Clients against copysets of three replicas: what is acknowledged stays, what is fenced cannot
//! touch anything, strangers get nothing.

mod mds;
mod rig;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use curve_client::pattern::{self, Ledger};
use curve_client::{BlockDevice, BlockError, Volume};
use curve_types::{
    BLOCK_SIZE, ByteSize, CHUNK_SIZE, ChunkIndex, ChunkKey, CopysetId, DeviceId, Epoch, SessionId,
    ShardRange, VolumeId, chunk_shard,
};
use curve_wire::auth::{Credentials, Key, Principal, session_key};
use curve_wire::chunk::{ChunkError, ChunkRange, Command, PeerBlock, PeerRead, Read, Writer};
use curve_wire::proto::{ScrubOrder, ScrubReport};
use curve_wire::rpc::Connection;

use crate::rig::{COPYSETS, Rig, peer_read, propose, read};

const DEVICE: ByteSize = ByteSize(256 << 20);
const SIZE: u64 = 64 << 20;
const BLOCK: usize = BLOCK_SIZE as usize;

fn copyset_of(key: ChunkKey) -> CopysetId {
    let shard = chunk_shard(key);
    let at = ShardRange::divide(COPYSETS).position(|range| range.contains(shard));
    CopysetId(at.expect("every shard has an owner") as u32 + 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_reads_back_what_was_written_at_any_alignment() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let mut model = vec![0u8; 12 << 20];
    let chunk = CHUNK_SIZE;
    let ranges = [
        (0, 4096),
        (chunk - 512, 1024),
        (2 * chunk - 4096, 8192),
        (1536, 512),
        (chunk / 2 - 1, 3 << 20),
        (4096, 2 * chunk + 77),
    ];
    for (fill, (offset, len)) in (1..).zip(ranges) {
        let data = vec![fill; len as usize];
        volume.write(offset, Bytes::from(data.clone())).await?;
        model[offset as usize..][..len as usize].copy_from_slice(&data);
    }
    volume.discard(chunk - 5000, 10_000).await?;
    // Whole blocks only: of 4189304..4199304 these are 4190208..4198400.
    model[4_190_208..4_198_400].fill(0);
    volume.write_zeroes(100, 5000).await?;
    model[100..5100].fill(0);
    volume.flush().await?;
    let found = volume.read(0, model.len() as u32).await?;
    let differs = found.iter().zip(&model).position(|(a, b)| a != b);
    ensure!(differs.is_none(), "first difference at byte {differs:?}");
    let past = volume.read(SIZE - 100, 101).await;
    ensure!(matches!(past, Err(BlockError::OutOfRange { .. })), "{past:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_writes_in_flight_leave_one_of_them_whole() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let offset = CHUNK_SIZE - 2 * BLOCK_SIZE;
    let writes = (1..=16u8).map(|fill| {
        let data = Bytes::from(vec![fill; 4 * BLOCK]);
        volume.write(offset, data)
    });
    for written in futures::future::join_all(writes).await {
        written?;
    }
    let found = volume.read(offset, 4 * BLOCK as u32).await?;
    ensure!(found.iter().all(|byte| *byte == 16), "the last call wins: found {}", found[0]);
    Ok(())
}

/// Writes self-describing blocks until told to stop.
async fn write_pattern(volume: Volume, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) -> Result<u64> {
    let blocks = SIZE / BLOCK_SIZE;
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let count = rand::random_range(1..=8);
        let first = rand::random_range(0..blocks - count);
        let version = ledger.sending(first, count);
        volume.write(first * BLOCK_SIZE, pattern::fill(first, count, version)).await?;
        ledger.acknowledged(first, count, version);
        written += 1;
    }
    Ok(written)
}

async fn check_pattern(volume: &Volume, ledger: &Ledger) -> Result<()> {
    for block in ledger.blocks() {
        let found = volume.read(block * BLOCK_SIZE, BLOCK as u32).await?;
        ledger.check(block, &found)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_leaders_lose_power_under_load() -> Result<()> {
    let mut rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    // One writer: versions of one block must rise in the order of acknowledgement.
    let writer = tokio::spawn(write_pattern(volume.clone(), ledger.clone(), stop.clone()));
    for copyset in [CopysetId(1), CopysetId(2)] {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let leader = rig.leader(copyset).await?;
        rig.power_off(leader).await?;
        rig.leader(copyset).await?;
        tokio::time::sleep(Duration::from_millis(400)).await;
        rig.power_on(leader).await?;
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.await??;
    ensure!(written > 20, "only {written} writes");
    check_pattern(&volume, &ledger).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_all_lose_power_at_once() -> Result<()> {
    let mut rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_pattern(volume.clone(), ledger.clone(), stop.clone()));
    tokio::time::sleep(Duration::from_millis(800)).await;
    for number in 0..3 {
        rig.power_off(number).await?;
    }
    for number in 0..3 {
        rig.power_on(number).await?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    writer.await??;
    check_pattern(&volume, &ledger).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_session_can_neither_write_nor_read() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let id = VolumeId::random();
    let old = rig.open(&rig.session(id, SIZE)?).await?;
    old.write(0, Bytes::from(vec![1; BLOCK])).await?;
    let session = rig.session(id, SIZE)?;
    rig.command_everywhere(&Command::Fence { volume: id, min_epoch: session.epoch }).await?;
    let new = rig.open(&session).await?;
    new.write(0, Bytes::from(vec![2; BLOCK])).await?;
    ensure!(old.write(0, Bytes::from(vec![3; BLOCK])).await == Err(BlockError::Fenced));
    ensure!(old.is_ended(), "fenced for good");
    ensure!(old.read(0, 512).await == Err(BlockError::Fenced));
    ensure!(old.flush().await == Err(BlockError::Fenced));
    ensure!(new.read(0, BLOCK as u32).await? == vec![2; BLOCK]);
    // Straight to the leader, without a client that remembers that it is fenced.
    let key = ChunkKey { volume: id, index: ChunkIndex(0) };
    let copyset = copyset_of(key);
    let (session, epoch) = (old.session().id, old.session().epoch);
    let principal = Principal::Session { session, volume: id, epoch, read_only: false };
    let connection = rig.connect(rig.leader(copyset).await?, principal).await?;
    let range = ChunkRange { key, offset: 0, len: 512 };
    let fenced = Err(ChunkError::Fenced { min_epoch: new.session().epoch });
    ensure!(read(&connection, copyset, Read { range, session, epoch }).await? == fenced);
    let writer = Writer { session, epoch, seq: 99, floor: 99 };
    let zero = Command::WriteZeroes { range, writer };
    ensure!(propose(&connection, copyset, &zero).await? == fenced);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_duplicate_and_an_earlier_incarnation_change_nothing() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let id = VolumeId::random();
    let granted = rig.session(id, SIZE)?;
    let volume = rig.open(&granted).await?;
    for fill in 1..=3 {
        volume.write(0, Bytes::from(vec![fill; BLOCK])).await?;
    }
    let key = ChunkKey { volume: id, index: ChunkIndex(0) };
    let copyset = copyset_of(key);
    let (session, epoch) = (granted.id, granted.epoch);
    let principal = Principal::Session { session, volume: id, epoch, read_only: false };
    let connection = rig.connect(rig.leader(copyset).await?, principal).await?;
    let range = ChunkRange { key, offset: 0, len: BLOCK as u32 };
    let late =
        |seq| Command::WriteZeroes { range, writer: Writer { session, epoch, seq, floor: 1 } };
    ensure!(propose(&connection, copyset, &late(1)).await? == Err(ChunkError::Stale));
    let resumed = rig.open(&granted.clone().next_incarnation()).await?;
    let reply = propose(&connection, copyset, &late(100)).await?;
    ensure!(matches!(reply, Err(ChunkError::Fenced { .. })), "{reply:?}");
    ensure!(volume.write(0, Bytes::from(vec![9; BLOCK])).await == Err(BlockError::Fenced));
    ensure!(resumed.read(0, BLOCK as u32).await? == vec![3; BLOCK]);
    resumed.write(0, Bytes::from(vec![4; BLOCK])).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_other_sessions_are_refused() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let (own, other) = (VolumeId::random(), VolumeId::random());
    let principal = |volume| Principal::Session {
        session: SessionId(70),
        volume,
        epoch: Epoch::of_attachment(7),
        read_only: false,
    };
    let stranger = Credentials::peer(Principal::Mds { device: DeviceId::random() }, &Key::random());
    let refused = Connection::open(rig.address(0), &stranger, rig.device(0)).await;
    ensure!(refused.is_err(), "a stranger got a connection");
    // A session's key is good for its own claim only.
    let key = session_key(&Key::random(), &principal(own));
    let forged = Credentials::session(principal(other), key);
    ensure!(Connection::open(rig.address(0), &forged, rig.device(0)).await.is_err());

    let copyset = CopysetId(1);
    let connection = rig.connect(rig.leader(copyset).await?, principal(own)).await?;
    let range = |volume| {
        let key = ChunkKey { volume, index: ChunkIndex(0) };
        ChunkRange { key, offset: 0, len: 512 }
    };
    let good = Writer { session: SessionId(70), epoch: Epoch::of_attachment(7), seq: 1, floor: 1 };
    let forbidden = [
        Command::WriteZeroes { range: range(other), writer: good },
        Command::WriteZeroes {
            range: range(own),
            writer: Writer { session: SessionId(71), ..good },
        },
        Command::WriteZeroes {
            range: range(own),
            writer: Writer { epoch: Epoch::of_attachment(8), ..good },
        },
        Command::Fence { volume: own, min_epoch: Epoch::of_attachment(9) },
        Command::DeleteVolume { volume: own },
    ];
    for command in forbidden {
        let reply = propose(&connection, copyset, &command).await?;
        ensure!(reply == Err(ChunkError::Forbidden), "{command:?}: {reply:?}");
    }
    let elsewhere =
        Read { range: range(other), session: SessionId(70), epoch: Epoch::of_attachment(7) };
    ensure!(read(&connection, copyset, elsewhere).await? == Err(ChunkError::Forbidden));
    let unknown = Command::WriteZeroes { range: range(own), writer: good };
    let nowhere = propose(&connection, CopysetId(77), &unknown).await?;
    ensure!(nowhere == Err(ChunkError::NoSuchCopyset), "{nowhere:?}");
    ensure!(propose(&connection, copyset, &unknown).await? == Ok(Bytes::new()));
    // A session's Raft frame, and a frame of no known kind.
    for kind in [0x0101, 0x0300] {
        let raft = connection.call(kind, copyset.0, Bytes::from_static(b"?"), Bytes::new());
        let answer = tokio::time::timeout(Duration::from_secs(5), raft).await;
        ensure!(answer.is_ok(), "kind {kind:#x} was not answered");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_device_says_so_and_can_be_emptied() -> Result<()> {
    let rig = Rig::start(ByteSize(64 << 20)).await?;
    let id = VolumeId::random();
    let volume = rig.open(&rig.session(id, SIZE)?).await?;
    let piece = Bytes::from(vec![7; 1 << 20]);
    let mut full = None;
    for at in 0..SIZE >> 20 {
        match volume.write(at << 20, piece.clone()).await {
            Ok(()) => {}
            Err(error) => {
                full = Some((at, error));
                break;
            }
        }
    }
    let (at, error) = full.expect("64 MiB do not fit on a device of 64 MiB");
    ensure!(error == BlockError::NoSpace, "{error}");
    ensure!(at > 8, "only {at} MiB fit");
    ensure!(volume.read(0, 1 << 20).await? == piece, "what was written is still readable");
    rig.command_everywhere(&Command::DeleteVolume { volume: id }).await?;
    ensure!(volume.write(0, piece.clone()).await == Err(BlockError::Deleted));
    let next = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    next.write(0, piece).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copyset_with_a_full_device_takes_no_writes_until_there_is_room_again() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let copyset = |at: u64| {
        copyset_of(ChunkKey { volume: volume.session().volume, index: ChunkIndex(at as u32) })
    };
    let other = (1..SIZE / CHUNK_SIZE).find(|at| copyset(*at) != copyset(0));
    let other = other.expect("16 chunks in more than one copyset") * CHUNK_SIZE;
    let piece = Bytes::from(vec![7; 2 * BLOCK]);
    volume.write(0, piece.clone()).await?;
    rig.set_full(&[copyset(0)]);
    ensure!(volume.write(0, piece.clone()).await == Err(BlockError::NoSpace));
    volume.write(other, piece.clone()).await?;
    ensure!(volume.read(0, 2 * BLOCK as u32).await? == piece);
    volume.discard(0, BLOCK as u64).await?;
    rig.set_full(&[]);
    volume.write(0, piece).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_without_a_quorum_waits_and_then_fails_by_its_deadline() -> Result<()> {
    let mut rig = Rig::start(DEVICE).await?;
    let session = rig.session(VolumeId::random(), SIZE)?;
    let volume = rig.open_impatient(&session, Duration::from_secs(2)).await?;
    volume.write(0, Bytes::from(vec![1; BLOCK])).await?;
    rig.power_off(0).await?;
    rig.power_off(1).await?;
    let failed = volume.write(0, Bytes::from(vec![2; BLOCK])).await;
    ensure!(matches!(failed, Err(BlockError::Unavailable { .. })), "{failed:?}");
    rig.power_on(0).await?;
    // An election may take longer than this volume waits for one write.
    let again = async { while volume.write(0, Bytes::from(vec![3; BLOCK])).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(30), again).await?;
    ensure!(volume.read(0, BLOCK as u32).await? == vec![3; BLOCK]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_is_reported_and_the_others_go_on() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    volume.write(0, Bytes::from(vec![1; BLOCK])).await?;
    let leader =
        rig.leader(copyset_of(ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) }));
    let failure = rig.device_failure(leader.await?);
    let (failure, written) = tokio::join!(failure, volume.write(0, Bytes::from(vec![2; BLOCK])));
    ensure!(failure?.contains("at byte"), "names the failed step");
    written?;
    ensure!(volume.read(0, BLOCK as u32).await? == vec![2; BLOCK]);
    Ok(())
}

/// Blocks of one chunk, each with bytes of its own, that every node reads from its device.
async fn stored(rig: &Rig, volume: &Volume, blocks: usize) -> Result<Vec<Vec<u8>>> {
    let block = |n: usize| (0..BLOCK).map(|i| (i * 5 + i / 256 + n * 11) as u8).collect();
    let blocks: Vec<Vec<u8>> = (1..=blocks).map(block).collect();
    volume.write(0, Bytes::from(blocks.concat())).await?;
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    for number in 0..3 {
        // Two nodes have acknowledged it; the third comes after.
        let mut tries = 0;
        while rig.stored(number, key, blocks.len() * BLOCK)? != blocks.concat() {
            tries += 1;
            ensure!(tries < 1000, "node {number} does not apply what was written");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rig.checkpoint(number).await?;
    }
    Ok(blocks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_repairs_what_it_finds_damaged_from_whoever_has_it() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let blocks = stored(&rig, &volume, 8).await?;
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    let leader = rig.leader(copyset_of(key)).await?;
    // Two of the blocks here, and one of them at one of the two others as well.
    for (number, block) in [(leader, 2), (leader, 5), ((leader + 1) % 3, 5)] {
        ensure!(rig.damage(number, &blocks[block]) > 0, "node {number} has no block {block}");
    }
    ensure!(volume.read(0, (8 * BLOCK) as u32).await? == blocks.concat());
    let repaired =
        "curve_chunkserver_block_repairs_total{found_by=\"read\",outcome=\"repaired\"} 2\n";
    let metrics = rig.metrics(leader)?;
    ensure!(metrics.contains(repaired), "{metrics}");
    ensure!(volume.read(0, (8 * BLOCK) as u32).await? == blocks.concat());
    ensure!(rig.metrics(leader)?.contains(repaired), "repaired once and for all");
    Ok(())
}

fn order(copyset: CopysetId, number: u64) -> ScrubOrder {
    ScrubOrder { copyset: copyset.0, number, walk: true, ..ScrubOrder::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_repaired_by_a_leader_that_is_written_to() -> Result<()> {
    let mut rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let blocks = stored(&rig, &volume, 4).await?;
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    let copyset = copyset_of(key);
    let leader = rig.leader(copyset).await?;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    ensure!(rig.damage(follower, &blocks[2]) > 0, "no such block");
    rig.power_off(other).await?;
    rig.scrub(follower, vec![order(copyset, 1)])?;
    let scrubbed = rig.scrubbed(follower, copyset, |report| report.ended);
    tokio::pin!(scrubbed);
    let report = loop {
        tokio::select! {
            report = &mut scrubbed => break report?,
            written = volume.write(0, blocks[0].clone().into()) => written?,
        }
    };
    ensure!((report.repaired, report.lost, report.unrepaired) == (1, 0, 0), "{report:?}");
    Ok(())
}

/// On a replica that does not lead, so that no client's read finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_repairs_what_nobody_reads() -> Result<()> {
    let mut rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let blocks = stored(&rig, &volume, 200).await?;
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    let copyset = copyset_of(key);
    let follower = (rig.leader(copyset).await? + 1) % 3;
    // Two in one read of the scrub, and one in another.
    for block in [3, 5, 150] {
        ensure!(rig.damage(follower, &blocks[block]) > 0, "no block {block}");
    }
    rig.scrub(follower, vec![order(copyset, 1)])?;
    let report = rig.scrubbed(follower, copyset, |report| report.ended).await?;
    ensure!((report.repaired, report.lost, report.unrepaired) == (3, 0, 0), "{report:?}");
    ensure!(report.chunks_read == report.chunks && report.chunks > 0, "{report:?}");
    let repaired = "block_repairs_total{found_by=\"scrub\",outcome=\"repaired\"} 3\n";
    ensure!(rig.metrics(follower)?.contains(repaired));

    // On the device, and whole: a walk that reads it there finds nothing more.
    rig.checkpoint(follower).await?;
    rig.scrub(follower, vec![order(copyset, 2)])?;
    let again = |report: &ScrubReport| report.number == 2 && report.ended;
    let report = rig.scrubbed(follower, copyset, again).await?;
    ensure!(report.repaired == 0 && report.bytes_read >= 200 * BLOCK as u64, "{report:?}");
    ensure!(rig.metrics(follower)?.contains("\ncurve_chunkserver_scrub_walks_total 2\n"));
    rig.power_off(follower).await?;
    rig.power_on(follower).await?;
    ensure!(rig.stored(follower, key, blocks.len() * BLOCK)? == blocks.concat());
    Ok(())
}

/// Reports of all three replicas, once they have digests at one index.
async fn digests(rig: &Rig, copyset: CopysetId, number: u64) -> Result<Vec<ScrubReport>> {
    let wanted = ScrubOrder { digest: true, ..order(copyset, number) };
    for node in 0..3 {
        rig.scrub(node, vec![wanted])?;
    }
    let is_done =
        |report: &ScrubReport| report.number == number && report.ended && report.digest.is_some();
    for _ in 0..10 {
        let mut reports = Vec::new();
        for node in 0..3 {
            reports.push(rig.scrubbed(node, copyset, is_done).await?);
        }
        let indices: BTreeSet<_> =
            reports.iter().filter_map(|report| Some(report.digest?.index)).collect();
        if indices.len() == 1 {
            return Ok(reports);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    anyhow::bail!("no digests at one index")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digests_are_alike_on_all_replicas_until_one_has_another_copy() -> Result<()> {
    let mut rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    stored(&rig, &volume, 40).await?;
    // Some in memory and some on the device, which differs from node to node.
    rig.checkpoint(0).await?;
    volume.write(700, Bytes::from(vec![9; 3 * BLOCK])).await?;
    volume.discard(16 * BLOCK as u64, 8 * BLOCK as u64).await?;
    rig.checkpoint(1).await?;
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    let copyset = copyset_of(key);
    let value = |report: &ScrubReport| report.digest.and_then(|digest| digest.value);
    let first = digests(&rig, copyset, 1).await?;
    ensure!(value(&first[0]).is_some(), "{first:?}");
    ensure!(first.iter().all(|report| value(report) == value(&first[0])), "{first:?}");

    // A restart changes nothing.
    let away = (rig.leader(copyset).await? + 1) % 3;
    rig.power_off(away).await?;
    rig.power_on(away).await?;
    let second = digests(&rig, copyset, 2).await?;
    ensure!(second.iter().all(|report| value(report) == value(&first[0])), "{second:?}");

    // Its checksum holds, so that no read and no walk finds it.
    rig.diverge(away, key, Bytes::from(vec![7; BLOCK]))?;
    let third = digests(&rig, copyset, 3).await?;
    let found: u64 = third.iter().map(|report| report.repaired + report.lost).sum();
    ensure!(found == 0, "{third:?}");
    for (node, report) in third.iter().enumerate() {
        let alike = value(report) == value(&first[0]);
        ensure!(alike == (node != away), "node {node} of {away}: {third:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_purged_entries_is_sent_what_changed() -> Result<()> {
    let mut rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let mut expected = stored(&rig, &volume, 1000).await?.concat();
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    let away = (rig.leader(copyset_of(key)).await? + 1) % 3;
    let holds =
        |rig: &Rig, expected: &[u8]| anyhow::Ok(rig.stored(away, key, expected.len())? == expected);
    // More than the unit in which the store remembers when a block was written.
    for fill in 0..130 {
        volume.write(0, Bytes::from(vec![fill; BLOCK])).await?;
    }
    expected[..BLOCK].fill(129);
    while !holds(&rig, &expected)? {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What it has applied is where it starts from.
    rig.checkpoint(away).await?;
    rig.power_off(away).await?;
    // Several times what the log holds.
    let rewritten = 8 * BLOCK..24 * BLOCK;
    for fill in 0..800u32 {
        let data = Bytes::from(vec![fill as u8; rewritten.len()]);
        volume.write(rewritten.start as u64, data).await?;
    }
    volume.discard(100 * BLOCK_SIZE, 50 * BLOCK_SIZE).await?;
    expected[rewritten].fill(799u32 as u8);
    expected[100 * BLOCK..150 * BLOCK].fill(0);
    rig.power_on(away).await?;
    let value = |metrics: &str, name: &str| {
        let (_, value) = metrics.split_once(&format!("\ncurve_raft_{name}_total "))?;
        value.lines().next()?.parse::<u64>().ok()
    };
    until(&rig, away, |metrics| value(metrics, "snapshots_installed") > Some(0)).await?;
    let received = value(&rig.metrics(away)?, "snapshot_received_bytes").expect("counted");
    ensure!(received < 1 << 20, "{received} bytes for 64 KiB that changed");
    let mut tries = 0;
    while !holds(&rig, &expected)? {
        tries += 1;
        ensure!(tries < 1000, "the replica does not catch up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // In a checkpoint, not only in memory.
    rig.power_off(away).await?;
    rig.power_on(away).await?;
    ensure!(holds(&rig, &expected)?);
    Ok(())
}

/// Waits until a node exports what is wanted.
async fn until(rig: &Rig, number: usize, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for _ in 0..1000 {
        if wanted(&rig.metrics(number)?) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("not within 20 s: {}", rig.metrics(number)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_does_not_keep_a_block_from_being_repaired() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let blocks = stored(&rig, &volume, 1).await?;
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    let leader = rig.leader(copyset_of(key)).await?;
    let peers = [(leader + 1) % 3, (leader + 2) % 3];
    let asked_first = if rig.device(peers[0]) < rig.device(peers[1]) { peers[0] } else { peers[1] };
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    rig.mislead(leader, asked_first, &silent)?;
    ensure!(rig.damage(leader, &blocks[0]) > 0);
    ensure!(volume.read(0, BLOCK as u32).await? == blocks[0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn part_of_a_damaged_block_is_written_and_the_rest_comes_from_a_peer() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let mut blocks = stored(&rig, &volume, 3).await?;
    let key = ChunkKey { volume: volume.session().volume, index: ChunkIndex(0) };
    let leader = rig.leader(copyset_of(key)).await?;
    ensure!(rig.damage(leader, &blocks[1]) > 0);
    volume.write(BLOCK_SIZE + 512, Bytes::from(vec![9; 512])).await?;
    blocks[1][512..1024].fill(9);
    ensure!(volume.read(0, (3 * BLOCK) as u32).await? == blocks.concat());
    let metrics = rig.metrics(leader)?;
    ensure!(
        metrics.contains("block_repairs_total{found_by=\"read\",outcome=\"repaired\"} 1\n"),
        "{metrics}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_nobody_has_is_an_error_until_it_is_written() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let volume = rig.open(&rig.session(VolumeId::random(), SIZE)?).await?;
    let blocks = stored(&rig, &volume, 2).await?;
    for number in 0..3 {
        ensure!(rig.damage(number, &blocks[1]) > 0);
    }
    ensure!(volume.read(0, (2 * BLOCK) as u32).await == Err(BlockError::Damaged));
    ensure!(volume.read(0, BLOCK as u32).await? == blocks[0], "the other is not concerned");
    volume.write(BLOCK_SIZE, Bytes::from(vec![9; BLOCK])).await?;
    ensure!(volume.read(BLOCK_SIZE, BLOCK as u32).await? == vec![9; BLOCK]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_of_a_copyset_read_blocks_of_its_replicas() -> Result<()> {
    let rig = Rig::start(DEVICE).await?;
    let session = rig.session(VolumeId::random(), SIZE)?;
    let volume = rig.open(&session).await?;
    volume.write(0, Bytes::from(vec![5; BLOCK])).await?;
    let key = ChunkKey { volume: session.volume, index: ChunkIndex(0) };
    let copyset = copyset_of(key);
    let leader = rig.leader(copyset).await?;
    let own = Principal::Session {
        session: session.id,
        volume: session.volume,
        epoch: session.epoch,
        read_only: false,
    };
    let (member, other) = (rig.device((leader + 1) % 3), DeviceId::random());
    let strangers = [own, Principal::Mds { device: other }, Principal::Peer { device: other }];
    for principal in strangers {
        let connection = rig.connect(leader, principal).await?;
        let reply = peer_read(&connection, copyset, PeerRead { key, block: 0 }).await?;
        ensure!(reply == Err(ChunkError::Forbidden), "{principal:?}: {reply:?}");
    }
    let connection = rig.connect(leader, Principal::Peer { device: member }).await?;
    let reply = peer_read(&connection, copyset, PeerRead { key, block: 0 }).await?;
    ensure!(PeerBlock::decode(&reply?)?.data == vec![5; BLOCK]);
    let reply = peer_read(&connection, CopysetId(77), PeerRead { key, block: 0 }).await?;
    ensure!(reply == Err(ChunkError::NoSuchCopyset));
    Ok(())
}
