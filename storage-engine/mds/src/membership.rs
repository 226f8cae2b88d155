//! How an MDS group is formed, and how a wiped member comes back.
//!
//! An empty directory gets a fresh Raft node id, so that it can never vote for what it forgot. The
//! group is formed only while every configured peer says that it is blank: the first by name
//! then initializes a configuration of all their ids, and the others, on seeing their own id in
//! it, do the same. In every other case a blank process asks the leader to let it take its
//! namesake's place: as a learner, then as a voter once it has caught up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use curve_raft::{ChangeError, GroupReport, HostError, RaftHost};
use curve_types::{ClusterId, CopysetId, DeviceId};
use curve_wire::proto::PeerDescription;
use tokio::time::Instant;
use tonic::Status;

use crate::log::{self, WireId, command::Kind, ids_from_wire};
use crate::node::{Node, cluster_id, not_found};
use crate::peers::{POLL_INTERVAL, Peers};

/// Between two looks at the peers while this process belongs to no group.
const FORM_INTERVAL: Duration = Duration::from_millis(200);
/// A newcomer that needs longer asks again; what it received stays.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(45);

/// What a blank process does next, given what the others say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Form the group of these voters.
    Initialize(BTreeSet<DeviceId>),
    /// Ask these peers, one of which may lead, to be taken in.
    Join(Vec<String>),
    /// For peers that are silent, or for another to form the group.
    Wait,
}

/// Pure. `others` are the descriptions of all other configured peers, `None` for silent ones.
fn next_step<'a>(
    own: (&str, DeviceId),
    others: impl IntoIterator<Item = (&'a str, Option<PeerDescription>)>,
) -> Step {
    let (own_name, own_id) = own;
    let others: Vec<_> = others.into_iter().collect();
    let heard = || others.iter().filter_map(|(name, said)| Some((*name, said.as_ref()?)));
    let mut of_cluster: Vec<_> = heard().filter(|(_, said)| !said.cluster_id.is_empty()).collect();
    if !of_cluster.is_empty() {
        of_cluster.sort_by_key(|(_, said)| !said.leader);
        return Step::Join(of_cluster.into_iter().map(|(name, _)| name.to_owned()).collect());
    }
    if let Some((_, said)) = heard().find(|(_, said)| said.member) {
        // A group that is just being formed. With this process: help. Without: somebody began
        // before this directory was emptied; once that group has a leader it can be joined.
        return match ids_from_wire(&said.voters) {
            Some(voters) if voters.contains(&own_id) => {
                Step::Initialize(voters.into_iter().collect())
            }
            _ => Step::Wait,
        };
    }
    if heard().count() < others.len() || others.iter().any(|(name, _)| *name < own_name) {
        return Step::Wait;
    }
    let ids = heard().map(|(_, said)| DeviceId::from_wire(&said.device_id));
    match ids.chain([Some(own_id)]).collect::<Option<BTreeSet<_>>>() {
        Some(voters) if voters.len() == others.len() + 1 => Step::Initialize(voters),
        _ => Step::Wait,
    }
}

