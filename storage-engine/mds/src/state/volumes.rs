//! Commands about volumes, who may attach them, and who has.
//!
//! Whatever raises a volume's epoch or revokes a session of it answers with the epoch; the caller
//! must see every copyset enforce both (`Volume::owes_fence`) before it lets anyone act on the
//! answer.

use std::collections::{BTreeMap, BTreeSet};

use curve_types::{ByteSize, Epoch, PoolId, SessionId, VOLUME_SIZE_MAX, VolumeId};

use super::apply::{Applied, done, validate_name, volume_id};
use super::limits::{load_limits, validate_limits};
use super::{Publication, Reason, Refusal, Session, State, Volume};
use crate::log::{self, WireId, answer};

/// Smallest volume. A file system needs about that much anyway.
const VOLUME_SIZE_MIN: u64 = 1 << 20;
/// Volumes are addressed in sectors of this size.
const SECTOR: u64 = 512;
/// Sessions that may be revoked at one epoch. Copysets remember each, in a table of 256 sessions.
const REVOKED_MAX: u32 = 100;

impl State {
    pub(super) fn create_volume(&mut self, create: log::CreateVolume, now_ms: u64) -> Applied {
        validate_name("volume name", &create.name)?;
        let limits = load_limits(create.limits);
        validate_limits(limits)?;
        let id = volume_id(&create.volume_id)?;
        let source = match create.source_id.is_empty() {
            true => None,
            false => Some(volume_id(&create.source_id)?),
        };
        // Of a volume that was cloned before and whose source is gone by now, what it has counts.
        let cloned = self
            .volume_by_name(&create.name)
            .filter(|(_, volume)| source.is_some() && volume.source == source);
        let (pool, size) = match (source, cloned) {
            (Some(_), Some((_, volume))) => {
                let size = if create.size == 0 { volume.size } else { create.size };
                (self.pool_or(&create.pool, volume.pool)?, size)
            }
            (Some(source), None) => self.validate_source(source, &create.pool, create.size)?,
            (None, _) => (self.pool_named(&create.pool)?, create.size),
        };
        validate_size(size)?;
        if let Some((existing, volume)) = self.volume_by_name(&create.name) {
            let found = (volume.pool, volume.size, volume.limits, volume.source);
            if found == (pool, size, limits, source) {
                return Ok(answer::Kind::VolumeId(existing.to_wire()));
            }
            let message = format!(
                "volume {:?} exists with other properties: {} in pool {:?}, limits: {}, made from {}",
                volume.name,
                ByteSize(volume.size),
                self.pools[&volume.pool].name,
                volume.limits,
                volume.source.map_or("nothing".to_owned(), |source| self.name_of(source))
            );
            return Err(Refusal::new(Reason::AlreadyExists, message));
        }
        self.check_ready(pool)?;
        self.check_room(pool, size)?;
        let volume = Volume {
            name: create.name.clone(),
            pool,
            size,
            // Taking the data over is done at an epoch, as an attachment is.
            epoch: source.map_or(Epoch(0), |_| Epoch(0).next_attachment()),
            fenced_epoch: Epoch(0),
            deleting: false,
            created_unix_ms: now_ms,
            sessions: BTreeMap::new(),
            revoking: BTreeSet::new(),
            revoked: 0,
            publications: BTreeMap::new(),
            limits,
            snapshot: None,
            restoring: source,
            source,
        };
        self.volumes.insert(id, volume);
        self.names.insert(create.name, id);
        Ok(answer::Kind::VolumeId(id.to_wire()))
    }

    pub(super) fn resize_volume(&mut self, resize: log::ResizeVolume) -> Applied {
        validate_size(resize.size)?;
        let id = volume_id(&resize.volume_id)?;
        let volume = self.live_volume(id)?;
        if volume.snapshot.is_some() {
            let name = &volume.name;
            let message = format!(
                "{name:?} is a snapshot, which keeps its size: make a larger volume from it"
            );
            return Err(Refusal::new(Reason::Precondition, message));
        }
        if resize.size < volume.size {
            let message = format!(
                "size is {} and volume {:?} has {}: a volume can only grow",
                ByteSize(resize.size),
                volume.name,
                ByteSize(volume.size)
            );
            return Err(Refusal::new(Reason::Invalid, message));
        }
        let (pool, more) = (volume.pool, resize.size - volume.size);
        if more > 0 {
            self.check_room(pool, more)?;
        }
        self.live_volume(id)?.size = resize.size;
        Ok(answer::Kind::VolumeId(id.to_wire()))
    }

