//! Dispatches a command, remembers its answer, and forms the cluster.

use bytes::Bytes;
use curve_types::{ClusterId, DeviceId, PoolId, VolumeId};

use super::pools::NO_OVERCOMMIT;
use super::{Cluster, FailureDomain, NAME_LEN_MAX, Pool, Reason, Refusal, State};
use crate::log::{self, Answer, Command, Empty, WireId, answer, command::Kind};

/// What a command that took effect answers.
pub(super) type Applied = Result<answer::Kind, Refusal>;

/// Name of the pool that a new cluster has.
pub const DEFAULT_POOL: &str = "default";

impl State {
    /// Carries out one command of the log. Total: a command that cannot be understood or that the
    /// state does not allow is refused, the same way on every replica.
    pub fn apply(&mut self, command: Command) -> Answer {
        let Command { request_id, now_unix_ms, kind } = command;
        let Some(kind) = kind else {
            return refused(Refusal::new(Reason::Invalid, "the command is of an unknown kind"));
        };
        let tag = kind_tag(&kind);
        if let Some((known, answer)) = self.answered.get(&request_id) {
            if *known == tag {
                return answer.clone();
            }
            let message = "request_id was used before, for another kind of request";
            return refused(Refusal::new(Reason::Invalid, message));
        }
        match self.carry_out(kind, now_unix_ms) {
            Ok(kind) => {
                let answer = Answer { kind: Some(kind) };
                if !request_id.is_empty() {
                    self.answered.insert(request_id, tag, answer.clone());
                }
                answer
            }
            Err(refusal) => refused(refusal),
        }
    }

    fn carry_out(&mut self, kind: Kind, now_unix_ms: u64) -> Applied {
        match kind {
            Kind::FormCluster(form) => self.form_cluster(form),
            Kind::ReplaceMds(member) => self.replace_mds(member),
            Kind::RegisterDevice(register) => self.register_device(register),
            Kind::ObserveDevice(facts) => self.observe_device(facts),
            Kind::ForgetDevice(id) => self.forget_device(device_id(&id)?),
            Kind::CreatePool(create) => self.create_pool(create),
            Kind::DeletePool(name) => self.delete_pool(&name),
            Kind::AddCopysets(add) => self.add_copysets(add),
            Kind::ActivateCopysets(ids) => self.activate_copysets(ids),
            Kind::RecreateCopyset(recreate) => self.recreate_copyset(recreate),
            Kind::BeginReplacement(replacement) => self.begin_replacement(replacement),
            Kind::AbandonReplacement(replacement) => self.abandon_replacement(replacement),
            Kind::ObserveMembership(observed) => self.observe_membership(observed),
            Kind::CreateVolume(create) => self.create_volume(create, now_unix_ms),
            Kind::ResizeVolume(resize) => self.resize_volume(resize),
            Kind::DeleteVolume(delete) => self.delete_volume(delete),
            Kind::ForgetVolume(id) => self.forget_volume(volume_id(&id)?),
            Kind::Publish(publish) => self.publish(publish),
            Kind::Unpublish(unpublish) => self.unpublish(unpublish),
            Kind::OpenSession(open) => self.open_session(open),
            Kind::CloseSession(close) => self.close_session(close),
            Kind::Fenced(fenced) => self.fenced(fenced),
            Kind::SetLimits(set) => self.set_limits(set),
            Kind::BeginSnapshots(begin) => self.begin_snapshots(begin, now_unix_ms),
            Kind::SnapshotsReady(ids) => self.snapshots_ready(ids),
            Kind::AbandonSnapshots(ids) => self.abandon_snapshots(ids),
            Kind::Rollback(rollback) => self.roll_back(rollback),
            Kind::Restored(restored) => self.restored(restored),
            Kind::PreferLeader(prefer) => self.prefer_leader(prefer),
            Kind::PauseSchedulers(pause) => self.pause_schedulers(pause),
            Kind::SetScrubSchedule(set) => self.set_scrub_schedule(set),
            Kind::RequestScrub(request) => self.request_scrub(request),
            Kind::BeginScrub(id) => self.begin_scrub(id, now_unix_ms),
            Kind::EndScrub(end) => self.end_scrub(end, now_unix_ms),
            Kind::BeginSplit(id) => self.begin_split(id),
            Kind::FinishSplit(id) => self.finish_split(id),
        }
    }

    fn form_cluster(&mut self, form: log::FormCluster) -> Applied {
        if let Some(cluster) = &self.cluster {
            let message = format!("the group already serves cluster {}", cluster.id);
            return Err(Refusal::new(Reason::AlreadyExists, message));
        }
        let id = ClusterId::from_wire(&form.cluster_id).ok_or_else(|| malformed("cluster_id"))?;
        validate_name("cluster name", &form.name)?;
        for member in form.members {
            let device = device_id(&member.device_id)?;
            self.members.insert(member.name, device);
        }
        self.cluster = Some(Cluster { id, name: form.name });
        let pool = PoolId(self.next_pool);
        self.next_pool += 1;
        let default = Pool {
            name: DEFAULT_POOL.to_owned(),
            replicas: curve_types::REPLICAS_MIN,
            failure_domain: FailureDomain::Host,
            class: String::new(),
            overcommit_percent: NO_OVERCOMMIT,
        };
        self.pools.insert(pool, default);
        done()
    }

