//! Answers of recent mutations by request id, so that a retry has the effect of one call.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::log::Answer;

/// Requests remembered. A client retries for minutes at most; at a hundred mutations per second
/// this covers 80 s, at the rate of a Kubernetes cluster hours. Costs about 100 bytes each.
const ANSWERED_MAX: usize = 8192;

/// Only what took effect is remembered: a refused request may be tried again.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answered {
    order: VecDeque<Bytes>,
    by_request: BTreeMap<Bytes, (u32, Answer)>,
}

impl Eq for Answered {}

impl Answered {
    /// The kind of command and the answer given to the request before.
    pub fn get(&self, request_id: &Bytes) -> Option<&(u32, Answer)> {
        self.by_request.get(request_id)
    }

    /// Remembers an answer; the oldest one is forgotten in exchange.
    pub fn insert(&mut self, request_id: Bytes, kind: u32, answer: Answer) {
        // A decoded command shares its buffer with the whole entry: keep only the id.
        let request_id = Bytes::copy_from_slice(&request_id);
        if self.by_request.insert(request_id.clone(), (kind, answer)).is_none() {
            self.order.push_back(request_id);
        }
        if self.order.len() > ANSWERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_request.remove(&oldest);
        }
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, u32, &Answer)> {
        self.order.iter().filter_map(|id| {
            let (kind, answer) = self.by_request.get(id)?;
            Some((id, *kind, answer))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_answer_is_forgotten_first() {
        let id = |n: usize| Bytes::copy_from_slice(&(n as u128).to_le_bytes());
        let mut answered = Answered::default();
        for n in 0..=ANSWERED_MAX {
            answered.insert(id(n), 1, Answer { kind: None });
        }
        assert!(answered.get(&id(0)).is_none());
        assert!(answered.get(&id(1)).is_some());
        assert_eq!(answered.iter().count(), ANSWERED_MAX);
    }
}