    /// Done if absent. The name is free at once; the space once every copyset has dropped it.
    pub(super) fn delete_volume(&mut self, delete: log::DeleteVolume) -> Applied {
        let id = volume_id(&delete.volume_id)?;
        let Ok(volume) = self.live_volume(id) else { return done() };
        volume.check_unused(&delete.live_sessions)?;
        self.check_not_restored_from(id)?;
        self.begin_deletion(id);
        done()
    }

    /// From now on it is only there for its chunks to be dropped.
    pub(super) fn begin_deletion(&mut self, id: VolumeId) {
        if let Ok(volume) = self.live_volume(id) {
            volume.deleting = true;
            volume.sessions.clear();
            let name = volume.name.clone();
            self.names.remove(&name);
        }
    }

    /// After every copyset dropped its chunks.
    pub(super) fn forget_volume(&mut self, id: VolumeId) -> Applied {
        if self.volumes.get(&id).is_some_and(|volume| volume.deleting) {
            self.volumes.remove(&id);
        }
        done()
    }

    pub(super) fn publish(&mut self, publish: log::Publish) -> Applied {
        validate_name("node", &publish.node)?;
        let id = volume_id(&publish.volume_id)?;
        self.check_usable(id, publish.read_only)?;
        let volume = self.live_volume(id)?;
        let log::Publish { node, read_only, shared, .. } = publish;
        let wanted = Publication { read_only, shared };
        if let Some(existing) = volume.publications.get(&node) {
            if *existing == wanted {
                return done();
            }
            let message = format!(
                "volume {:?} is published to {node} with read_only {} and shared {}",
                volume.name, existing.read_only, existing.shared
            );
            return Err(Refusal::new(Reason::AlreadyExists, message));
        }
        let tolerant = |publication: &Publication| publication.read_only || publication.shared;
        if let Some((other, existing)) = volume.publications.iter().next()
            && !(tolerant(&wanted) && volume.publications.values().all(tolerant))
        {
            let how = if tolerant(existing) { "already" } else { "exclusively" };
            let message = format!(
                "volume {:?} is published {how} to {other}: unpublish it there first, or publish \
                 it everywhere as shared or read-only",
                volume.name
            );
            return Err(Refusal::new(Reason::Precondition, message));
        }
        volume.publications.insert(node, wanted);
        done()
    }

    /// Answers with the epoch that must be enforced before the caller may go on. A session that the
    /// node still had ends; those of other nodes go on.
    pub(super) fn unpublish(&mut self, unpublish: log::Unpublish) -> Applied {
        let volume = self.live_volume(volume_id(&unpublish.volume_id)?)?;
        let node = unpublish.node;
        let open = |session: &Session| node.is_empty() || session.node == node;
        if volume.sessions.values().any(open) && (node.is_empty() || !volume.revoke(&node)) {
            volume.raise_epoch();
        }
        volume.publications.retain(|name, _| !node.is_empty() && *name != node);
        Ok(answer::Kind::Epoch(volume.epoch.0))
    }

    pub(super) fn open_session(&mut self, open: log::OpenSession) -> Applied {
        validate_name("node", &open.node)?;
        let id = SessionId(self.next_session);
        let volume = volume_id(&open.volume_id)?;
        self.live_volume(volume)?.check_publication(&open)?;
        self.check_usable(volume, open.read_only)?;
        let volume = self.live_volume(volume)?;
        let log::OpenSession { node, read_only, shared, .. } = open.clone();
        let tolerant = read_only || shared;
        let elsewhere = |session: &&Session| session.node != node;
        let joins = tolerant && volume.sessions.values().filter(elsewhere).all(Session::tolerant);
        if !joins {
            volume.check_displaceable(&open)?;
        }
        if !joins || !volume.revoke(&node) {
            volume.raise_epoch();
        }
        let epoch = volume.epoch;
        volume.sessions.insert(id, Session { epoch, node, read_only, shared });
        self.next_session += 1;
        Ok(answer::Kind::Session(log::OpenedSession { id: id.0, epoch: epoch.0 }))
    }

    /// Done if absent.
    pub(super) fn close_session(&mut self, close: log::CloseSession) -> Applied {
        if let Ok(volume) = self.live_volume(volume_id(&close.volume_id)?) {
            volume.sessions.remove(&SessionId(close.session));
        }
        done()
    }

    /// Every copyset of the volume refuses epochs below this one.
    pub(super) fn fenced(&mut self, fenced: log::Fenced) -> Applied {
        let volume = self.live_volume(volume_id(&fenced.volume_id)?)?;
        volume.fenced_epoch = volume.fenced_epoch.max(Epoch(fenced.epoch).min(volume.epoch));
        volume.revoking.retain(|session| !fenced.revoked.contains(&session.0));
        done()
    }

