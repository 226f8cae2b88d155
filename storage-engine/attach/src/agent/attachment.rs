//! One volume attached to this node: its session, its open volume, its device.

use std::sync::Arc;
use std::time::Duration;

use curve_client::{AttachOptions, MdsClient, Volume, VolumeMetrics, VolumeOptions};
use curve_wire::proto;
use tokio::runtime::Handle;

use super::record::{Record, StateDir};
use super::{AgentError, ClusterName, VolumeHandle};
use crate::fuse_loop::{FuseLoop, FuseLoopError};

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
            Ok(volume) => make_device(&volume, state).await.map(|front| (volume, front)),
            Err(error) => Err(AgentError::Open(error)),
        };
        let (volume, front) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                end_session(&mds, id, volume_id).await;
                return Err(error);
            }
        };
        let record = Record {
            cluster: wanted.cluster.to_string(),
            volume_handle: wanted.handle.to_string(),
            device: front.path().to_owned(),
        };
        let mut attachment = Self { wanted, mds, volume, front, state: state.clone() };
        if let Err(error) = attachment.state.write(volume_id, &record) {
            // Without a record nobody could clean up after us.
            if let Err((_, undo)) = attachment.detach().await.map_err(|failed| *failed) {
                tracing::error!(error = %undo, "cannot undo an attachment");
            }
            return Err(error.into());
        }
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
        if let Err(error) = attachment.state.remove(session.volume) {
            tracing::warn!(%error, "cannot remove an attachment's record");
        }
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

async fn make_device(volume: &Volume, state: &StateDir) -> Result<FuseLoop, AgentError> {
    let id = volume.session().volume;
    let (volume, mount_point) = (volume.clone(), state.mount_point(id));
    let made = tokio::task::spawn_blocking(move || -> Result<FuseLoop, FuseLoopError> {
        let (name, runtime) = (id.to_string(), Handle::current());
        FuseLoop::attach(Arc::new(volume), &mount_point, &name, runtime)
    });
    Ok(made.await.expect("does not panic and is not cancelled")?)
}

/// Best effort: nobody renews the session any more, and unpublishing fences it.
async fn end_session(
    mds: &MdsClient,
    session: curve_types::SessionId,
    volume: curve_types::VolumeId,
) {
    if let Err(error) = mds.with_deadline(DETACH_DEADLINE).detach(session, volume).await {
        tracing::warn!(%session, %volume, %error, "cannot end a session");
    }
}
