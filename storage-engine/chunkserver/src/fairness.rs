//! Shares a device fairly among the volumes that use it: a greedy one must not make the requests of
//! a modest one wait behind all of its own.
//!
//! A volume is modest if it has few requests at a time, or a fraction of what the greediest has.
//! While there are both, each greedy one may have only so much under way (`beside`), but never less
//! than the modest ones have; what else it asks for waits here, in order, but not for long. Volumes
//! that are equally greedy are not held back: each gets what the others get, and depth is what makes
//! commits cheap.

mod beside;

use std::collections::hash_map::{Entry, HashMap};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use curve_types::VolumeId;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use self::beside::{Beside, Kind};

/// What a request costs besides its bytes: one of 4 KiB takes about as long as a quarter of one of
/// 64 KiB.
const REQUEST_COST: u64 = 16 << 10;
/// That of a request of 4 KiB.
const SMALL_COST: u64 = REQUEST_COST + (4 << 10);
/// Whoever has no more than this under way and waiting is modest.
const MODEST: u64 = 8 * SMALL_COST;
/// And whoever has no more than this part of what the greediest has.
const MODEST_PART: u64 = 4;
/// How often it is looked who is modest. Long enough to see a few requests of each.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A volume that asked for nothing for so long does not count any more: one that commits five times
/// in a second does in between.
const ACTIVE_FOR: Duration = Duration::from_millis(200);
/// A request that has waited for so long begins, whatever is under way: clients give up after
/// seconds and ask again, which only makes more of it.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// A request under way for so long counts no more: it may be stuck in a copyset without a quorum,
/// which is no reason to hold back those to others.
const COUNT_MAX: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub(crate) struct Fairness {
    state: Arc<Mutex<State>>,
    held_back: Counter,
}

struct State {
    volumes: HashMap<VolumeId, Volume>,
    beside: Beside,
    /// What a greedy volume may have under way; `u64::MAX` if nobody needs that.
    limit: u64,
    looked: Instant,
    /// Of the next request that begins.
    number: u64,
}

#[derive(Default)]
struct Volume {
    greedy: bool,
    /// When they began and what they cost, by number.
    under_way: BTreeMap<u64, (Instant, u64)>,
    /// The cost of all of those, and of those that wait.
    under_way_cost: u64,
    queued: u64,
    /// The most that both were together since the last look, and between the two before.
    peak: u64,
    last_peak: u64,
    /// When it last asked for something.
    asked: Option<Instant>,
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
    number: u64,
    began: Instant,
    succeeded: bool,
}

impl Turn {
    /// What it takes is what such a request takes. Refusals are faster.
    pub fn succeed(&mut self) {
        self.succeeded = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = self.succeeded.then(|| now.saturating_duration_since(self.began));
        let next = self.fairness.lock().end(self.request, self.number, took, now);
        for (request, number, waiting) in next {
            // Whoever stopped waiting just now gives it back.
            drop(waiting.send(self.fairness.turn_of(request, number, now)));
        }
    }
}

impl Fairness {
    /// `held_back` counts the requests that had to wait.
    pub fn new(held_back: Counter) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(Instant::now()))), held_back }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_of(&self, request: Request, number: u64, began: Instant) -> Turn {
        Turn { fairness: self.clone(), request, number, began, succeeded: false }
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
        let now = Instant::now();
        let asked = self.lock().ask(request, now);
        let waiting = match asked {
            Ok(number) => return self.turn_of(request, number, now),
            Err(waiting) => waiting,
        };
        self.held_back.inc();
        match timeout(WAIT_MAX, waiting).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) | Err(_) => {
                let now = Instant::now();
                let number = self.lock().begin(request, now);
                self.turn_of(request, number, now)
            }
        }
    }
}

impl State {
    fn new(now: Instant) -> Self {
        let (volumes, beside) = (HashMap::new(), Beside::new(now));
        Self { volumes, beside, limit: u64::MAX, looked: now, number: 0 }
    }