    fn pool_named(&self, name: &str) -> Result<PoolId, Refusal> {
        let missing = || {
            let known: Vec<&str> = self.pools.values().map(|pool| pool.name.as_str()).collect();
            let message = format!("pool is {name:?}: expected one of {}", known.join(", "));
            Refusal::new(Reason::NotFound, message)
        };
        self.pool_by_name(name).map(|(id, _)| id).ok_or_else(missing)
    }

    /// The pool of that name; `default` if it is empty.
    pub(super) fn pool_or(&self, name: &str, default: PoolId) -> Result<PoolId, Refusal> {
        if name.is_empty() { Ok(default) } else { self.pool_named(name) }
    }

    pub(super) fn live_volume(&mut self, id: VolumeId) -> Result<&mut Volume, Refusal> {
        let missing = || Refusal::new(Reason::NotFound, format!("volume {id} does not exist"));
        self.volumes.get_mut(&id).filter(|volume| !volume.deleting).ok_or_else(missing)
    }
}

impl Volume {
    /// That no node has it or may have it.
    pub(super) fn check_unused(&self, live_sessions: &[u64]) -> Result<(), Refusal> {
        let name = &self.name;
        if let Some(node) = self.publications.keys().next() {
            let message =
                format!("volume {name:?} is published to {node}: unpublish it there first");
            return Err(Refusal::new(Reason::Precondition, message));
        }
        let live = |(id, _): &(&SessionId, &Session)| live_sessions.contains(&id.0);
        if let Some((session, Session { node, .. })) = self.sessions.iter().find(live) {
            let message = format!(
                "volume {name:?} is attached on {node} (session {session}): detach it there first"
            );
            return Err(Refusal::new(Reason::Precondition, message));
        }
        Ok(())
    }

    /// Ends every session: from now on only attachments that come later count.
    pub(super) fn raise_epoch(&mut self) {
        self.sessions.clear();
        self.revoking.clear();
        self.revoked = 0;
        self.epoch = self.epoch.next_attachment();
    }

    /// Ends the sessions of one node alone. False, and nothing is done, if no other node has one,
    /// or if too many were ended so: then the epoch has to be raised.
    fn revoke(&mut self, node: &str) -> bool {
        let ends = |(_, session): &(&SessionId, &Session)| session.node == node;
        let ending: Vec<SessionId> = self.sessions.iter().filter(ends).map(|(id, _)| *id).collect();
        let revoked = self.revoked + ending.len() as u32;
        if ending.len() == self.sessions.len() || revoked > REVOKED_MAX {
            return false;
        }
        self.sessions.retain(|id, _| !ending.contains(id));
        self.revoking.extend(ending);
        self.revoked = revoked;
        true
    }

    fn check_publication(&self, open: &log::OpenSession) -> Result<(), Refusal> {
        if open.unpublished_allowed {
            return Ok(());
        }
        let (name, node) = (&self.name, &open.node);
        let message = match self.publications.get(node) {
            None => format!("volume {name:?} is not published to {node}"),
            Some(publication) if publication.read_only && !open.read_only => {
                format!("volume {name:?} is published to {node} read-only: attach it read-only")
            }
            Some(publication) if open.shared && !publication.shared => {
                format!("volume {name:?} is not published to {node} as shared")
            }
            Some(_) => return Ok(()),
        };
        Err(Refusal::new(Reason::Forbidden, message))
    }

    /// A live session on another node stands in the way, unless fencing it was asked for, or its
    /// node may not have the volume and the caller's may.
    fn check_displaceable(&self, open: &log::OpenSession) -> Result<(), Refusal> {
        if open.force {
            return Ok(());
        }
        for (id, session) in &self.sessions {
            let Some(live) = open.live.iter().find(|live| live.id == id.0) else { continue };
            let entitled =
                open.unpublished_allowed || self.publications.contains_key(&session.node);
            if session.node != open.node && entitled {
                let message = format!(
                    "volume {:?} is attached on {} (session {id}, last seen {:.1} s ago): detach \
                     it there, or pass --force to fence it",
                    self.name,
                    session.node,
                    live.age_ms as f64 / 1000.0
                );
                return Err(Refusal::new(Reason::Precondition, message));
            }
        }
        Ok(())
    }
}

fn validate_size(size: u64) -> Result<(), Refusal> {
    let valid = (VOLUME_SIZE_MIN..=VOLUME_SIZE_MAX).contains(&size) && size.is_multiple_of(SECTOR);
    if valid {
        return Ok(());
    }
    let message = format!(
        "size is {size} bytes: expected a multiple of {SECTOR} from {} to {}",
        ByteSize(VOLUME_SIZE_MIN),
        ByteSize(VOLUME_SIZE_MAX)
    );
    Err(Refusal::new(Reason::Invalid, message))
}
