//! All attachments of the node. Calls for one volume queue behind each other, calls for different
//! volumes do not. A call goes on when its caller leaves, so that none is left half done.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use curve_client::{MdsClient, VolumeMetrics};
use curve_wire::proto;
use curve_wire::telemetry::Registry;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::attachment::{Attachment, Means, Wanted};
use super::record::StateDir;
use super::{AgentError, ConnectionSource, StateError, VolumeHandle};

/// How often a new agent asks whether the old one has gone.
const LOCK_POLL: Duration = Duration::from_millis(500);

/// Settings of an agent.
pub struct AgentOptions<'a> {
    /// Of the node, as sessions and certificates know it.
    pub node: String,
    pub state_dir: &'a Path,
    pub source: Arc<dyn ConnectionSource>,
    /// Wait for another agent that still owns the state directory, instead of failing.
    pub wait_for_lock: bool,
}

/// Owner of all attachments of a node. Clones share it.
#[derive(Clone)]
pub struct Agent(Arc<Shared>);

/// At most one attachment of one volume. Held locked by whoever changes it.
type Slot = Arc<tokio::sync::Mutex<Option<Attachment>>>;

struct Shared {
    node: String,
    state: Arc<StateDir>,
    source: Arc<dyn ConnectionSource>,
    metrics: VolumeMetrics,
    /// Exported also while nothing is attached: that the agent is there.
    attachments: Gauge,
    slots: Mutex<HashMap<VolumeHandle, Slot>>,
    /// Clients by the addresses and certificate they were made of, so that volumes of a cluster
    /// share connections and one watch of its topology.
    clients: Mutex<HashMap<String, MdsClient>>,
    attached: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
}

impl Agent {
    /// Takes over the state directory and cleans up after a dead agent.
    pub async fn start(
        options: AgentOptions<'_>,
        registry: &mut Registry,
    ) -> Result<Self, StateError> {
        let state = loop {
            match StateDir::open(options.state_dir) {
                Err(StateError::Locked { path }) if options.wait_for_lock => {
                    tracing::info!(path = %path.display(), "waiting for the old agent to end");
                    tokio::time::sleep(LOCK_POLL).await;
                }
                opened => break Arc::new(opened?),
            }
        };
        let to_clean = state.clone();
        let cleaned = tokio::task::spawn_blocking(move || to_clean.clean_up());
        let cleaned = cleaned.await.expect("does not panic and is not cancelled")?;
        if cleaned > 0 {
            tracing::warn!(cleaned, "took away what a dead agent had attached");
        }
        let attachments = Gauge::default();
        let help = "Volumes attached to this node, those under way included";
        registry.register("curve_agent_attachments", help, attachments.clone());
        Ok(Self(Arc::new(Shared {
            node: options.node,
            state,
            source: options.source,
            metrics: VolumeMetrics::register(registry),
            attachments,
            slots: Mutex::default(),
            clients: Mutex::default(),
            attached: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        })))
    }

    /// Follows the number of attachments, those under way included.
    pub fn watch_attached(&self) -> watch::Receiver<usize> {
        self.0.attached.subscribe()
    }

    /// Attaches, or answers with the existing attachment.
    pub async fn attach(
        &self,
        request: proto::AttachBlockRequest,
    ) -> Result<proto::Attachment, AgentError> {
        let proto::AttachBlockRequest { cluster, volume_handle, read_only, shared } = request;
        let (cluster, handle) = (cluster.parse()?, volume_handle.parse()?);
        let wanted = Wanted { cluster, handle, read_only, shared };
        let shared = self.0.clone();
        run_to_end(async move { shared.attach(wanted).await }).await
    }

    /// Done if the volume is not attached.
    pub async fn detach(&self, handle: VolumeHandle) -> Result<(), AgentError> {
        let shared = self.0.clone();
        run_to_end(async move { shared.detach(handle).await }).await
    }

    /// Makes the device as large as the volume is now.
    pub async fn resize(&self, handle: VolumeHandle) -> Result<u64, AgentError> {
        let shared = self.0.clone();
        run_to_end(async move { shared.resize(handle).await }).await
    }

    /// What is attached. A volume whose device somebody else has ended is not: the number of that
    /// device may be another volume's by now.
    pub async fn list(&self) -> Vec<proto::Attachment> {
        let slots: Vec<Slot> = self.0.slots().values().cloned().collect();
        let mut found = Vec::new();
        for slot in slots {
            // One that is being attached or detached right now is neither there nor gone.
            if let Ok(attachment) = slot.try_lock()
                && let Some(attachment) = &*attachment
                && attachment.has_device()
            {
                found.push(attachment.describe());
            }
        }
        found.sort_by(|a, b| a.volume_handle.cmp(&b.volume_handle));
        found
    }

