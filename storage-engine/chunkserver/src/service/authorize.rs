//! What a principal may ask for. Pure.

use curve_types::{ChunkKey, Epoch, SessionId, VolumeId};
use curve_wire::auth::Principal;
use curve_wire::chunk::{Changes, ChunkError, Command, Read, Writer};

/// Which chunk a command writes and who does, if it does.
pub(super) fn writer(command: &Command) -> Option<(ChunkKey, &Writer)> {
    match command {
        Command::Write { range, writer, .. }
        | Command::WriteZeroes { range, writer }
        | Command::Discard { range, writer } => Some((range.key, writer)),
        Command::Fence { .. }
        | Command::Revoke { .. }
        | Command::DeleteVolume { .. }
        | Command::Snapshot { .. }
        | Command::Thaw { .. }
        | Command::Restore { .. }
        | Command::Digest { .. }
        | Command::Split { .. } => None,
    }
}

/// Sessions change their own volume, the MDS decides about volumes as a whole, nobody does anything else.
pub(super) fn command(principal: &Principal, command: &Command) -> Result<(), ChunkError> {
    match (principal, writer(command)) {
        (Principal::Mds { .. }, None) => Ok(()),
        (Principal::Session { read_only: false, .. }, Some((chunk, writer))) => {
            session(principal, chunk.volume, writer.session, writer.epoch)?;
            if writer.floor <= writer.seq { Ok(()) } else { Err(ChunkError::BadRequest) }
        }
        _ => Err(ChunkError::Forbidden),
    }
}

/// Sessions read their own volume.
pub(super) fn read(principal: &Principal, read: &Read) -> Result<(), ChunkError> {
    session(principal, read.range.key.volume, read.session, read.epoch)
}

/// Sessions compare what they may read with another snapshot of the same volume, which the replica
/// must know both to be.
pub(super) fn changes(principal: &Principal, changes: &Changes) -> Result<(), ChunkError> {
    session(principal, changes.key.volume, changes.session, changes.epoch)
}

fn session(
    principal: &Principal,
    volume: VolumeId,
    id: SessionId,
    epoch: Epoch,
) -> Result<(), ChunkError> {
    match *principal {
        Principal::Session { session: own, volume: own_volume, epoch: granted, .. }
            if own == id && own_volume == volume && epoch.attachment() == granted.attachment() =>
        {
            Ok(())
        }
        _ => Err(ChunkError::Forbidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use curve_types::{ChunkIndex, ChunkKey, CopysetId, DeviceId, ShardRange};
    use curve_wire::chunk::ChunkRange;

    const EPOCH: Epoch = Epoch::of_attachment(3);

    fn write(volume: VolumeId, writer: Writer) -> Command {
        let range =
            ChunkRange { key: ChunkKey { volume, index: ChunkIndex(0) }, offset: 0, len: 1 };
        Command::Write { range, writer, data: Bytes::from_static(b"x") }
    }

    #[test]
    fn a_session_writes_only_what_it_was_given() {
        let volume = VolumeId::random();
        let own = SessionId(7);
        let principal = Principal::Session { session: own, volume, epoch: EPOCH, read_only: false };
        let good = Writer { session: own, epoch: Epoch(EPOCH.0 + 5), seq: 4, floor: 4 };
        assert_eq!(command(&principal, &write(volume, good)), Ok(()));
        let refused = [
            write(VolumeId::random(), good),
            write(volume, Writer { session: SessionId(8), ..good }),
            write(volume, Writer { epoch: Epoch::of_attachment(2), ..good }),
            write(volume, Writer { epoch: Epoch::of_attachment(4), ..good }),
            Command::Fence { volume, min_epoch: EPOCH },
            Command::Revoke { volume, session: own, min_epoch: EPOCH },
            Command::DeleteVolume { volume },
            Command::Snapshot { volume, snapshot: VolumeId::random() },
            Command::Thaw { volume, snapshot: VolumeId::random() },
            Command::Restore { volume, snapshot: VolumeId::random(), epoch: EPOCH },
            Command::Digest { scrub: 1 },
            Command::Split { to: CopysetId(2), shards: ShardRange { first: 0, end: 1 } },
        ];
        for bad in refused {
            assert_eq!(command(&principal, &bad), Err(ChunkError::Forbidden), "{bad:?}");
        }
        let ahead = write(volume, Writer { floor: 5, ..good });
        assert_eq!(command(&principal, &ahead), Err(ChunkError::BadRequest));
        let reader = Principal::Session { session: own, volume, epoch: EPOCH, read_only: true };
        assert_eq!(command(&reader, &write(volume, good)), Err(ChunkError::Forbidden));
        let range =
            ChunkRange { key: ChunkKey { volume, index: ChunkIndex(0) }, offset: 0, len: 1 };
        let asked = Read { range, session: own, epoch: EPOCH };
        assert_eq!(read(&reader, &asked), Ok(()));
        let other = Read { session: SessionId(8), ..asked };
        assert_eq!(read(&reader, &other), Err(ChunkError::Forbidden));
    }

    #[test]
    fn the_mds_fences_and_peers_do_nothing() {
        let volume = VolumeId::random();
        let mds = Principal::Mds { device: DeviceId::random() };
        let peer = Principal::Peer { device: DeviceId::random() };
        let fence = Command::Fence { volume, min_epoch: EPOCH };
        assert_eq!(command(&mds, &fence), Ok(()));
        assert_eq!(command(&mds, &Command::DeleteVolume { volume }), Ok(()));
        let writing = write(volume, Writer::default());
        assert_eq!(command(&mds, &writing), Err(ChunkError::Forbidden));
        assert_eq!(command(&peer, &fence), Err(ChunkError::Forbidden));
        assert_eq!(command(&peer, &writing), Err(ChunkError::Forbidden));
    }
}
