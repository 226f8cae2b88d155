//! Volumes, publications and sessions.

use bytes::Bytes;
use curve_types::{Epoch, LimitsChange, SessionId, VolumeId};
use curve_wire::auth::{Principal, session_key};
use curve_wire::pki::Role;
use curve_wire::proto::mds_volume_server::MdsVolume;
use curve_wire::proto::{
    self, AttachRequest, CreateSnapshotsRequest, CreateSnapshotsResponse, CreateVolumeRequest,
    DeleteVolumeRequest, DeleteVolumeResponse, DetachRequest, DetachResponse, ListSnapshotsRequest,
    ListVolumesRequest, ListVolumesResponse, PublishRequest, PublishResponse, RenewSessionRequest,
    RenewSessionResponse, ResizeVolumeRequest, RollbackRequest, SetLimitsRequest, UnpublishRequest,
    UnpublishResponse, VolumeRef, volume_ref,
};
use tonic::{Code, Request, Response, Status};

use super::caller::Caller;
use super::{Service, volume_id};
use crate::lead::{finish_fence, finish_restoration};
use crate::log::{self, WireId, answer, command::Kind};
use crate::node::not_found;
use crate::state::{DEFAULT_POOL, Session, Volume};
use crate::view::{SESSION_LEASE, Scene};

/// Volumes in one answer to List.
const LIST_MAX: u32 = 1000;

const OWNERS: [Role; 2] = [Role::Csi, Role::Admin];
const LISTERS: [Role; 3] = [Role::Csi, Role::Admin, Role::Operator];
const ATTACHERS: [Role; 2] = [Role::Agent, Role::Admin];
const READERS: [Role; 4] = [Role::Csi, Role::Admin, Role::Operator, Role::Agent];

#[tonic::async_trait]
impl MdsVolume for Service {
    async fn create(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        Caller::require(&request, &OWNERS)?;
        let asked = request.into_inner();
        let source = self.source_id(asked.source.as_ref()).await?;
        let pool = match source {
            None if asked.pool.is_empty() => DEFAULT_POOL.to_owned(),
            _ => asked.pool,
        };
        let id = source.map_or_else(VolumeId::random, VolumeId::random_beside);
        let create = log::CreateVolume {
            volume_id: id.to_wire(),
            name: asked.name,
            pool,
            size: asked.size,
            limits: asked.limits.map(|limits| LimitsChange::from(limits).into()),
            source_id: source.map(VolumeId::to_wire).unwrap_or_default(),
        };
        self.restored_answer(&asked.request_id, Kind::CreateVolume(create)).await
    }

    async fn get(&self, request: Request<VolumeRef>) -> Result<Response<proto::Volume>, Status> {
        let caller = Caller::require(&request, &READERS)?;
        self.0.leading_now().await?;
        let id = self.volume(Some(request.get_ref()), |id, volume| {
            let own = volume.publications.contains_key(&caller.name)
                || volume.sessions.values().any(|session| session.node == caller.name);
            if caller.role == Role::Agent && !own {
                let (name, node) = (&volume.name, &caller.name);
                let message = format!("volume {name:?} is not published to {node}");
                return Err(Status::permission_denied(message));
            }
            Ok(id)
        })??;
        self.volume_message(id)
    }

    async fn list(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        Caller::require(&request, &LISTERS)?;
        self.0.leading_now().await?;
        let ListVolumesRequest { after_name, limit } = request.into_inner();
        let (volumes, more) = self.0.look(|scene| {
            let mut after = scene.state.volumes_after(&after_name);
            let page = after.by_ref().take(page_limit(limit));
            let volumes = page.map(|(id, volume)| message(scene, id, volume)).collect();
            (volumes, after.next().is_some())
        });
        Ok(Response::new(ListVolumesResponse { volumes, more }))
    }

    async fn resize(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        Caller::require(&request, &OWNERS)?;
        self.0.leading_now().await?;
        let asked = request.into_inner();
        let id = self.volume(asked.volume.as_ref(), |id, _| id)?;
        let resize = log::ResizeVolume { volume_id: id.to_wire(), size: asked.size };
        self.volume_answer(&asked.request_id, Kind::ResizeVolume(resize)).await
    }

