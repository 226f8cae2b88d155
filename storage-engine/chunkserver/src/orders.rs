//! Carries out what the MDS orders: host and drop replicas, change members, hand over leadership.
//! Every order may come again; what cannot be done now is left for the next heartbeat.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use curve_raft::{GroupReport, HostError};
use curve_types::{CopysetId, DeviceId};
use curve_wire::proto::{ChangeMembership, HostCopyset, TransferLeader};

use crate::server::BlockServer;

pub(crate) struct Orders {
    server: Arc<BlockServer>,
    /// Highest MDS term seen: an MDS leader that was replaced orders nothing any more.
    mds_term: u64,
    /// Copysets whose members or leader are being changed.
    busy: Arc<Mutex<HashSet<CopysetId>>>,
}

/// Takes a copyset off the busy list.
struct Busy {
    list: Arc<Mutex<HashSet<CopysetId>>>,
    copyset: CopysetId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.copyset);
    }
}

impl Orders {
    pub fn new(server: Arc<BlockServer>) -> Self {
        Self { server, mds_term: 0, busy: Arc::default() }
    }

    /// Creates and drops replicas, and takes over which must not be written to.
    pub async fn carry_out(&mut self, host: Vec<HostCopyset>, drop: Vec<u32>) {
        let full = host.iter().filter(|order| order.full);
        self.server.set_full(full.map(|order| CopysetId(order.copyset)).collect());
        for order in host {
            let copyset = CopysetId(order.copyset);
            let Some(voters) = ids(&order.initialize) else {
                tracing::error!(%copyset, "ordered to form a group of malformed device ids");
                continue;
            };
            let raft = self.server.host();
            if voters.is_empty() && raft.group(copyset).is_some() {
                continue;
            }
            if self.server.may_divide(CopysetId(order.split_from), copyset) {
                // What it is to have is still here.
                continue;
            }
            let done = match voters.is_empty() {
                true => raft.create_group(copyset).await,
                // A replica that already has its log answers so and is left alone.
                false => raft.initialize(copyset, voters).await,
            };
            match done {
                Ok(_) => tracing::debug!(%copyset, "hosted"),
                Err(HostError::Exists(_) | HostError::Initialized(_)) => {}
                Err(error) => tracing::error!(%copyset, %error, "cannot host the copyset"),
            }
        }
        for copyset in drop.into_iter().map(CopysetId) {
            match self.server.drop_replica(copyset).await {
                Ok(()) => tracing::info!(%copyset, "dropped"),
                Err(HostError::NoGroup(_)) => {}
                Err(error) => tracing::error!(%copyset, %error, "cannot drop the copyset"),
            }
        }
    }

    /// Starts what only a leader can do; each runs on its own, one per copyset at a time.
    pub fn lead(
        &mut self,
        changes: Vec<ChangeMembership>,
        transfers: Vec<TransferLeader>,
        reports: &[GroupReport],
    ) {
        for change in changes {
            let copyset = CopysetId(change.copyset);
            if change.mds_term < self.mds_term {
                let known = self.mds_term;
                tracing::warn!(%copyset, order = change.mds_term, known, "order of an older MDS");
                continue;
            }
            self.mds_term = change.mds_term;
            let report = reports.iter().find(|report| report.id == copyset);
            let Some((voters, learners)) = report.and_then(|report| members(&change, report))
            else {
                tracing::error!(%copyset, "ordered to change members with malformed device ids");
                continue;
            };
            self.change(copyset, change.expected_config_index, voters, learners);
        }
        for transfer in transfers {
            let to = ids(&[transfer.to]).and_then(|ids| ids.first().copied());
            if let Some(to) = to {
                self.transfer(CopysetId(transfer.copyset), to);
            }
        }
    }

    fn occupy(&self, copyset: CopysetId) -> Option<Busy> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(copyset).then(|| Busy { list: self.busy.clone(), copyset })
    }

    fn change(
        &self,
        copyset: CopysetId,
        expected: u64,
        voters: BTreeSet<DeviceId>,
        learners: BTreeSet<DeviceId>,
    ) {
        let Some(group) = self.server.host().group(copyset) else { return };
        let Some(busy) = self.occupy(copyset) else { return };
        tokio::spawn(async move {
            let _busy = busy;
            tracing::info!(%copyset, ?voters, ?learners, "changing members");
            match group.change_membership(expected, voters, learners).await {
                Ok(index) => tracing::info!(%copyset, index, "members changed"),
                Err(error) => tracing::warn!(%copyset, %error, "members not changed"),
            }
        });
    }

    fn transfer(&self, copyset: CopysetId, to: DeviceId) {
        let Some(group) = self.server.host().group(copyset) else { return };
        let Some(busy) = self.occupy(copyset) else { return };
        tokio::spawn(async move {
            let _busy = busy;
            match group.transfer_leader(to).await {
                Ok(()) => tracing::info!(%copyset, %to, "leadership handed over"),
                Err(error) => tracing::info!(%copyset, %to, %error, "leadership not handed over"),
            }
        });
    }
}

/// The configuration that an order asks for, given the present one.
fn members(
    change: &ChangeMembership,
    report: &GroupReport,
) -> Option<(BTreeSet<DeviceId>, BTreeSet<DeviceId>)> {
    let (voters, added) = (ids(&change.voters)?, ids(&change.add_learners)?);
    match voters.is_empty() {
        true => Some((report.voters.clone(), &report.learners | &added)),
        false => Some((voters, added)),
    }
}

/// None if one is not 16 bytes.
fn ids(raw: &[Bytes]) -> Option<BTreeSet<DeviceId>> {
    raw.iter().map(|id| Some(DeviceId::from_bytes(id[..].try_into().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(id: DeviceId) -> Bytes {
        Bytes::copy_from_slice(&id.to_bytes())
    }

    #[test]
    fn an_order_without_voters_only_adds_learners() {
        let [a, b, c, d] = [(); 4].map(|()| DeviceId::random());
        let report = GroupReport {
            id: CopysetId(1),
            term: 1,
            leader: Some(a),
            is_leader: true,
            applied: None,
            last: None,
            config_index: Some(4),
            changing: false,
            voters: [a, b].into(),
            learners: [c].into(),
            caught_up: BTreeSet::new(),
            reachable: BTreeSet::new(),
            failure: None,
        };
        let add = ChangeMembership { add_learners: vec![bytes(d)], ..Default::default() };
        assert_eq!(members(&add, &report), Some(([a, b].into(), [c, d].into())));
        let swap = ChangeMembership { voters: vec![bytes(a), bytes(d)], ..Default::default() };
        assert_eq!(members(&swap, &report), Some(([a, d].into(), [].into())));
        let bad = ChangeMembership { voters: vec![Bytes::from_static(b"x")], ..Default::default() };
        assert_eq!(members(&bad, &report), None);
    }
}
