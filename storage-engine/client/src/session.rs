//! One attachment of a volume as its holder keeps it: identity, epoch and key.

use std::fmt;
use std::time::Duration;

use curve_types::{Epoch, PoolId, SessionId, VolumeId, VolumeLimits};
use curve_wire::auth::{Credentials, Key, Principal};
use curve_wire::proto;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A session opened by `MdsClient::attach`. Whoever holds it can write the volume until a newer
/// session fences it: store it like a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: SessionId,
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub pool: PoolId,
    /// Bytes of the volume when the session was opened.
    pub size: u64,
    pub node: String,
    pub lease_ms: u64,
    pub read_only: bool,
    /// Of the volume when the session was opened. Absent where an agent stored it before there
    /// were limits.
    #[serde(default)]
    pub limits: VolumeLimits,
    /// 64 hexadecimal digits.
    key: String,
}

/// Why what the MDS sent is not a session.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the MDS sent a session whose {field} is malformed")]
pub struct SessionError {
    pub field: &'static str,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, volume, epoch, read_only, .. } = self;
        write!(f, "Session({id} of {volume}, epoch {epoch}, read_only {read_only})")
    }
}

impl TryFrom<proto::Session> for Session {
    type Error = SessionError;

    fn try_from(from: proto::Session) -> Result<Self, SessionError> {
        let volume =
            from.volume_id[..].try_into().map_err(|_| SessionError { field: "volume_id" })?;
        let key: [u8; 32] = from.key[..].try_into().map_err(|_| SessionError { field: "key" })?;
        Ok(Self {
            id: SessionId(from.id),
            volume: VolumeId::from_bytes(volume),
            epoch: Epoch(from.epoch),
            pool: PoolId(from.pool),
            size: from.size,
            node: from.node,
            lease_ms: from.lease_ms,
            read_only: from.read_only,
            limits: from.limits.unwrap_or_default().into(),
            key: Key(key).to_hex(),
        })
    }
}

impl Session {
    /// The session for a holder that restarts: everything that the previous holder still has in
    /// flight is fenced when a volume is opened with it. Required before a session is opened again.
    pub fn next_incarnation(mut self) -> Self {
        self.epoch = self.epoch.next_incarnation();
        self
    }

    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// What proves this session to a chunkserver.
    pub(crate) fn credentials(&self) -> Result<Credentials, SessionError> {
        let key = Key::from_hex(&self.key).ok_or(SessionError { field: "key" })?;
        let principal = Principal::Session {
            session: self.id,
            volume: self.volume,
            epoch: Epoch::of_attachment(self.epoch.attachment()),
            read_only: self.read_only,
        };
        Ok(Credentials::session(principal, key))
    }
}
