//! openraft's state machine on ours: applies, snapshots, installs.
//!
//! Applied state is what the last checkpoint held plus the log since; openraft replays the
//! difference. A snapshot is the store's view of now, so it needs no building and none is kept.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use curve_store::{
    Apply, Group, Install, LogPosition, NewGroup, StateProvider, Store, StoreError, Vote,
};
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::oneshot;

use crate::blocking::patiently;
use crate::codec::entry::{decode_blob, encode_blob};
use crate::host::children::Children;
use crate::log::InstallGate;
use crate::metrics::Metrics;
use crate::snapshot::Destination;
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership, Types, log_id, position};
use crate::{Answer, Division, NoParts, SnapshotSource, StateMachine};

type Snapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotData>;

/// A snapshot on its way out of one replica or into another.
pub(crate) enum SnapshotData {
    Outgoing { state: Bytes, parts: Box<dyn SnapshotSource> },
    Received { state: Bytes, install: Install },
}

struct Applied {
    machine: Box<dyn StateMachine>,
    last: Option<LogPosition>,
    membership: StoredMembership,
}

/// What the apply task, the store's checkpoints and the snapshot receiver share. Its lock is taken
/// inside the store's apply lock, never around it.
pub(crate) struct Replica {
    group: Group,
    applied: Mutex<Applied>,
    children: Children,
}

impl StateProvider for Replica {
    fn state(&self) -> (Option<LogPosition>, Bytes) {
        let applied = self.lock();
        let blob = match applied.last {
            // A replica that has applied nothing has no state to speak of.
            None => Bytes::new(),
            Some(_) => encode_blob(&applied.membership, &applied.machine.state()),
        };
        (applied.last, blob)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let state = self.state();
        self.group.leave_state(state);
    }
}

impl Replica {
    /// `make` is given the machine's own blob of the last checkpoint, if there is one.
    pub fn new(
        group: Group,
        last: Option<LogPosition>,
        blob: Bytes,
        children: Children,
        make: impl FnOnce(&Group, Option<Bytes>) -> io::Result<Box<dyn StateMachine>>,
    ) -> io::Result<Arc<Self>> {
        let (membership, state) = decode_blob(blob)?;
        let machine = make(&group, state)?;
        let applied = Mutex::new(Applied { machine, last, membership });
        let replica = Arc::new(Self { group: group.clone(), applied, children });
        let provider: Arc<dyn StateProvider> = replica.clone();
        group.set_state_provider(&provider);
        Ok(replica)
    }

    fn lock(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn applied(&self) -> Option<LogPosition> {
        self.lock().last
    }

    pub fn begin_install(&self) -> Result<Destination, StoreError> {
        let install = self.group.begin_install()?;
        let applied = self.lock();
        let base = applied.last.map(|last| last.index);
        Ok(Destination { sink: applied.machine.begin_install(), install, base })
    }

    fn apply(&self, entry: Entry) -> io::Result<Bytes> {
        let at = position(&entry.log_id);
        let apply = self.group.begin_apply(at.index).map_err(io::Error::other)?;
        let mut applied = self.lock();
        let answer = match entry.payload {
            EntryPayload::Blank => Bytes::new(),
            EntryPayload::Normal(command) => {
                let Answer { reply, division } =
                    applied.machine.apply(&apply, at, command.header, command.payload)?;
                if let Some(division) = division {
                    self.divide(&apply, at, &applied.membership, division);
                }
                reply
            }
            EntryPayload::Membership(membership) => {
                applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                Bytes::new()
            }
        };
        applied.last = Some(at);
        // The applied position has moved; only now may a checkpoint look.
        drop(applied);
        drop(apply);
        Ok(answer)
    }

    /// The new group's first vote is for who led the old one, in that term: later terms follow it,
    /// as the positions in its log do, and it is not elected by that.
    fn divide(
        &self,
        apply: &Apply<'_>,
        at: LogPosition,
        membership: &StoredMembership,
        Division { id, state, moves }: Division,
    ) {
        let state = encode_blob(membership, &state);
        let vote = Vote { term: at.term, node: Some(at.node), committed: false };
        let done = self.children.expect(id, at, state.clone());
        apply.split(NewGroup { id, vote, applied: at, state }, moves, done);
    }

    fn snapshot(&self) -> io::Result<Option<Snapshot>> {
        let view = self.group.view().map_err(io::Error::other)?;
        let Some(last) = view.applied() else { return Ok(None) };
        let (last_membership, state) = decode_blob(view.state().clone())?;
        let meta = SnapshotMeta { last_log_id: Some(log_id(last)), last_membership };
        let parts = self.lock().machine.snapshot(view);
        let snapshot = SnapshotData::Outgoing { state: state.unwrap_or_default(), parts };
        Ok(Some(Snapshot { meta, snapshot }))
    }

    /// Called by the store right after its durable switch, before anyone can ask for the state.
    fn switched(&self, meta: &SnapshotMeta, state: Bytes) -> io::Result<()> {
        let mut applied = self.lock();
        applied.machine.restore(state)?;
        applied.last = meta.last_log_id.as_ref().map(position);
        applied.membership = meta.last_membership.clone();
        Ok(())
    }
}

/// What openraft owns.
pub(crate) struct Machine {
    store: Store,
    replica: Arc<Replica>,
    gate: Arc<InstallGate>,
    metrics: Metrics,
}

impl Machine {
    pub fn new(
        store: Store,
        replica: Arc<Replica>,
        gate: Arc<InstallGate>,
        metrics: Metrics,
    ) -> Self {
        Self { store, replica, gate, metrics }
    }

