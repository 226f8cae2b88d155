//! Commands about pools and their copysets.

use curve_types::{CopysetId, DeviceId, PoolId, REPLICAS_MIN, SHARDS_PER_POOL, ShardRange};

use super::apply::{Applied, device_id, done, malformed, validate_name};
use super::devices::unknown_device;
use super::{Copyset, FailureDomain, Joining, Pool, Reason, Refusal, State, Volume};
use crate::log::{self, answer, ids_from_wire};

/// Most replicas a pool may have: seven survive three losses.
const REPLICAS_MAX: u32 = 7;
/// Volumes may have what the pool can store, and no more.
pub(super) const NO_OVERCOMMIT: u32 = 100;
/// Twenty times the capacity, as much as LINSTOR allows unless told otherwise: whoever asks for
/// more has mistyped.
const OVERCOMMIT_PERCENT_MAX: u32 = 2000;

impl State {
    /// Changes the overcommit of a pool that exists. What its volumes have by then is left alone.
    pub(super) fn create_pool(&mut self, create: log::CreatePool) -> Applied {
        validate_name("pool name", &create.name)?;
        if !create.device_class.is_empty() {
            validate_name("device_class", &create.device_class)?;
        }
        let keeps_overcommit = create.overcommit_percent == 0;
        let pool = Pool {
            replicas: validate_replicas(create.replicas)?,
            failure_domain: FailureDomain::from_code(create.failure_domain)?,
            class: create.device_class,
            overcommit_percent: load_overcommit(create.overcommit_percent)?,
            name: create.name,
        };
        if let Some((id, existing)) = self.pool_by_name(&pool.name) {
            let overcommit_percent = existing.overcommit_percent;
            if *existing == (Pool { overcommit_percent, ..pool.clone() }) {
                if !keeps_overcommit {
                    self.pools.insert(id, pool);
                }
                return Ok(answer::Kind::Pool(id.0));
            }
            let message = format!(
                "pool {:?} exists with other properties: {} replicas by {}, device class {:?}",
                existing.name,
                existing.replicas,
                existing.failure_domain.as_str(),
                existing.class
            );
            return Err(Refusal::new(Reason::AlreadyExists, message));
        }
        let id = PoolId(self.next_pool);
        self.next_pool += 1;
        self.pools.insert(id, pool);
        Ok(answer::Kind::Pool(id.0))
    }

    /// Done if absent. Its devices drop the replicas at their next heartbeat.
    pub(super) fn delete_pool(&mut self, name: &str) -> Applied {
        let Some((id, _)) = self.pool_by_name(name) else {
            return done();
        };
        let volumes = self.volumes.values().filter(|volume| volume.pool == id).count();
        if volumes > 0 {
            let message =
                format!("pool {name:?} holds {volumes} volumes and snapshots: delete them first");
            return Err(Refusal::new(Reason::Precondition, message));
        }
        self.copysets.retain(|_, copyset| copyset.pool != id);
        self.forget_scrubs();
        self.pools.remove(&id);
        done()
    }

    /// Gives a pool its copysets, all at once.
    pub(super) fn add_copysets(&mut self, add: log::AddCopysets) -> Applied {
        let id = PoolId(add.pool);
        let Some(pool) = self.pools.get(&id) else {
            return Err(Refusal::new(Reason::NotFound, format!("pool {id} does not exist")));
        };
        if self.copysets_of(id).next().is_some() {
            let message = format!("pool {:?} has its copysets", pool.name);
            return Err(Refusal::new(Reason::AlreadyExists, message));
        }
        let mut copysets = Vec::new();
        let mut next_shard = 0;
        for placement in &add.placements {
            let voters = self.validate_voters(pool, &placement.voters)?;
            let shards = ShardRange { first: placement.shard_first, end: placement.shard_end };
            if shards.first != next_shard || shards.end <= shards.first {
                return Err(Refusal::new(Reason::Invalid, "shard ranges must follow each other"));
            }
            next_shard = shards.end;
            copysets.push(Copyset::planned(id, shards, voters));
        }
        if next_shard != SHARDS_PER_POOL {
            let message = format!("shard ranges end at {next_shard}, not at {SHARDS_PER_POOL}");
            return Err(Refusal::new(Reason::Invalid, message));
        }
        for copyset in copysets {
            self.insert_copyset(copyset);
        }
        done()
    }

    fn insert_copyset(&mut self, copyset: Copyset) {
        self.copysets.insert(CopysetId(self.next_copyset), copyset);
        self.next_copyset += 1;
    }

    pub(super) fn activate_copysets(&mut self, ids: log::CopysetIds) -> Applied {
        for id in ids.ids {
            self.copyset_mut(id)?.active = true;
        }
        done()
    }

