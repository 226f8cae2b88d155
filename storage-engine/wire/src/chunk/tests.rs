//! Messages that come back as they were sent, and those that are refused.

use super::*;

fn range(offset: u32, len: u32) -> ChunkRange {
    let key = ChunkKey { volume: VolumeId::random(), index: ChunkIndex(3) };
    ChunkRange { key, offset, len }
}

/// What a chunkserver makes of the command's frame.
fn received(command: &Command) -> Result<Command, ChunkMessageError> {
    let (head, data) = command.encode();
    let (header, payload) = Command::split(&[&head[..], &data[..]].concat().into())?;
    Command::decode_parts(&header, payload)
}

#[test]
fn commands_survive_the_wire() {
    let writer = Writer { session: SessionId(1), epoch: Epoch(2), seq: 3, floor: 2 };
    let volume = VolumeId::random();
    let commands = [
        Command::Write { range: range(512, 3), writer, data: Bytes::from_static(b"abc") },
        Command::WriteZeroes { range: range(0, 4 << 20), writer },
        Command::Discard { range: range(4096, 8192), writer },
        Command::Fence { volume, min_epoch: Epoch(9) },
        Command::Revoke { volume, session: SessionId(8), min_epoch: Epoch(10) },
        Command::DeleteVolume { volume },
        Command::Snapshot { volume, snapshot: VolumeId::random() },
        Command::Thaw { volume, snapshot: VolumeId::random() },
        Command::Restore { volume, snapshot: VolumeId::random(), epoch: Epoch(3) },
        Command::Digest { scrub: 1 << 40 },
        Command::Split { to: CopysetId(9), shards: ShardRange { first: 64, end: 128 } },
    ];
    for command in commands {
        assert_eq!(received(&command), Ok(command));
    }
    let read = Read { range: range(1, 2), session: SessionId(4), epoch: Epoch(5) };
    assert_eq!(Read::decode(&read.encode()), Ok(read));
    for base in [None, Some(volume)] {
        let key = range(0, 1).key;
        let changes = Changes { key, base, session: SessionId(4), epoch: Epoch(5) };
        assert_eq!(Changes::decode(&changes.encode()), Ok(changes));
        assert!(Changes::decode(&changes.encode()[1..]).is_err());
    }
    let read = PeerRead { key: range(0, 1).key, block: 1023 };
    assert_eq!(PeerRead::decode(&read.encode()), Ok(read));
    let block = PeerBlock { applied: 1 << 40, data: vec![7; BLOCK_SIZE as usize].into() };
    assert_eq!(PeerBlock::decode(&block.encode()), Ok(block.clone()));
    assert!(PeerBlock::decode(&block.encode().slice(1..)).is_err());
}

#[test]
fn a_peer_reads_one_whole_block() {
    for (offset, len) in [(1, 4096), (4096, 4095), (0, 8192)] {
        let header = OpHeader::of(OP_PEER_READ, range(offset, len), Writer::default());
        let decoded = PeerRead::decode(&header.encode());
        assert_eq!(decoded, Err(ChunkMessageError::Range { offset, len }));
    }
}

#[test]
fn a_range_outside_the_chunk_is_refused() {
    for (offset, len) in [(0, 0), (4 << 20, 1), (1, 4 << 20), (u32::MAX, u32::MAX)] {
        let command = Command::Discard { range: range(offset, len), writer: Writer::default() };
        let decoded = received(&command);
        assert_eq!(decoded, Err(ChunkMessageError::Range { offset, len }));
    }
}

#[test]
fn a_payload_of_another_length_is_refused() {
    let data = Bytes::from_static(b"abcd");
    let command = Command::Write { range: range(0, 3), writer: Writer::default(), data };
    let expected = ChunkMessageError::Payload { found: 4, expected: 3 };
    assert_eq!(received(&command), Err(expected));
}

#[test]
fn replies_survive_the_wire() {
    let replies = [
        Ok(Bytes::from_static(b"data")),
        Ok(Bytes::new()),
        Err(ChunkError::NotLeader { leader: Some(DeviceId::random()) }),
        Err(ChunkError::NotLeader { leader: None }),
        Err(ChunkError::NoSuchCopyset),
        Err(ChunkError::Fenced { min_epoch: Epoch(7) }),
        Err(ChunkError::Deleted),
        Err(ChunkError::Stale),
        Err(ChunkError::NoSpace),
        Err(ChunkError::Unavailable),
        Err(ChunkError::BadRequest),
        Err(ChunkError::Forbidden),
        Err(ChunkError::Damaged),
        Err(ChunkError::Frozen),
        Err(ChunkError::Thawed),
        Err(ChunkError::Moved),
    ];
    for reply in replies {
        let (head, data) = encode_reply(&reply);
        let body = [&head[..], &data[..]].concat().into();
        assert_eq!(decode_reply(&body), Ok(reply));
    }
    assert!(decode_reply(&Bytes::new()).is_err());
    assert!(decode_reply(&Bytes::from_static(&[1, 2])).is_err());
    assert!(decode_reply(&Bytes::from_static(&[99])).is_err());
}
