//! Commands about snapshots: how they are taken, what may be made from them, and what they refuse.
//!
//! A snapshot is a volume with an origin, made in two steps: `begin_snapshots` enters it so that
//! whoever leads knows to drop it again, `snapshots_ready` makes it usable once every copyset has
//! taken it.

use std::collections::{BTreeMap, BTreeSet};

use curve_types::{ByteSize, Epoch, PoolId, VolumeId};

use super::apply::{Applied, done, malformed, validate_name, volume_id};
use super::{Reason, Refusal, Snapshot, State, Volume};
use crate::log::{self, WireId, answer, ids_from_wire};

/// Snapshots of one request: each holds up the writes of its volume until all are taken.
const SNAPSHOTS_MAX: usize = 64;
/// Snapshots of one volume: an hourly one for ten days. Each takes room in the tables of every
/// chunk of the volume, in the memory of its chunkservers too.
const SNAPSHOTS_PER_VOLUME_MAX: usize = 256;

impl State {
    /// Enters all of them or none. Answers with their ids, or with those of the same snapshots if
    /// they were taken before.
    pub(super) fn begin_snapshots(&mut self, begin: log::BeginSnapshots, now_ms: u64) -> Applied {
        let wanted = self.validate_snapshots(begin)?;
        let existing: Vec<(VolumeId, &Volume)> =
            wanted.iter().filter_map(|(_, snapshot)| self.volume_by_name(&snapshot.name)).collect();
        if !existing.is_empty() {
            return self.answer_existing(&wanted, &existing);
        }
        wanted.iter().try_for_each(|(_, snapshot)| self.check_number(snapshot))?;
        let ids = wanted.iter().map(|(id, _)| id.to_wire()).collect();
        for (id, snapshot) in wanted {
            self.names.insert(snapshot.name.clone(), id);
            self.volumes.insert(id, Volume { created_unix_ms: now_ms, ..snapshot });
        }
        Ok(answer::Kind::Volumes(log::VolumeIds { ids }))
    }

    /// Whether its volume may have one more.
    fn check_number(&self, snapshot: &Volume) -> Result<(), Refusal> {
        let origin = snapshot.origin();
        let is_sibling = |volume: &&Volume| volume.origin() == origin && !volume.deleting;
        let siblings = self.volumes.values().filter(is_sibling).count();
        if siblings < SNAPSHOTS_PER_VOLUME_MAX {
            return Ok(());
        }
        let message = format!(
            "there are {siblings} snapshots of the volume of {:?}, and {SNAPSHOTS_PER_VOLUME_MAX} \
             are the most: delete some",
            snapshot.name
        );
        Err(Refusal::new(Reason::Exhausted, message))
    }

    /// The records that a request asks for.
    fn validate_snapshots(
        &self,
        begin: log::BeginSnapshots,
    ) -> Result<Vec<(VolumeId, Volume)>, Refusal> {
        let count = begin.snapshots.len();
        if !(1..=SNAPSHOTS_MAX).contains(&count) {
            let message = format!("{count} snapshots are asked for: expected 1 to {SNAPSHOTS_MAX}");
            return Err(Refusal::new(Reason::Invalid, message));
        }
        let mut seen = BTreeSet::new();
        let mut wanted = Vec::new();
        for log::BeginSnapshot { volume_id: origin, name, snapshot_id } in begin.snapshots {
            validate_name("snapshot name", &name)?;
            let (id, origin) = (volume_id(&snapshot_id)?, volume_id(&origin)?);
            let volume = self.found(origin)?;
            if !seen.insert(origin) {
                let message =
                    format!("volume {:?} is listed twice: expected each once", volume.name);
                return Err(Refusal::new(Reason::Invalid, message));
            }
            if volume.snapshot.is_some() {
                let name = &volume.name;
                let message = format!(
                    "{name:?} is a snapshot itself: make a volume from it to take one of that"
                );
                return Err(Refusal::new(Reason::Precondition, message));
            }
            self.check_restored(volume)?;
            if self.is_splitting(volume.pool) {
                let message = format!("a copyset of {:?} is being split: try again", volume.name);
                return Err(Refusal::new(Reason::NotReady, message));
            }
            wanted.push((id, volume.snapshot_record(origin, name)));
        }
        Ok(wanted)
    }