    /// Starts over with a copyset whose group was never formed. It gets a new id, so that the
    /// device that was to form it cannot do so later.
    pub(super) fn recreate_copyset(&mut self, recreate: log::RecreateCopyset) -> Applied {
        let id = CopysetId(recreate.copyset);
        let old = self.copyset_mut(recreate.copyset)?.clone();
        if old.active {
            let message = format!("copyset {id} is in use: its replicas can only be replaced");
            return Err(Refusal::new(Reason::Precondition, message));
        }
        let pool = &self.pools[&old.pool];
        let voters = self.validate_voters(pool, &recreate.voters)?;
        self.copysets.remove(&id);
        self.insert_copyset(Copyset::planned(old.pool, old.shards, voters));
        done()
    }

    pub(super) fn begin_replacement(&mut self, replacement: log::Replacement) -> Applied {
        let add = device_id(&replacement.add)?;
        let remove = device_id(&replacement.remove)?;
        let joins = self.devices.get(&add).ok_or_else(|| unknown_device(add))?.clone();
        let id = CopysetId(replacement.copyset);
        let copyset = self.copyset_mut(replacement.copyset)?.clone();
        let kind = self.pools[&copyset.pool].failure_domain;
        let domain = joins.domain(kind);
        let kept = || copyset.voters.iter().filter(|voter| **voter != remove);
        let clash = kept().any(|voter| {
            self.devices.get(voter).is_some_and(|device| device.domain(kind) == domain)
        });
        let refusal = if !copyset.is_at_rest() {
            Some(format!("copyset {id} is not at rest"))
        } else if !copyset.voters.contains(&remove) || copyset.voters.contains(&add) {
            Some(format!("copyset {id} has no replica on {remove} or has one on {add}"))
        } else if clash {
            Some(format!("copyset {id} has a replica in {} {domain:?} already", kind.as_str()))
        } else {
            None
        };
        if let Some(message) = refusal {
            return Err(Refusal::new(Reason::Precondition, message));
        }
        self.copyset_mut(replacement.copyset)?.joining = Some(Joining { add, remove });
        done()
    }

    pub(super) fn abandon_replacement(&mut self, replacement: log::Replacement) -> Applied {
        let add = device_id(&replacement.add)?;
        let copyset = self.copyset_mut(replacement.copyset)?;
        if copyset.joining.is_some_and(|joining| joining.add == add) {
            copyset.joining = None;
        }
        done()
    }

    /// Takes over the voters of a committed configuration, as the copyset's leader reported them.
    pub(super) fn observe_membership(&mut self, observed: log::ObservedMembership) -> Applied {
        let voters: Vec<DeviceId> =
            ids_from_wire(&observed.voters).ok_or_else(|| malformed("voters"))?;
        let copyset = self.copyset_mut(observed.copyset)?;
        if copyset.splitting.is_some() {
            // What leaves it has the members that are known now, and no later ones.
            return Err(Refusal::new(Reason::NotReady, "the copyset is being split"));
        }
        if observed.config_index < copyset.config_index || voters.is_empty() {
            return Err(Refusal::new(
                Reason::Precondition,
                "the report is older than what is known",
            ));
        }
        copyset.config_index = observed.config_index;
        if copyset.joining.is_some_and(|joining| {
            voters.contains(&joining.add) || !copyset.voters.contains(&joining.remove)
        }) {
            copyset.joining = None;
        }
        copyset.take_voters(voters);
        done()
    }

    /// Whether a copyset of the pool may be split now. What is told to all copysets of a volume must
    /// not miss one that is not known yet: it goes first, and none of it begins meanwhile.
    pub fn may_split(&self, pool: PoolId) -> Result<(), Refusal> {
        let owes = |volume: &Volume| {
            let is_unready = volume.snapshot.as_ref().is_some_and(|snapshot| !snapshot.ready);
            volume.owes_fence() || volume.restoring.is_some() || volume.deleting || is_unready
        };
        let refusal = |message: String| Err(Refusal::new(Reason::NotReady, message));
        if self.is_splitting(pool) {
            return refusal(format!("a copyset of pool {pool} is being split"));
        }
        match self.volumes.values().find(|volume| volume.pool == pool && owes(volume)) {
            Some(volume) => refusal(format!("copysets are yet to hear of {:?}", volume.name)),
            None => Ok(()),
        }
    }

    pub fn is_splitting(&self, pool: PoolId) -> bool {
        self.copysets_of(pool).any(|(_, copyset)| copyset.splitting.is_some())
    }

    /// Gives a name to the copyset that is to have the upper half of another's shards.
    pub(super) fn begin_split(&mut self, id: u32) -> Applied {
        let copyset = self.copyset_mut(id)?.clone();
        if !copyset.is_at_rest() || copyset.shards.halves().is_none() {
            let message = format!("copyset {id} is not at rest or has only one shard");
            return Err(Refusal::new(Reason::Precondition, message));
        }
        self.may_split(copyset.pool)?;
        let new = CopysetId(self.next_copyset);
        self.next_copyset += 1;
        self.copyset_mut(id)?.splitting = Some(new);
        done()
    }