    async fn set_limits(
        &self,
        request: Request<SetLimitsRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        Caller::require(&request, &OWNERS)?;
        self.0.leading_now().await?;
        let SetLimitsRequest { volume, limits, request_id } = request.into_inner();
        let volume_id = self.volume(volume.as_ref(), |id, _| id)?.to_wire();
        let change = limits.map(|limits| LimitsChange::from(limits).into());
        let set = log::SetLimits { volume_id, change };
        self.volume_answer(&request_id, Kind::SetLimits(set)).await
    }

    async fn delete(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        Caller::require(&request, &OWNERS)?;
        self.0.leading_now().await?;
        let asked = request.into_inner();
        if let Some(id) = self.volume_if_any(asked.volume.as_ref())? {
            let live_sessions = self.live_sessions(id).into_iter().map(|live| live.id).collect();
            let delete = log::DeleteVolume { volume_id: id.to_wire(), live_sessions };
            self.0.mutate(&asked.request_id, Kind::DeleteVolume(delete)).await?;
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        Caller::require(&request, &OWNERS)?;
        self.0.leading_now().await?;
        let PublishRequest { volume, node, read_only, shared, request_id } = request.into_inner();
        let volume_id = self.volume(volume.as_ref(), |id, _| id)?.to_wire();
        let publish = log::Publish { volume_id, node, read_only, shared };
        self.0.mutate(&request_id, Kind::Publish(publish)).await?;
        Ok(Response::new(PublishResponse {}))
    }

    /// Answers once the node's sessions, if it had any, can change nothing any more.
    async fn unpublish(
        &self,
        request: Request<UnpublishRequest>,
    ) -> Result<Response<UnpublishResponse>, Status> {
        Caller::require(&request, &OWNERS)?;
        self.0.leading_now().await?;
        let UnpublishRequest { volume, node, request_id } = request.into_inner();
        if let Some(id) = self.volume_if_any(volume.as_ref())? {
            let unpublish = log::Unpublish { volume_id: id.to_wire(), node };
            self.0.mutate(&request_id, Kind::Unpublish(unpublish)).await?;
            finish_fence(&self.0, id).await?;
        }
        Ok(Response::new(UnpublishResponse {}))
    }

    async fn attach(
        &self,
        request: Request<AttachRequest>,
    ) -> Result<Response<proto::Session>, Status> {
        let caller = Caller::require(&request, &ATTACHERS)?;
        self.0.leading_now().await?;
        let asked = request.into_inner();
        if caller.role == Role::Agent {
            caller.require_name("node", &asked.node)?;
        }
        let volume = self.volume(asked.volume.as_ref(), |id, _| id)?;
        let open = log::OpenSession {
            volume_id: volume.to_wire(),
            node: asked.node,
            read_only: asked.read_only,
            shared: asked.shared,
            force: asked.force,
            unpublished_allowed: caller.role == Role::Admin,
            live: self.live_sessions(volume),
        };
        let answer = self.0.mutate(&asked.request_id, Kind::OpenSession(open)).await?;
        let answer::Kind::Session(opened) = answer else {
            return Err(Status::internal("the state machine answered something else"));
        };
        let session = SessionId(opened.id);
        let now = self.0.now();
        self.0.view().sessions.insert(session, now);
        finish_fence(&self.0, volume).await?;
        self.session_message(volume, session)
    }

    async fn renew_session(
        &self,
        request: Request<RenewSessionRequest>,
    ) -> Result<Response<RenewSessionResponse>, Status> {
        let caller = Caller::require(&request, &ATTACHERS)?;
        self.0.leading_now().await?;
        let asked = request.into_inner();
        let (id, session) = (volume_id(&asked.volume_id)?, SessionId(asked.session));
        let (size, limits) = {
            let state = self.0.state.read();
            let volume = state.volumes.get(&id).ok_or_else(|| fenced(session, None))?;
            let open = volume.sessions.get(&session);
            let open = open.ok_or_else(|| fenced(session, Some(volume)))?;
            if caller.role == Role::Agent {
                caller.require_name("node of the session", &open.node)?;
            }
            (volume.size, Some(volume.limits.into()))
        };
        let now = self.0.now();
        self.0.view().sessions.insert(session, now);
        let lease_ms = SESSION_LEASE.as_millis() as u64;
        Ok(Response::new(RenewSessionResponse { size, lease_ms, limits }))
    }

    async fn detach(
        &self,
        request: Request<DetachRequest>,
    ) -> Result<Response<DetachResponse>, Status> {
        let caller = Caller::require(&request, &ATTACHERS)?;
        self.0.leading_now().await?;
        let asked = request.into_inner();
        let (id, session) = (volume_id(&asked.volume_id)?, SessionId(asked.session));
        if caller.role == Role::Agent {
            let state = self.0.state.read();
            let open = state.volumes.get(&id).and_then(|volume| volume.sessions.get(&session));
            if let Some(open) = open {
                caller.require_name("node of the session", &open.node)?;
            }
        }
        let close = log::CloseSession { volume_id: id.to_wire(), session: session.0 };
        self.0.mutate(&asked.request_id, Kind::CloseSession(close)).await?;
        Ok(Response::new(DetachResponse {}))
    }

    async fn create_snapshots(
        &self,
        request: Request<CreateSnapshotsRequest>,
    ) -> Result<Response<CreateSnapshotsResponse>, Status> {
        Caller::require(&request, &OWNERS)?;
        self.0.leading_now().await?;
        self.take_snapshots(request.into_inner()).await.map(Response::new)
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        Caller::require(&request, &LISTERS)?;
        self.0.leading_now().await?;
        self.snapshots_page(request.into_inner()).map(Response::new)
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        Caller::require(&request, &OWNERS)?;
        self.0.leading_now().await?;
        let asked = request.into_inner();
        let command = self.rollback_command(&asked)?;
        self.restored_answer(&asked.request_id, command).await
    }
}

impl Service {
    async fn volume_answer(
        &self,
        request_id: &Bytes,
        kind: Kind,
    ) -> Result<Response<proto::Volume>, Status> {
        match self.0.mutate(request_id, kind).await? {
            answer::Kind::VolumeId(id) => self.volume_message(volume_id(&id)?),
            _ => Err(Status::internal("the state machine answered something else")),
        }
    }

