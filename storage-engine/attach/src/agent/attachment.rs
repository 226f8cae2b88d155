//! One volume attached to this node: its session, its open volume, its device.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use curve_client::{AttachOptions, MdsClient, Volume, VolumeMetrics, VolumeOptions};
use curve_types::{SessionId, VolumeId};
use curve_wire::proto;
use tokio::runtime::Handle;

use super::record::{Record, StateDir};
use super::{AgentError, ClusterName, VolumeHandle};
use crate::fuse_loop::FuseLoop;

/// How devices are made; reported to whoever asks.
const TRANSPORT: &str = "fuse-loop";
/// A session that cannot be ended by then runs out by itself.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub cluster: ClusterName,
    pub handle: VolumeHandle,
    pub read_only: bool,
    pub shared: bool,
}

/// What attaching needs besides the request.
pub(super) struct Means<'a> {
    pub node: &'a str,
    pub mds: MdsClient,
    pub state: &'a Arc<StateDir>,
    pub metrics: &'a VolumeMetrics,
}

/// An attached volume. Ends by `detach`; merely dropped, its device fails all IO.
pub(super) struct Attachment {
    wanted: Wanted,
    mds: MdsClient,
    volume: Volume,
    front: FuseLoop,
    state: Arc<StateDir>,
}

impl Attachment {
    pub async fn open(wanted: Wanted, means: Means<'_>) -> Result<Self, AgentError> {
        let Means { node, mds, state, metrics } = means;
        let options = AttachOptions {
            node: node.to_owned(),
            read_only: wanted.read_only,
            shared: wanted.shared,
            force: false,
        };
        let session = mds.attach(wanted.handle.volume, &options).await?;
        let (id, volume_id) = (session.id, session.volume);
        let options = VolumeOptions { metrics: metrics.clone(), ..VolumeOptions::default() };
        let opened = match Volume::open_with(mds.clone(), session, options).await {
            Ok(volume) => make_device(&volume, &wanted, state).await.map(|front| (volume, front)),
            Err(error) => Err(AgentError::Open(error)),
        };
        let (volume, front) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                end_session(&mds, id, volume_id).await;
                forget(state, volume_id);
                return Err(error);
            }
        };
        let mut attachment = Self { wanted, mds, volume, front, state: state.clone() };
        attachment.report("attached");
        Ok(attachment)
    }

    fn report(&mut self, what: &'static str) {
        let device = self.front.path().display();
        tracing::info!(handle = %self.wanted.handle, %device, what);
    }

    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// True once all IO fails for good: another attachment has taken over, or the volume is gone.
    pub fn is_fenced(&self) -> bool {
        self.volume.is_ended()
    }

    /// Whether the device is still there and this volume's: others can end it too.
    pub fn has_device(&self) -> bool {
        self.front.serves()
    }

    /// As `has_device`, after taking back an end that only waits for the device's last user.
    pub async fn keep_device(self) -> (Self, bool) {
        let kept = tokio::task::spawn_blocking(move || {
            let kept = self.front.keep().unwrap_or_else(|error| {
                tracing::warn!(handle = %self.wanted.handle, %error, "cannot keep a device");
                false
            });
            (self, kept)
        });
        kept.await.expect("does not panic and is not cancelled")
    }

    /// Asks for the volume's size and makes the device as large.
    pub async fn resize(self) -> (Self, Result<u64, AgentError>) {
        let size = match self.volume.refresh_size().await {
            Ok(size) => size,
            Err(error) => return (self, Err(AgentError::Size(error))),
        };
        let resized = tokio::task::spawn_blocking(move || {
            let resized = self.front.resize();
            (self, resized.map(|()| size).map_err(AgentError::from))
        });
        resized.await.expect("does not panic and is not cancelled")
    }

    /// Takes the device away and ends the session. Gives itself back if the device is in use.
    pub async fn detach(self) -> Result<(), Box<(Self, AgentError)>> {
        let released = tokio::task::spawn_blocking(move || {
            let mut attachment = self;
            let released = attachment.front.detach();
            (attachment, released)
        });
        let (mut attachment, released) =
            released.await.expect("does not panic and is not cancelled");
        if let Err(error) = released {
            return Err(Box::new((attachment, error.into())));
        }
        attachment.report("detached");
        attachment.volume.close();
        let session = attachment.volume.session();
        end_session(&attachment.mds, session.id, session.volume).await;
        forget(&attachment.state, session.volume);
        Ok(())
    }

    pub fn describe(&self) -> proto::Attachment {
        use curve_client::BlockDevice;
        proto::Attachment {
            cluster: self.wanted.cluster.to_string(),
            volume_handle: self.wanted.handle.to_string(),
            device: self.front.path().display().to_string(),
            size: self.volume.size(),
            epoch: self.volume.session().epoch.0,
            fenced: self.is_fenced(),
            transport: TRANSPORT.to_owned(),
            read_only: self.wanted.read_only,
        }
    }
}

async fn make_device(
    volume: &Volume,
    wanted: &Wanted,
    state: &Arc<StateDir>,
) -> Result<FuseLoop, AgentError> {
    let id = volume.session().volume;
    let (volume, state) = (volume.clone(), state.clone());
    let (cluster, volume_handle) = (wanted.cluster.to_string(), wanted.handle.to_string());
    let made = tokio::task::spawn_blocking(move || {
        let (name, runtime) = (id.to_string(), Handle::current());
        // Written before there is a device, or nobody could clean up after a death in between.
        let remember = |device: &Path| -> Result<(), AgentError> {
            let (cluster, volume_handle) = (cluster.clone(), volume_handle.clone());
            let record = Record { cluster, volume_handle, device: device.to_owned() };
            Ok(state.write(id, &record)?)
        };
        FuseLoop::attach(Arc::new(volume), &state.mount_point(id), &name, runtime, remember)
    });
    made.await.expect("does not panic and is not cancelled")
}

/// What stays is cleaned up by the next agent, or overwritten by the next attachment.
fn forget(state: &StateDir, volume: VolumeId) {
    if let Err(error) = state.remove(volume) {
        tracing::warn!(%volume, %error, "cannot remove an attachment's record");
    }
}

/// Best effort: nobody renews the session any more, and unpublishing fences it.
async fn end_session(mds: &MdsClient, session: SessionId, volume: VolumeId) {
    if let Err(error) = mds.with_deadline(DETACH_DEADLINE).detach(session, volume).await {
        tracing::warn!(%session, %volume, %error, "cannot end a session");
    }
}
