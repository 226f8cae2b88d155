//! The bridge between the MDS's state and its Raft group.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use async_trait::async_trait;
use bytes::Bytes;
use curve_raft::device::{Apply, LogPosition};
use curve_raft::{
    ChangeError, GroupHandle, GroupReport, Leadership, ProposeError, RaftHost, ReadError,
    StateMachine,
};
use curve_types::{CopysetId, DeviceId};
use prost::Message;
use tokio::sync::watch;

use crate::log::{self, Answer, Command, answer};
use crate::state::{Reason, State};

/// The state that the group has applied, readable by every service of this process.
#[derive(Clone, Default)]
pub struct SharedState(Arc<RwLock<State>>);

impl SharedState {
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().expect("apply does not panic")
    }

    /// Applies an encoded command. Bytes that are no command are refused like any other command
    /// that cannot be carried out: every replica must go on the same way.
    pub fn apply(&self, command: Bytes) -> Bytes {
        let answer = match Command::decode(command) {
            Ok(command) => self.0.write().expect("apply does not panic").apply(command),
            Err(error) => {
                let code = Reason::Invalid as u32;
                let message = format!("the command cannot be decoded: {error}");
                Answer { kind: Some(answer::Kind::Refused(log::Refusal { code, message })) }
            }
        };
        answer.encode_to_vec().into()
    }

    fn replace(&self, stored: &[u8]) -> io::Result<()> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        *self.0.write().expect("apply does not panic") = State::decode(stored).map_err(invalid)?;
        Ok(())
    }
}

/// The group's state machine.
pub struct Machine(SharedState);

impl Machine {
    /// Starts from the blob of the last checkpoint.
    pub fn open(state: SharedState, stored: Option<Bytes>) -> io::Result<Self> {
        state.replace(&stored.unwrap_or_default())?;
        Ok(Self(state))
    }
}

impl StateMachine for Machine {
    fn apply(
        &mut self,
        _chunks: &Apply<'_>,
        _position: LogPosition,
        header: Bytes,
        _payload: Bytes,
    ) -> io::Result<curve_raft::Answer> {
        Ok(self.0.apply(header).into())
    }

    fn state(&self) -> Bytes {
        self.0.read().encode()
    }

    fn restore(&mut self, state: Bytes) -> io::Result<()> {
        self.0.replace(&state)
    }
}

/// The MDS's own Raft group as the rest of the process uses it. In tests, one without replicas.
#[async_trait]
pub trait Replication: Send + Sync + 'static {
    async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError>;
    /// After Ok the applied state contains everything acknowledged before the call.
    async fn read_barrier(&self) -> Result<(), ReadError>;
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// None once the host has stopped.
    fn report(&self) -> Option<GroupReport>;
    /// See `GroupHandle::change_membership`.
    async fn change_members(
        &self,
        expected_config_index: u64,
        voters: BTreeSet<DeviceId>,
        learners: BTreeSet<DeviceId>,
    ) -> Result<u64, ChangeError>;
}

/// The group on its host.
pub struct RaftGroup {
    pub host: RaftHost,
    pub group: GroupHandle,
}

#[async_trait]
impl Replication for RaftGroup {
    async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        self.group.propose(command, Bytes::new()).await
    }

    async fn read_barrier(&self) -> Result<(), ReadError> {
        self.group.read_barrier().await
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.group.watch()
    }

    fn report(&self) -> Option<GroupReport> {
        self.host.reports().into_iter().find(|report| report.id == CopysetId::MDS)
    }

    async fn change_members(
        &self,
        expected_config_index: u64,
        voters: BTreeSet<DeviceId>,
        learners: BTreeSet<DeviceId>,
    ) -> Result<u64, ChangeError> {
        self.group.change_membership(expected_config_index, voters, learners).await
    }
}
