//! Numbers the writes of a session. Pure memory.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Hands out sequence numbers and knows the lowest one still unresolved.
#[derive(Debug, Default)]
pub(super) struct Sequence(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    unresolved: BTreeSet<u64>,
}

/// One write under way. Dropping it resolves the number: whatever of the write has not taken
/// effect by then is refused by the copyset once it has seen a later write.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    sequence: &'a Sequence,
    pub seq: u64,
    /// Lowest unresolved number when this one was given out, itself included.
    pub floor: u64,
}

impl Sequence {
    pub fn begin(&self) -> Ticket<'_> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.last += 1;
        let seq = state.last;
        state.unresolved.insert(seq);
        let floor = *state.unresolved.first().expect("just inserted");
        Ticket { sequence: self, seq, floor }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.sequence.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.unresolved.remove(&self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_oldest_write_under_way() {
        let sequence = Sequence::default();
        let first = sequence.begin();
        let second = sequence.begin();
        assert_eq!((first.seq, first.floor), (1, 1));
        assert_eq!((second.seq, second.floor), (2, 1));
        drop(second);
        assert_eq!(sequence.begin().floor, 1);
        drop(first);
        let fifth = sequence.begin();
        assert_eq!((fifth.seq, fifth.floor), (4, 4));
    }
}
