//! Shares a device fairly among the volumes that use it: a greedy one must not make the requests of
//! a modest one wait behind all of its own.
//!
//! A volume is modest if it has few requests at a time, or a fraction of what the greediest has.
//! While there are both, each greedy one may have only so much under way (`beside`), but never less
//! than the modest ones have; what else it asks for waits here, in order. Volumes that are equally
//! greedy are not held back: each gets what the others get, and depth is what makes commits cheap.

mod beside;

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use curve_types::VolumeId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::beside::{Beside, Kind, SMALL_COST};

/// What a request costs besides its bytes: one of 4 KiB takes about as long as a quarter of one of
/// 64 KiB.
const REQUEST_COST: u64 = 16 << 10;
/// Whoever has no more than this under way and waiting is modest.
const MODEST: u64 = 2 * SMALL_COST;
/// And whoever has no more than this part of what the greediest has.
const MODEST_PART: u64 = 4;
/// How often it is looked who is modest. Long enough to see a few requests of each.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A volume that asked for nothing for so long does not count any more: one that commits a few times
/// in a second does in between.
const ACTIVE_FOR: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct Fairness(Arc<Mutex<State>>);

struct State {
    volumes: HashMap<VolumeId, Volume>,
    beside: Beside,
    /// What a greedy volume may have under way; `u64::MAX` if nobody needs that.
    limit: u64,
    looked: Instant,
}

struct Volume {
    modest: bool,
    /// The cost of its requests under way, and of those that wait.
    under_way: u64,
    queued: u64,
    /// The most that both were together since the last look.
    peak: u64,
    /// When it last asked for something.
    asked: Instant,
    waiting: VecDeque<(Request, oneshot::Sender<Turn>)>,
}

#[derive(Clone, Copy)]
struct Request {
    volume: VolumeId,
    kind: Kind,
    cost: u64,
}

/// A request under way, until dropped.
#[must_use]
pub(crate) struct Turn {
    fairness: Fairness,
    request: Request,
    began: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        let next = self.fairness.lock().end(self.request, took, now);
        // The turn of a request that is gone ends at once.
        for (request, waiting) in next {
            drop(waiting.send(Turn { fairness: self.fairness.clone(), request, began: now }));
        }
    }
}

impl Fairness {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State::new(Instant::now()))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the volume may begin to read so many bytes.
    pub async fn read(&self, volume: VolumeId, bytes: u64) -> Turn {
        self.turn(Request { volume, kind: Kind::Read, cost: bytes + REQUEST_COST }).await
    }

    /// The same for a write. One of zeroes or of a hole has no bytes.
    pub async fn write(&self, volume: VolumeId, bytes: u64) -> Turn {
        self.turn(Request { volume, kind: Kind::Write, cost: bytes + REQUEST_COST }).await
    }

    async fn turn(&self, request: Request) -> Turn {
        let began = Instant::now();
        let waiting = self.lock().begin(request, began);
        match waiting {
            None => Turn { fairness: self.clone(), request, began },
            Some(turn) => turn.await.expect("a volume that waits has a request under way"),
        }
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self { volumes: HashMap::new(), beside: Beside::default(), limit: u64::MAX, looked: now }
    }

    /// None if the request may begin now.
    fn begin(&mut self, request: Request, now: Instant) -> Option<oneshot::Receiver<Turn>> {
        self.look(now);
        if let Entry::Vacant(place) = self.volumes.entry(request.volume) {
            place.insert(Volume::new(now));
            self.limit = self.limit();
        }
        let volume = self.volumes.get_mut(&request.volume)?;
        volume.asked = now;
        let begins = volume.waiting.is_empty() && volume.has_room(request.cost, self.limit);
        let counted = if begins { &mut volume.under_way } else { &mut volume.queued };
        *counted += request.cost;
        volume.peak = volume.peak.max(volume.under_way + volume.queued);
        (!begins).then(|| {
            let (turn, waiting) = oneshot::channel();
            volume.waiting.push_back((request, turn));
            waiting
        })
    }

    /// Those of the volume that may begin now that the request has ended.
    fn end(
        &mut self,
        request: Request,
        took: Duration,
        now: Instant,
    ) -> Vec<(Request, oneshot::Sender<Turn>)> {
        self.look(now);
        let Some(volume) = self.volumes.get_mut(&request.volume) else { return Vec::new() };
        if volume.peak <= MODEST {
            self.beside.on_end(request.kind, request.cost, took);
        }
        volume.under_way -= request.cost;
        let mut next = Vec::new();
        while let Some(cost) = volume.waiting.front().map(|(request, _)| request.cost)
            && volume.has_room(cost, self.limit)
        {
            volume.queued -= cost;
            volume.under_way += cost;
            next.extend(volume.waiting.pop_front());
        }
        next
    }

    /// Now and then, as it looks at every volume: who is modest, and what greedy ones may have.
    fn look(&mut self, now: Instant) {
        let ago = |then: Instant| now.saturating_duration_since(then);
        if ago(self.looked) < LOOK_INTERVAL {
            return;
        }
        self.looked = now;
        self.volumes.retain(|_, volume| volume.under_way > 0 || ago(volume.asked) < ACTIVE_FOR);
        let greediest = self.volumes.values().map(|volume| volume.peak).max().unwrap_or(0);
        for volume in self.volumes.values_mut() {
            volume.modest = volume.peak <= MODEST.max(greediest / MODEST_PART);
        }
        self.beside.adjust(self.volumes.values().any(|volume| !volume.modest));
        self.limit = self.limit();
        for volume in self.volumes.values_mut() {
            volume.peak = volume.under_way + volume.queued;
        }
    }

    fn limit(&self) -> u64 {
        let modest = self.volumes.values().filter(|volume| volume.modest);
        let is_mixed = self.volumes.values().any(|volume| !volume.modest);
        match modest.map(|volume| volume.peak).max() {
            Some(peak) if is_mixed => peak.max(self.beside.limit()),
            _ => u64::MAX,
        }
    }
}

impl Volume {
    /// Modest until more is known.
    fn new(now: Instant) -> Self {
        Self {
            modest: true,
            under_way: 0,
            queued: 0,
            peak: 0,
            asked: now,
            waiting: VecDeque::new(),
        }
    }

    /// One request may always be under way, however large.
    fn has_room(&self, cost: u64, limit: u64) -> bool {
        self.modest || self.under_way == 0 || self.under_way.saturating_add(cost) <= limit
    }
}

#[cfg(test)]
mod tests;