    /// A snapshot of a replica in the same process: there is nothing to receive.
    fn take_in(&self, mut parts: Box<dyn SnapshotSource>) -> io::Result<Install> {
        let destination = self.replica.begin_install().map_err(io::Error::other)?;
        let Destination { mut sink, install, .. } = destination;
        while let Some(part) = parts.next()? {
            sink.put(&install, part)?;
        }
        Ok(install)
    }

    /// Applying waits when the overlay is full; then other tasks of this thread must go on.
    fn apply_one(&self, entry: Entry) -> io::Result<Bytes> {
        let usage = self.store.usage();
        let roomy = usage.overlay_bytes < usage.overlay_bytes_max / 2;
        let started = Instant::now();
        let apply = || self.replica.apply(entry);
        let answer = if roomy { apply() } else { patiently(apply) };
        self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        answer
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.replica.lock();
        Ok((applied.last.map(log_id), applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let answer = self.apply_one(entry)?;
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.replica.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> io::Result<()> {
        let (state, install) = match data {
            SnapshotData::Received { state, install } => (state, install),
            SnapshotData::Outgoing { state, parts } => (state, self.take_in(parts)?),
        };
        let Some(last) = meta.last_log_id.as_ref().map(position) else {
            return Err(io::Error::other("an empty snapshot cannot be installed"));
        };
        let blob = encode_blob(&meta.last_membership, &state);
        let (replica, meta) = (self.replica.clone(), meta.clone());
        let (done, switched) = oneshot::channel();
        let on_switch = move |result: Result<(), StoreError>| {
            let result = result.map_err(io::Error::other);
            let _ = done.send(result.and_then(|()| replica.switched(&meta, state)));
        };
        let _exclusive = self.gate.exclusive().await;
        install.commit(last, blob, Box::new(on_switch));
        let installed = switched.await.map_err(io::Error::other).flatten();
        if installed.is_err() {
            self.gate.fail();
        }
        installed
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.replica.snapshot()
    }
}

/// Answers openraft's wish for a snapshot, which lets it purge the log: nothing is built, since a
/// view can be taken at any time. The store keeps what was purged until a checkpoint covers it.
pub(crate) struct Builder(Arc<Replica>);

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let nothing = || {
            let (state, parts) = (Bytes::new(), Box::new(NoParts));
            let snapshot = SnapshotData::Outgoing { state, parts };
            Snapshot { meta: SnapshotMeta::default(), snapshot }
        };
        Ok(self.0.snapshot()?.unwrap_or_else(nothing))
    }
}