    /// Its replicas have divided, or will as they come to that place of their log.
    pub(super) fn finish_split(&mut self, id: u32) -> Applied {
        let copyset = self.copyset_mut(id)?;
        let Some((new, (kept, left))) = copyset.splitting.zip(copyset.shards.halves()) else {
            return Err(Refusal::new(Reason::Precondition, format!("copyset {id} is not split")));
        };
        (copyset.shards, copyset.splitting) = (kept, None);
        let mut other =
            Copyset { shards: left, split_from: Some(CopysetId(id)), ..copyset.clone() };
        // Another one is to lead it.
        other.voters.rotate_left(1);
        self.copysets.insert(new, other);
        done()
    }

    /// Makes a voter the first one: the one that is to lead.
    pub(super) fn prefer_leader(&mut self, prefer: log::PreferLeader) -> Applied {
        let device = device_id(&prefer.device)?;
        let copyset = self.copyset_mut(prefer.copyset)?;
        let at = copyset.voters.iter().position(|voter| *voter == device);
        let Some(at) = at.filter(|_| copyset.active) else {
            let id = prefer.copyset;
            let message = format!("copyset {id} is not formed yet or has no voter {device}");
            return Err(Refusal::new(Reason::Precondition, message));
        };
        copyset.voters.swap(0, at);
        done()
    }

    pub(super) fn copyset_mut(&mut self, id: u32) -> Result<&mut Copyset, Refusal> {
        let missing = || Refusal::new(Reason::NotFound, format!("copyset {id} does not exist"));
        self.copysets.get_mut(&CopysetId(id)).ok_or_else(missing)
    }

    /// As many known devices as the pool has replicas, no two in one failure domain.
    fn validate_voters(&self, pool: &Pool, raw: &[bytes::Bytes]) -> Result<Vec<DeviceId>, Refusal> {
        let voters: Vec<DeviceId> = ids_from_wire(raw).ok_or_else(|| malformed("voters"))?;
        let mut domains = std::collections::BTreeSet::new();
        for voter in &voters {
            let device = self.devices.get(voter).ok_or_else(|| unknown_device(*voter))?;
            domains.insert(device.domain(pool.failure_domain));
        }
        if voters.len() != pool.replicas as usize || domains.len() != voters.len() {
            let message = format!(
                "{} replicas in {} failure domains, where {} of each are needed",
                voters.len(),
                domains.len(),
                pool.replicas
            );
            return Err(Refusal::new(Reason::Invalid, message));
        }
        Ok(voters)
    }
}

impl Copyset {
    /// Formed, and neither its members nor its shards are being changed.
    pub fn is_at_rest(&self) -> bool {
        self.active && self.joining.is_none() && self.splitting.is_none()
    }

    fn planned(pool: PoolId, shards: ShardRange, voters: Vec<DeviceId>) -> Self {
        Self {
            pool,
            shards,
            voters,
            active: false,
            config_index: 0,
            joining: None,
            splitting: None,
            split_from: None,
        }
    }

    /// A new voter takes the place of one that left, so that the planned leader stays the first.
    fn take_voters(&mut self, voters: Vec<DeviceId>) {
        let mut new = voters.iter().filter(|voter| !self.voters.contains(voter));
        let kept_or_new = self.voters.iter().filter_map(|voter| match voters.contains(voter) {
            true => Some(*voter),
            false => new.next().copied(),
        });
        let mut ordered: Vec<DeviceId> = kept_or_new.collect();
        ordered.extend(new.copied());
        self.voters = ordered;
    }
}

impl FailureDomain {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Zone => "zone",
        }
    }

    /// The number that both protocols use.
    pub fn code(self) -> u32 {
        match self {
            Self::Host => 1,
            Self::Zone => 2,
        }
    }

    /// Inverse of `code`; 0, unspecified, means host.
    pub fn from_code(code: u32) -> Result<Self, Refusal> {
        match code {
            0 | 1 => Ok(Self::Host),
            2 => Ok(Self::Zone),
            other => {
                let message = format!("failure_domain is {other}: expected 1 (host) or 2 (zone)");
                Err(Refusal::new(Reason::Invalid, message))
            }
        }
    }
}

fn validate_replicas(replicas: u32) -> Result<u32, Refusal> {
    let valid = (REPLICAS_MIN..=REPLICAS_MAX).contains(&replicas) && replicas % 2 == 1;
    if valid {
        return Ok(replicas);
    }
    let message = format!(
        "replicas is {replicas}: expected 3, 5 or 7 (an even number survives no more losses than \
         the odd one below it)"
    );
    Err(Refusal::new(Reason::Invalid, message))
}

/// Of a command or of stored bytes: 0, as earlier versions wrote it, means no overcommit.
pub(super) fn load_overcommit(percent: u32) -> Result<u32, Refusal> {
    match percent {
        0 => Ok(NO_OVERCOMMIT),
        NO_OVERCOMMIT..=OVERCOMMIT_PERCENT_MAX => Ok(percent),
        other => {
            let message = format!(
                "overcommit_percent is {other}: expected {NO_OVERCOMMIT} (no overcommit) to \
                 {OVERCOMMIT_PERCENT_MAX}"
            );
            Err(Refusal::new(Reason::Invalid, message))
        }
    }
}