    /// They are the answer if they are of these volumes, all there, and of one moment.
    fn answer_existing(
        &self,
        wanted: &[(VolumeId, Volume)],
        found: &[(VolumeId, &Volume)],
    ) -> Applied {
        let origins: Vec<_> = wanted.iter().map(|(_, record)| record.origin()).collect();
        for (_, volume) in found {
            let name = &volume.name;
            let refusal = if !origins.contains(&volume.origin()) {
                let message = format!(
                    "snapshot {name:?} exists, of an earlier volume of that name: delete it, or \
                     choose another name"
                );
                Refusal::new(Reason::AlreadyExists, message)
            } else if volume.snapshot.as_ref().is_some_and(|snapshot| !snapshot.ready) {
                Refusal::new(Reason::NotReady, format!("snapshot {name:?} is being taken"))
            } else if found.len() < wanted.len()
                || volume.created_unix_ms != found[0].1.created_unix_ms
            {
                let message = format!(
                    "snapshot {name:?} exists, of another moment than the others would be: delete \
                     it, or choose another name"
                );
                Refusal::new(Reason::AlreadyExists, message)
            } else {
                continue;
            };
            return Err(refusal);
        }
        let ids = found.iter().map(|(id, _)| id.to_wire()).collect();
        Ok(answer::Kind::Volumes(log::VolumeIds { ids }))
    }

    /// Every copyset of their volumes has taken them, all at one moment.
    pub(super) fn snapshots_ready(&mut self, ids: log::VolumeIds) -> Applied {
        let ids: Vec<VolumeId> = ids_from_wire(&ids.ids).ok_or_else(|| malformed("volume id"))?;
        for id in &ids {
            if self.found(*id).ok().and_then(|volume| volume.origin()).is_none() {
                let message = format!("snapshot {id} was given up meanwhile");
                return Err(Refusal::new(Reason::NotReady, message));
            }
        }
        for id in ids {
            // The volume may have been grown, and written there, since this one was entered.
            let origin = self.volumes[&id].origin().and_then(|origin| self.found(origin).ok());
            let size = origin.map(|origin| origin.size);
            let volume = self.live_volume(id)?;
            let Some(snapshot) = volume.snapshot.as_mut().filter(|snapshot| !snapshot.ready) else {
                continue;
            };
            snapshot.ready = true;
            volume.size = size.unwrap_or(volume.size);
        }
        done()
    }

    /// Drops those that are not ready. Done if absent.
    pub(super) fn abandon_snapshots(&mut self, ids: log::VolumeIds) -> Applied {
        let ids: Vec<VolumeId> = ids_from_wire(&ids.ids).ok_or_else(|| malformed("volume id"))?;
        for id in ids {
            let found = self.found(id).ok().and_then(|volume| volume.snapshot.as_ref());
            if found.is_some_and(|snapshot| !snapshot.ready) {
                self.begin_deletion(id);
            }
        }
        done()
    }

    /// The volume is to have the data of one of its snapshots; nobody may use it before it has.
    pub(super) fn roll_back(&mut self, rollback: log::Rollback) -> Applied {
        let id = volume_id(&rollback.volume_id)?;
        let from = volume_id(&rollback.snapshot_id)?;
        let volume = self.found(id)?;
        let name = &volume.name;
        if volume.snapshot.is_some() {
            let message = format!("{name:?} is a snapshot: only a volume can be rolled back");
            return Err(Refusal::new(Reason::Precondition, message));
        }
        let (snapshot_name, snapshot) = self.usable_snapshot("snapshot", from)?;
        if snapshot.volume != id {
            let message = format!(
                "snapshot {snapshot_name:?} is of another volume: expected one of volume {name:?}"
            );
            return Err(Refusal::new(Reason::Precondition, message));
        }
        self.check_restored(volume)?;
        volume.check_unused(&rollback.live_sessions)?;
        let volume = self.live_volume(id)?;
        volume.raise_epoch();
        volume.restoring = Some(from);
        Ok(answer::Kind::VolumeId(id.to_wire()))
    }

    /// Every copyset of the volume has taken the snapshot's data over and refuses what is older.
    pub(super) fn restored(&mut self, restored: log::Restored) -> Applied {
        let volume = self.live_volume(volume_id(&restored.volume_id)?)?;
        if volume.restoring.is_some() && volume.epoch == Epoch(restored.epoch) {
            volume.restoring = None;
            volume.fenced_epoch = volume.epoch;
        }
        done()
    }