    /// As `volume_answer`, once the volume has the data that it is to begin with.
    async fn restored_answer(
        &self,
        request_id: &Bytes,
        kind: Kind,
    ) -> Result<Response<proto::Volume>, Status> {
        let answer = self.volume_answer(request_id, kind).await?;
        let id = volume_id(&answer.get_ref().id)?;
        if self.0.state.read().volumes.get(&id).is_some_and(|volume| volume.restoring.is_none()) {
            return Ok(answer);
        }
        finish_restoration(&self.0, id).await?;
        self.volume_message(id)
    }

    /// What a volume is to be made from. By id it need not exist: then the volume does, if this is
    /// a repetition.
    async fn source_id(&self, source: Option<&VolumeRef>) -> Result<Option<VolumeId>, Status> {
        let Some(reference) = source else { return Ok(None) };
        self.0.leading_now().await?;
        match &reference.by {
            Some(volume_ref::By::Id(raw)) => volume_id(raw).map(Some),
            _ => self.volume(source, |id, _| Some(id)),
        }
    }

    pub(super) fn volume_message(&self, id: VolumeId) -> Result<Response<proto::Volume>, Status> {
        let found = self.0.look(|scene| {
            let volume = scene.state.volumes.get(&id)?;
            Some(message(scene, id, volume))
        });
        found.map(Response::new).ok_or_else(|| not_found("volume", id))
    }

