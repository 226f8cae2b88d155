//! Ends freezes that nobody else ended. A snapshot freezes its volume for moments; should the MDS
//! go away meanwhile, the volume must not stay frozen.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use curve_raft::RaftHost;
use curve_types::{CopysetId, VolumeId};
use curve_wire::chunk::Command;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::service::Replicas;

/// A freeze holds at least for so long, whoever leads: the MDS counts on half of it.
const FREEZE_MAX: Duration = Duration::from_secs(10);
/// Between two looks at the volumes.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// What is not thawed by then is tried again.
const THAW_WAIT: Duration = Duration::from_secs(3);

/// A volume of a copyset that is frozen for a snapshot.
type Freeze = (CopysetId, VolumeId, VolumeId);

/// Since when this process has known each freeze, as leader without a break.
#[derive(Default)]
struct Freezes {
    since: BTreeMap<Freeze, Instant>,
}

impl Freezes {
    /// Takes note of all freezes that this process leads, and gives those that have lasted too long.
    fn on_look(&mut self, now: Instant, led: Vec<Freeze>) -> Vec<Freeze> {
        let since = |freeze: Freeze| (freeze, self.since.get(&freeze).copied().unwrap_or(now));
        self.since = led.into_iter().map(since).collect();
        let expired = self.since.iter().filter(|(_, since)| now - **since >= FREEZE_MAX);
        expired.map(|(freeze, _)| *freeze).collect()
    }
}

/// Looks for freezes to end, until dropped.
pub(crate) async fn expire(host: RaftHost, replicas: Replicas) {
    let mut freezes = Freezes::default();
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        let led = led(&host, &replicas);
        // Together: a copyset that cannot commit now must not hold up the others.
        let mut thaws = JoinSet::new();
        for (copyset, volume, snapshot) in freezes.on_look(Instant::now(), led) {
            tracing::warn!(%copyset, %volume, %snapshot, "ending a freeze that nobody ended");
            let Some(group) = host.group(copyset) else { continue };
            let (header, payload) = Command::Thaw { volume, snapshot }.encode();
            thaws.spawn(async move {
                if let Err(error) = group.propose(header, payload).await {
                    tracing::warn!(%copyset, %volume, %error, "the freeze goes on");
                }
            });
        }
        let all = async { while thaws.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(THAW_WAIT, all).await;
    }
}

fn led(host: &RaftHost, replicas: &Replicas) -> Vec<Freeze> {
    let mut led = Vec::new();
    for copyset in replicas.ids() {
        let leads = host.group(copyset).is_some_and(|group| group.is_leader());
        let Some(replica) = replicas.get(copyset).filter(|_| leads) else { continue };
        let state = replica.state.read().unwrap_or_else(PoisonError::into_inner);
        led.extend(state.frozen().map(|(volume, snapshot)| (copyset, volume, snapshot)));
    }
    led
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_ends_when_its_leader_has_seen_it_for_long_enough() {
        let freeze = |n: u8| (CopysetId(1), VolumeId::from_bytes([n; 16]), VolumeId::default());
        let (mut freezes, start) = (Freezes::default(), Instant::now());
        let mut at = |secs: u64, led: &[Freeze]| {
            freezes.on_look(start + Duration::from_secs(secs), led.to_vec())
        };
        assert!(at(0, &[freeze(1)]).is_empty());
        assert!(at(9, &[freeze(1), freeze(2)]).is_empty());
        assert_eq!(at(10, &[freeze(1), freeze(2)]), [freeze(1)]);
        // Another led for a moment: its own time begins anew, here and there.
        assert!(at(18, &[]).is_empty());
        assert!(at(20, &[freeze(2)]).is_empty());
        assert_eq!(at(30, &[freeze(2)]), [freeze(2)]);
    }
}