    /// Refuses new attachments and takes away every device that nobody uses. Those in use fail
    /// their IO when the process ends.
    pub async fn stop(&self) {
        self.0.stopping.send_replace(true);
        let handles: Vec<VolumeHandle> = self.0.slots().keys().copied().collect();
        let detached = handles.into_iter().map(|handle| {
            let agent = self.clone();
            tokio::spawn(async move {
                if let Err(error) = agent.detach(handle).await {
                    tracing::error!(%handle, %error, "left attached");
                }
            })
        });
        for task in detached.collect::<Vec<_>>() {
            let _ = task.await;
        }
    }
}

/// Runs in a task of its own, which a caller that gives up does not cancel.
async fn run_to_end<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(call).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Shared {
    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<VolumeHandle, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts as attached from here on, so that an agent does not end as idle in between.
    fn slot(&self, handle: VolumeHandle) -> Slot {
        let mut slots = self.slots();
        let slot = slots.entry(handle).or_default().clone();
        self.count(slots.len());
        slot
    }

    fn count(&self, attached: usize) {
        self.attachments.set(i64::try_from(attached).unwrap_or(i64::MAX));
        self.attached.send_if_modified(|count| std::mem::replace(count, attached) != attached);
    }

    /// Forgets slots that hold nothing and that nobody waits for.
    fn tidy(&self) {
        let mut slots = self.slots();
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|slot| slot.is_some())
        });
        self.count(slots.len());
    }

    async fn attach(&self, wanted: Wanted) -> Result<proto::Attachment, AgentError> {
        let slot = self.slot(wanted.handle);
        let result = self.attach_in(&mut *slot.lock().await, wanted).await;
        drop(slot);
        self.tidy();
        result
    }

    async fn attach_in(
        &self,
        slot: &mut Option<Attachment>,
        wanted: Wanted,
    ) -> Result<proto::Attachment, AgentError> {
        if *self.stopping.borrow() {
            return Err(AgentError::Stopping);
        }
        if let Some(existing) = slot.take() {
            let (existing, kept) = existing.keep_device().await;
            if kept && !existing.is_fenced() {
                let existing = slot.insert(existing);
                return check_same(existing, &wanted).map(|()| existing.describe());
            }
            // The volume was elsewhere in the meantime, or somebody else has ended its device: what
            // is left here can only fail.
            tracing::warn!(handle = %wanted.handle, device = kept, "attaches anew");
            if let Err(failed) = existing.detach().await {
                let (existing, error) = *failed;
                *slot = Some(existing);
                return Err(error);
            }
        }
        let mds = self.client(&wanted).await?;
        let means = Means { node: &self.node, mds, state: &self.state, metrics: &self.metrics };
        let attachment = Attachment::open(wanted, means).await?;
        Ok(slot.insert(attachment).describe())
    }

    async fn client(&self, wanted: &Wanted) -> Result<MdsClient, AgentError> {
        let name = &wanted.cluster;
        let connection = self.source.find(name).await?;
        let connection = connection.ok_or_else(|| AgentError::UnknownCluster(name.clone()))?;
        if let Some(id) = connection.cluster
            && id != wanted.handle.cluster
        {
            let (handle, name) = (wanted.handle, name.clone());
            return Err(AgentError::OtherCluster { handle, name, id });
        }
        let key = format!("{}\n{}", connection.mds.join(","), connection.identity.cert_pem);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = MdsClient::connect(&connection.mds, &connection.identity)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    async fn detach(&self, handle: VolumeHandle) -> Result<(), AgentError> {
        let slot = self.slot(handle);
        let mut attachment = slot.lock().await;
        let result = match attachment.take() {
            None => Ok(()),
            Some(existing) => existing.detach().await.map_err(|failed| {
                let (existing, error) = *failed;
                *attachment = Some(existing);
                error
            }),
        };
        drop(attachment);
        drop(slot);
        self.tidy();
        result
    }

    async fn resize(&self, handle: VolumeHandle) -> Result<u64, AgentError> {
        let slot = self.slot(handle);
        let mut attachment = slot.lock().await;
        let result = match attachment.take() {
            None => Err(AgentError::NotAttached(handle)),
            Some(existing) => {
                let (existing, resized) = existing.resize().await;
                *attachment = Some(existing);
                resized
            }
        };
        drop(attachment);
        drop(slot);
        self.tidy();
        result
    }
}

fn check_same(existing: &Attachment, wanted: &Wanted) -> Result<(), AgentError> {
    let has = existing.wanted();
    if (has.read_only, has.shared) == (wanted.read_only, wanted.shared) {
        return Ok(());
    }
    let existing = match (has.read_only, has.shared) {
        (true, true) => "read-only and shared",
        (true, false) => "read-only",
        (false, true) => "for shared writing",
        (false, false) => "for exclusive writing",
    };
    Err(AgentError::OtherMode { handle: wanted.handle, existing })
}