    /// The number of the request if it begins now.
    fn ask(&mut self, request: Request, now: Instant) -> Result<u64, oneshot::Receiver<Turn>> {
        self.look(now);
        let limit = self.limit;
        let volume = match self.volumes.entry(request.volume) {
            Entry::Occupied(volume) => volume.into_mut(),
            Entry::Vacant(place) => {
                let volume = place.insert(Volume::default());
                // Whoever is greedy makes room for it at once.
                self.limit = self.limit.min(self.beside.limit().max(request.cost));
                volume
            }
        };
        volume.asked = Some(now);
        if volume.first_waiting().is_none() && volume.has_room(request.cost, limit, now) {
            return Ok(self.begin(request, now));
        }
        let (turn, waiting) = oneshot::channel();
        volume.waiting.push_back((request, turn));
        volume.queued += request.cost;
        volume.note_peak();
        Err(waiting)
    }

    fn begin(&mut self, request: Request, now: Instant) -> u64 {
        let number = self.number;
        self.number += 1;
        self.volumes.entry(request.volume).or_default().begin(number, request.cost, now);
        number
    }

    /// Those of the volume that may begin now that a request has ended; `took` if it says
    /// something.
    fn end(
        &mut self,
        request: Request,
        number: u64,
        took: Option<Duration>,
        now: Instant,
    ) -> Vec<(Request, u64, oneshot::Sender<Turn>)> {
        self.look(now);
        let Some(volume) = self.volumes.get_mut(&request.volume) else { return Vec::new() };
        if let Some(took) = took
            && !volume.greedy
        {
            self.beside.on_end(request.kind, took);
        }
        volume.forget(number);
        let mut next = Vec::new();
        while let Some(request) = volume.first_waiting()
            && volume.has_room(request.cost, self.limit, now)
        {
            let turn = volume.take_waiting();
            volume.begin(self.number, request.cost, now);
            next.extend(turn.map(|turn| (request, self.number, turn)));
            self.number += 1;
        }
        next
    }

    /// Now and then, as it looks at every volume: who is greedy, and what those may have.
    fn look(&mut self, now: Instant) {
        let ago = |then: Instant| now.saturating_duration_since(then);
        if ago(self.looked) < LOOK_INTERVAL {
            return;
        }
        self.looked = now;
        let is_active = |volume: &Volume| {
            !volume.under_way.is_empty()
                || !volume.waiting.is_empty()
                || volume.asked.is_some_and(|at| ago(at) < ACTIVE_FOR)
        };
        self.volumes.retain(|_, volume| is_active(volume));
        let greediest = self.volumes.values().map(|volume| volume.peak).max().unwrap_or(0);
        let mut modest = None;
        for volume in self.volumes.values_mut() {
            volume.greedy = volume.peak > MODEST.max(greediest / MODEST_PART);
            if !volume.greedy {
                modest = modest.max(Some(volume.peak.max(volume.last_peak)));
            }
            volume.last_peak = std::mem::take(&mut volume.peak);
            volume.note_peak();
        }
        self.limit = match modest {
            Some(modest) if self.volumes.values().any(|volume| volume.greedy) => {
                self.beside.look(now);
                self.beside.limit().max(modest)
            }
            _ => {
                self.beside.pause(now);
                u64::MAX
            }
        };
    }
}

impl Volume {
    fn note_peak(&mut self) {
        self.peak = self.peak.max(self.under_way_cost + self.queued);
    }

    fn begin(&mut self, number: u64, cost: u64, now: Instant) {
        self.under_way.insert(number, (now, cost));
        self.under_way_cost += cost;
        self.note_peak();
    }

    fn forget(&mut self, number: u64) {
        if let Some((_, cost)) = self.under_way.remove(&number) {
            self.under_way_cost -= cost;
        }
    }

    fn take_waiting(&mut self) -> Option<oneshot::Sender<Turn>> {
        let (request, turn) = self.waiting.pop_front()?;
        self.queued -= request.cost;
        Some(turn)
    }

    /// Without those that wait no more.
    fn first_waiting(&mut self) -> Option<Request> {
        while let Some((request, turn)) = self.waiting.front() {
            if !turn.is_closed() {
                return Some(*request);
            }
            drop(self.take_waiting());
        }
        None
    }

    /// One request may always be under way, however large.
    fn has_room(&mut self, cost: u64, limit: u64, now: Instant) -> bool {
        while let Some((number, (began, _))) = self.under_way.first_key_value()
            && now.saturating_duration_since(*began) >= COUNT_MAX
        {
            let number = *number;
            self.forget(number);
        }
        !self.greedy || self.under_way.is_empty() || self.under_way_cost + cost <= limit
    }
}

#[cfg(test)]
mod tests;