    fn replace_mds(&mut self, member: log::MdsMember) -> Applied {
        let device = device_id(&member.device_id)?;
        if !self.members.contains_key(&member.name) {
            let known: Vec<&str> = self.members.keys().map(String::as_str).collect();
            let (name, known) = (&member.name, known.join(", "));
            let message = format!("name is {name:?}, which is no MDS of this cluster: {known}");
            return Err(Refusal::new(Reason::NotFound, message));
        }
        self.members.insert(member.name, device);
        done()
    }
}

pub(super) fn done() -> Applied {
    Ok(answer::Kind::Done(Empty {}))
}

fn refused(refusal: Refusal) -> Answer {
    let Refusal { reason, message } = refusal;
    Answer { kind: Some(answer::Kind::Refused(log::Refusal { code: reason as u32, message })) }
}

pub(super) fn malformed(field: &str) -> Refusal {
    Refusal::new(Reason::Invalid, format!("{field} must be 16 bytes that are not all zero"))
}

pub(super) fn device_id(raw: &Bytes) -> Result<DeviceId, Refusal> {
    DeviceId::from_wire(raw).ok_or_else(|| malformed("device_id"))
}

pub(super) fn volume_id(raw: &Bytes) -> Result<VolumeId, Refusal> {
    VolumeId::from_wire(raw).ok_or_else(|| malformed("volume id"))
}

/// Names appear in addresses, labels and file names: letters, digits, `-`, `_` and `.`, beginning
/// and ending with a letter or digit.
pub fn validate_name(field: &str, name: &str) -> Result<(), Refusal> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let valid = name.len() <= NAME_LEN_MAX
        && name.chars().all(inner)
        && edge(name.chars().next())
        && edge(name.chars().next_back());
    if valid {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_LEN_MAX).collect();
    let message = format!(
        "{field} is {shown:?}: expected 1 to {NAME_LEN_MAX} letters, digits, '-', '_' or '.', \
         beginning and ending with a letter or digit"
    );
    Err(Refusal::new(Reason::Invalid, message))
}

impl Reason {
    /// Inverse of `self as u32`.
    pub fn from_code(code: u32) -> Self {
        let all = [
            Self::NotFound,
            Self::AlreadyExists,
            Self::Precondition,
            Self::Exhausted,
            Self::Forbidden,
            Self::NotReady,
        ];
        all.into_iter().find(|reason| *reason as u32 == code).unwrap_or(Self::Invalid)
    }
}

/// Tells commands apart in the table of answers: the field's number in `log.proto`.
fn kind_tag(kind: &Kind) -> u32 {
    match kind {
        Kind::FormCluster(_) => 10,
        Kind::ReplaceMds(_) => 11,
        Kind::RegisterDevice(_) => 12,
        Kind::ObserveDevice(_) => 13,
        Kind::ForgetDevice(_) => 14,
        Kind::CreatePool(_) => 20,
        Kind::DeletePool(_) => 21,
        Kind::AddCopysets(_) => 22,
        Kind::ActivateCopysets(_) => 23,
        Kind::RecreateCopyset(_) => 24,
        Kind::BeginReplacement(_) => 25,
        Kind::AbandonReplacement(_) => 26,
        Kind::ObserveMembership(_) => 27,
        Kind::PreferLeader(_) => 28,
        Kind::PauseSchedulers(_) => 29,
        Kind::CreateVolume(_) => 30,
        Kind::ResizeVolume(_) => 31,
        Kind::DeleteVolume(_) => 32,
        Kind::ForgetVolume(_) => 33,
        Kind::Publish(_) => 34,
        Kind::Unpublish(_) => 35,
        Kind::OpenSession(_) => 36,
        Kind::CloseSession(_) => 37,
        Kind::Fenced(_) => 38,
        Kind::SetLimits(_) => 39,
        Kind::BeginSnapshots(_) => 40,
        Kind::SnapshotsReady(_) => 41,
        Kind::Restored(_) => 42,
        Kind::Rollback(_) => 43,
        Kind::AbandonSnapshots(_) => 44,
        Kind::SetScrubSchedule(_) => 45,
        Kind::RequestScrub(_) => 46,
        Kind::BeginScrub(_) => 47,
        Kind::EndScrub(_) => 48,
        Kind::BeginSplit(_) => 49,
        Kind::FinishSplit(_) => 50,
    }
}