    /// None for a volume that is not there, which for some requests means that they are done.
    fn volume_if_any(&self, reference: Option<&VolumeRef>) -> Result<Option<VolumeId>, Status> {
        match self.volume(reference, |id, _| id) {
            Ok(id) => Ok(Some(id)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    pub(super) fn live_sessions(&self, volume: VolumeId) -> Vec<log::LiveSession> {
        self.0.look(|scene| {
            let sessions = scene.state.volumes.get(&volume).into_iter().flat_map(|v| &v.sessions);
            sessions
                .filter(|(id, _)| scene.view.is_live(**id, scene.now))
                .map(|(id, _)| log::LiveSession {
                    id: id.0,
                    age_ms: scene.view.session_age(*id, scene.now).as_millis() as u64,
                })
                .collect()
        })
    }

    /// The session with its key, if nobody has fenced it while its fence was committed.
    fn session_message(
        &self,
        volume_id: VolumeId,
        id: SessionId,
    ) -> Result<Response<proto::Session>, Status> {
        let state = self.0.state.read();
        let volume = state.volumes.get(&volume_id).ok_or_else(|| not_found("volume", volume_id))?;
        let overtaken = || {
            let message = format!("session {id} was fenced by a newer attachment: attach again");
            Status::aborted(message)
        };
        let session = volume.sessions.get(&id).ok_or_else(overtaken)?;
        let principal = Principal::Session {
            session: id,
            volume: volume_id,
            epoch: session.epoch,
            read_only: session.read_only,
        };
        let key = session_key(&self.0.chunkserver_key, &principal);
        Ok(Response::new(proto::Session {
            key: Bytes::copy_from_slice(&key.0),
            ..session_without_key(volume_id, volume, id, session, 0)
        }))
    }
}

fn fenced(session: SessionId, volume: Option<&Volume>) -> Status {
    let message = match volume {
        None => format!("session {session} is fenced: its volume was deleted"),
        Some(volume) => {
            let (name, Epoch(epoch)) = (&volume.name, volume.epoch);
            format!("session {session} is fenced: volume {name:?} is at epoch {epoch}")
        }
    };
    Status::not_found(message)
}

fn session_without_key(
    volume_id: VolumeId,
    volume: &Volume,
    id: SessionId,
    session: &Session,
    age_ms: u64,
) -> proto::Session {
    proto::Session {
        id: id.0,
        epoch: session.epoch.0,
        key: Bytes::new(),
        node: session.node.clone(),
        volume_id: volume_id.to_wire(),
        size: volume.size,
        pool: volume.pool.0,
        lease_ms: SESSION_LEASE.as_millis() as u64,
        read_only: session.read_only,
        last_seen_ms: age_ms,
        limits: Some(volume.limits.into()),
    }
}

/// How many volumes a page has at most.
pub(super) fn page_limit(asked: u32) -> usize {
    if asked == 0 { LIST_MAX as usize } else { asked.min(LIST_MAX) as usize }
}

pub(super) fn message(scene: Scene<'_>, id: VolumeId, volume: &Volume) -> proto::Volume {
    let session = |(session, open): (&SessionId, &Session)| {
        let age_ms = scene.view.session_age(*session, scene.now).as_millis() as u64;
        session_without_key(id, volume, *session, open, age_ms)
    };
    proto::Volume {
        id: id.to_wire(),
        name: volume.name.clone(),
        pool: volume.pool.0,
        pool_name: scene.state.pools[&volume.pool].name.clone(),
        size: volume.size,
        epoch: volume.epoch.0,
        sessions: volume.sessions.iter().map(session).collect(),
        published_nodes: volume.publications.keys().cloned().collect(),
        created_unix_ms: volume.created_unix_ms,
        deleting: volume.deleting,
        limits: Some(volume.limits.into()),
        snapshot: volume.snapshot.as_ref().map(|snapshot| proto::SnapshotInfo {
            volume_id: snapshot.volume.to_wire(),
            volume_name: snapshot.volume_name.clone(),
            name: snapshot.name.clone(),
            ready: snapshot.ready,
        }),
        source_id: volume.source.map(VolumeId::to_wire).unwrap_or_default(),
    }
}