    /// Pool and size of a volume that is to be made from the snapshot.
    pub(super) fn validate_source(
        &self,
        source: VolumeId,
        pool: &str,
        size: u64,
    ) -> Result<(PoolId, u64), Refusal> {
        self.usable_snapshot("source", source)?;
        let snapshot = &self.volumes[&source];
        let asked = self.pool_or(pool, snapshot.pool)?;
        let name = &snapshot.name;
        if asked != snapshot.pool {
            let own = &self.pools[&snapshot.pool].name;
            let message =
                format!("pool is {pool:?}: expected {own:?}, that of snapshot {name:?}, or none");
            return Err(Refusal::new(Reason::Invalid, message));
        }
        if size != 0 && size < snapshot.size {
            let message = format!(
                "size is {}: expected at least {}, that of snapshot {name:?}",
                ByteSize(size),
                ByteSize(snapshot.size)
            );
            return Err(Refusal::new(Reason::Invalid, message));
        }
        Ok((asked, if size == 0 { snapshot.size } else { size }))
    }

    /// Name and origin of a snapshot that is ready.
    fn usable_snapshot(&self, field: &str, id: VolumeId) -> Result<(&str, &Snapshot), Refusal> {
        let volume = self.found(id)?;
        let name = &volume.name;
        let Some(snapshot) = &volume.snapshot else {
            let message = format!(
                "{field} is volume {name:?}: expected a snapshot; take one first, {name}@NAME"
            );
            return Err(Refusal::new(Reason::Invalid, message));
        };
        volume.check_ready()?;
        Ok((name, snapshot))
    }

    /// Whether the volume may be attached or published in that way now.
    pub(super) fn check_usable(&self, id: VolumeId, read_only: bool) -> Result<(), Refusal> {
        let volume = self.found(id)?;
        if volume.snapshot.is_some() && !read_only {
            let name = &volume.name;
            let message = format!(
                "{name:?} is a snapshot, which nobody can write: use it read-only, or make a \
                 volume from it"
            );
            return Err(Refusal::new(Reason::Precondition, message));
        }
        volume.check_ready()?;
        self.check_restored(volume)
    }

    fn check_restored(&self, volume: &Volume) -> Result<(), Refusal> {
        let Some(source) = volume.restoring else { return Ok(()) };
        let message = format!(
            "volume {:?} cannot be used yet: its data is still being taken over from {}",
            volume.name,
            self.name_of(source)
        );
        Err(Refusal::new(Reason::NotReady, message))
    }

    /// A snapshot must stay for as long as a volume takes its data over.
    pub(super) fn check_not_restored_from(&self, id: VolumeId) -> Result<(), Refusal> {
        let mut live = self.volumes.values().filter(|volume| !volume.deleting);
        let Some(volume) = live.find(|volume| volume.restoring == Some(id)) else { return Ok(()) };
        let message = format!(
            "volume {:?} is still taking over the data of snapshot {}: try again in a moment",
            volume.name,
            self.name_of(id)
        );
        Err(Refusal::new(Reason::Precondition, message))
    }

    /// For messages: the name in quotes, or the id of what is gone.
    pub(super) fn name_of(&self, id: VolumeId) -> String {
        let found = self.volumes.get(&id);
        found.map_or_else(|| id.to_string(), |volume| format!("{:?}", volume.name))
    }

    fn found(&self, id: VolumeId) -> Result<&Volume, Refusal> {
        let missing = || Refusal::new(Reason::NotFound, format!("volume {id} does not exist"));
        self.volumes.get(&id).filter(|volume| !volume.deleting).ok_or_else(missing)
    }
}

impl Volume {
    /// What it is a snapshot of.
    fn origin(&self) -> Option<VolumeId> {
        self.snapshot.as_ref().map(|snapshot| snapshot.volume)
    }

    fn check_ready(&self) -> Result<(), Refusal> {
        if self.snapshot.as_ref().is_none_or(|snapshot| snapshot.ready) {
            return Ok(());
        }
        let message = format!("snapshot {:?} is still being taken", self.name);
        Err(Refusal::new(Reason::NotReady, message))
    }

    /// The record of a snapshot of this volume.
    fn snapshot_record(&self, id: VolumeId, name: String) -> Self {
        Self {
            name: format!("{}@{name}", self.name),
            pool: self.pool,
            size: self.size,
            epoch: Epoch(0),
            fenced_epoch: Epoch(0),
            deleting: false,
            created_unix_ms: 0,
            sessions: BTreeMap::new(),
            revoking: BTreeSet::new(),
            revoked: 0,
            publications: BTreeMap::new(),
            limits: Default::default(),
            snapshot: Some(Snapshot {
                volume: id,
                volume_name: self.name.clone(),
                name,
                ready: false,
            }),
            restoring: None,
            source: None,
        }
    }
}
