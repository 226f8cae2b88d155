//! Keeps overlapping writes apart. First come, first served: a waiting range also holds back
//! later ranges that overlap it, so that none starves and writes take effect in call order.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

/// Locks over byte ranges.
#[derive(Debug, Default)]
pub(super) struct RangeLock(Mutex<State>);

/// In order of arrival. In-flight bytes are bounded by the volume, so the list stays short and a
/// linear scan is the cheapest structure.
#[derive(Debug, Default)]
struct State {
    next_id: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    range: Range<u64>,
    /// Present while the range waits.
    waiter: Option<oneshot::Sender<()>>,
}

/// A held range, released on drop.
#[derive(Debug)]
pub(super) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    id: u64,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl RangeLock {
    /// Waits until no earlier range overlaps this one. The place in the queue is taken by the call.
    pub fn lock(&self, range: Range<u64>) -> impl Future<Output = RangeGuard<'_>> {
        let (guard, granted) = self.enqueue(range);
        async move {
            if let Some(granted) = granted {
                // An error would mean that the entry vanished, which only the guard's drop does.
                let _ = granted.await;
            }
            guard
        }
    }

    fn enqueue(&self, range: Range<u64>) -> (RangeGuard<'_>, Option<oneshot::Receiver<()>>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = state.next_id;
        state.next_id += 1;
        let blocked = state.entries.iter().any(|entry| overlap(&entry.range, &range));
        let (waiter, granted) = match blocked {
            true => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Some(receiver))
            }
            false => (None, None),
        };
        state.entries.push(Entry { id, range, waiter });
        (RangeGuard { lock: self, id }, granted)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.lock.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = state.entries.iter().position(|entry| entry.id == self.id) else { return };
        state.entries.remove(at);
        for at in at..state.entries.len() {
            let (earlier, rest) = state.entries.split_at_mut(at);
            let entry = &mut rest[0];
            if entry.waiter.is_some() && !earlier.iter().any(|e| overlap(&e.range, &entry.range)) {
                let waiter = entry.waiter.take().expect("just looked");
                // A waiter that gave up drops its guard, which releases the range again.
                let _ = waiter.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn overlapping_ranges_are_held_one_after_the_other_in_order() {
        let lock = RangeLock::default();
        let first = lock.lock(0..10).await;
        let mut second = Box::pin(lock.lock(5..15));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(lock.lock(12..20));
        assert!(third.as_mut().now_or_never().is_none(), "waits behind the second");
        let apart = lock.lock(20..30).now_or_never().expect("overlaps nothing");
        drop(first);
        let second = second.await;
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        drop((third.await, apart));
        assert!(lock.0.lock().expect("unpoisoned").entries.is_empty());
    }

    #[tokio::test]
    async fn a_range_has_its_place_from_the_call_on() {
        let lock = RangeLock::default();
        let first = lock.lock(0..10);
        let mut second = Box::pin(lock.lock(5..15));
        assert!(second.as_mut().now_or_never().is_none(), "the first was called earlier");
        drop(first);
        drop(second.now_or_never().expect("nothing overlaps any more"));
        assert!(lock.0.lock().expect("unpoisoned").entries.is_empty());
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_lets_the_next_through() {
        let lock = RangeLock::default();
        let first = lock.lock(0..10).await;
        let mut second = Box::pin(lock.lock(0..20));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(lock.lock(15..20));
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        let third = third.now_or_never().expect("nothing overlaps any more");
        drop((first, third));
        assert!(lock.0.lock().expect("unpoisoned").entries.is_empty());
    }
}
