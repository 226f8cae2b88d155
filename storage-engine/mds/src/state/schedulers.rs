//! Which schedulers are paused: by a person, who does not want data moved at this moment.

use std::fmt;

use super::apply::{Applied, done};
use super::{Reason, Refusal, State};
use crate::log;

/// What the MDS does by itself with data that is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scheduler {
    /// Re-creates the replicas of devices that are out.
    Repair,
    /// Moves replicas until all devices are about equally full.
    Balance,
    /// Chooses which replicas lead, and hands leadership over.
    Leaders,
    /// Lets replicas read their blocks and compare their tables.
    Scrub,
}

impl Scheduler {
    pub const ALL: [Self; 4] = [Self::Repair, Self::Balance, Self::Leaders, Self::Scrub];

    pub fn name(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Balance => "balance",
            Self::Leaders => "leaders",
            Self::Scrub => "scrub",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheduler| scheduler.name() == name)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl State {
    pub(super) fn pause_schedulers(&mut self, pause: log::PauseSchedulers) -> Applied {
        let named = pause.schedulers.iter().map(|name| {
            Scheduler::from_name(name).ok_or_else(|| {
                let known = Scheduler::ALL.map(Scheduler::name).join(", ");
                let message = format!("scheduler is {name:?}: expected one of {known}");
                Refusal::new(Reason::Invalid, message)
            })
        });
        let mut schedulers = named.collect::<Result<Vec<_>, _>>()?;
        if schedulers.is_empty() {
            schedulers.extend(Scheduler::ALL);
        }
        for scheduler in schedulers {
            match pause.paused {
                true => self.paused.insert(scheduler),
                false => self.paused.remove(&scheduler),
            };
        }
        done()
    }
}