/// Keeps the peers' descriptions fresh for as long as the process lives.
pub async fn keep_polling(node: &Node) {
    loop {
        node.peers.poll().await;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns once this replica belongs to a group.
pub async fn form_or_join(
    host: &RaftHost,
    device: DeviceId,
    peers: &Peers,
) -> Result<(), HostError> {
    let mut waited = 0u32;
    loop {
        let report = host.reports().into_iter().find(|report| report.id == CopysetId::MDS);
        if report.is_some_and(|report| report.voters.contains(&device)) {
            return Ok(());
        }
        peers.poll().await;
        match next_step((peers.own_name(), device), peers.others()) {
            Step::Initialize(voters) => {
                tracing::info!(?voters, "forming the MDS group");
                match host.initialize(CopysetId::MDS, voters).await {
                    // The log that a leader sent meanwhile decides whether we belong to it.
                    Ok(_) | Err(HostError::Initialized(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Step::Join(leaders) => {
                for name in leaders {
                    match peers.join(&name, device).await {
                        Ok(_) => tracing::info!(peer = name, "taken into the MDS group"),
                        Err(status) => {
                            let error = status.message();
                            tracing::info!(peer = name, error, "not taken in yet");
                            continue;
                        }
                    }
                    break;
                }
            }
            Step::Wait => {
                // Once at first, then every ten seconds or so.
                if waited.is_multiple_of(50) {
                    let silent: Vec<_> = peers
                        .others()
                        .into_iter()
                        .filter(|(_, said)| said.is_none())
                        .map(|(name, _)| name)
                        .collect();
                    tracing::info!(?silent, "waiting for the other MDS processes");
                }
                waited += 1;
            }
        }
        tokio::time::sleep(FORM_INTERVAL).await;
    }
}

/// The first command of a group: gives the cluster its id and name.
pub async fn form_cluster(node: &Node) -> Result<(), Status> {
    let report = node.group.report().ok_or_else(|| Status::unavailable("the replica stopped"))?;
    let members = name_voters(&node.peers, node.device, &report.voters)
        .ok_or_else(|| Status::unavailable("not all voters have said who they are"))?;
    let form = log::FormCluster {
        cluster_id: ClusterId::random().to_wire(),
        name: node.cluster_name.clone(),
        members,
    };
    node.command(Kind::FormCluster(form)).await?;
    tracing::info!(cluster = node.cluster_name, "formed the cluster");
    Ok(())
}

/// Pairs voters with names. One that cannot be asked (it was wiped meanwhile) has the name that is
/// left over.
fn name_voters(
    peers: &Peers,
    own: DeviceId,
    voters: &BTreeSet<DeviceId>,
) -> Option<Vec<log::MdsMember>> {
    peers.learn(own, peers.own_name());
    let mut members = Vec::new();
    let mut nameless = Vec::new();
    for voter in voters {
        match peers.name_of(*voter) {
            Some(name) => members.push(log::MdsMember { name, device_id: voter.to_wire() }),
            None => nameless.push(*voter),
        }
    }
    let left: Vec<&str> =
        peers.names().filter(|name| members.iter().all(|member| member.name != *name)).collect();
    match (&nameless[..], &left[..]) {
        ([], _) => {}
        ([voter], [name]) => {
            let name = (*name).to_owned();
            members.push(log::MdsMember { name, device_id: voter.to_wire() });
        }
        _ => return None,
    }
    Some(members)
}

/// At the leader: lets `id` take the place of the member of that name. Callers see to it that only
/// one runs at a time.
pub async fn take_in(node: &Node, name: &str, id: DeviceId) -> Result<ClusterId, Status> {
    node.leading_now().await?;
    let (cluster, old) = {
        let state = node.state.read();
        let old = *state.members.get(name).ok_or_else(|| not_found("mds", name))?;
        (cluster_id(&state)?, old)
    };
    node.peers.learn(id, name);
    let report = own_report(node)?;
    if !report.voters.contains(&id) {
        let learners = BTreeSet::from([id]);
        if report.learners != learners {
            change(node, &report, report.voters.clone(), learners).await?;
            tracing::info!(mds = name, device = %id, "added as a learner");
        }
        let report = wait_caught_up(node, id).await?;
        let voters = {
            let name_of = |voter| node.peers.name_of(voter);
            voters_with(&report.voters, (name, id), &node.state.read().members, name_of)
        };
        change(node, &report, voters, BTreeSet::new()).await?;
        tracing::info!(mds = name, device = %id, replaced = %old, "made a voter");
    }
    if old != id {
        let member = log::MdsMember { name: name.to_owned(), device_id: id.to_wire() };
        node.command(Kind::ReplaceMds(member)).await?;
    }
    Ok(cluster)
}

/// The voters once `id` has the place of `name`. Of the present ones only those of other names
/// stay, as recorded or, before `ReplaceMds` is, as the process said itself. That leaves out more
/// than the recorded member of the name if a leader made an earlier newcomer a voter and was lost
/// before it recorded that: dead, it would count against every quorum for good.
fn voters_with(
    present: &BTreeSet<DeviceId>,
    (name, id): (&str, DeviceId),
    members: &BTreeMap<String, DeviceId>,
    name_of: impl Fn(DeviceId) -> Option<String>,
) -> BTreeSet<DeviceId> {
    let recorded = |voter| members.iter().any(|(other, id)| other != name && *id == voter);
    let said = |voter| name_of(voter).is_some_and(|other| other != name);
    let stays = |voter: &DeviceId| recorded(*voter) || said(*voter);
    present.iter().copied().filter(stays).chain([id]).collect()
}

fn own_report(node: &Node) -> Result<GroupReport, Status> {
    node.group.report().ok_or_else(|| Status::unavailable("the replica stopped"))
}

async fn change(
    node: &Node,
    report: &GroupReport,
    voters: BTreeSet<DeviceId>,
    learners: BTreeSet<DeviceId>,
) -> Result<(), Status> {
    let expected = report.config_index.unwrap_or(0);
    match node.group.change_members(expected, voters, learners).await {
        Ok(_) => Ok(()),
        Err(ChangeError::Invalid(message)) => Err(Status::failed_precondition(message)),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

async fn wait_caught_up(node: &Node, id: DeviceId) -> Result<GroupReport, Status> {
    let deadline = Instant::now() + CATCH_UP_DEADLINE;
    loop {
        node.leading()?;
        let report = own_report(node)?;
        if !report.changing && report.caught_up.contains(&id) {
            return Ok(report);
        }
        if Instant::now() >= deadline {
            return Err(Status::unavailable(format!("{id} is still catching up: ask again")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests;
