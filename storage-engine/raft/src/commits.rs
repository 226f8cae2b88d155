//! Tells followers what is committed along with the next entries, not in a message of its own.
//!
//! As soon as entries are committed, openraft makes a request without entries that says so. Whoever
//! waits for the write has its answer by then, and followers have time: such a request would only
//! cost both ends a message and an answer for every write. Should the entries be refused, because
//! the follower's log is nearly full, the next heartbeat tells it.
//!
//! Nothing may take the time at which such a request was made for that of a message: see `heard`.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use crate::types::AppendRequest;

/// How far behind the leader a follower applies at most, once nothing more is written.
const HOLD: Duration = Duration::from_millis(50);

/// Holds back a request without entries until another comes, which then takes its place, or until
/// `HOLD` is over.
pub(crate) fn coalesce<S>(requests: S) -> impl Stream<Item = AppendRequest>
where
    S: Stream<Item = AppendRequest> + Unpin,
{
    // An end seen while holding is met again after the held request.
    stream::unfold(requests.fuse(), |mut requests| async move {
        let mut request = requests.next().await?;
        let until = Instant::now() + HOLD;
        while request.entries.is_empty() {
            match timeout_at(until, requests.next()).await {
                Ok(Some(next)) => request = next,
                // The end of a stream that probes, or nothing is written: as it is.
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, requests))
    })
}

#[cfg(test)]
mod tests {
    use curve_store::LogPosition;
    use openraft::EntryPayload;
    use tokio::sync::mpsc;

    use super::*;
    use crate::types::{Entry, NodeId, Vote, log_id};

    /// A request as of `index` committed, with an entry after it or without.
    fn request(index: u64, with_entry: bool) -> AppendRequest {
        let at = |index| log_id(LogPosition { term: 1, node: NodeId::from(1).0, index });
        let entry = Entry { log_id: at(index + 1), payload: EntryPayload::Blank };
        AppendRequest {
            vote: Vote { leader_id: at(index).leader_id, committed: true },
            prev_log_id: Some(at(index)),
            leader_commit: Some(at(index)),
            entries: Vec::from_iter(with_entry.then_some(entry)),
        }
    }

    fn seen(request: Option<AppendRequest>) -> Option<(u64, usize)> {
        request.map(|r| (r.leader_commit.expect("given").index, r.entries.len()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_goes_with_the_next_entries_or_after_a_while() {
        let (sender, mut receiver) = mpsc::channel(4);
        let requests = Box::pin(stream::poll_fn(move |context| receiver.poll_recv(context)));
        let mut sent = Box::pin(coalesce(requests));
        let send = |index, with_entry| {
            assert!(sender.try_send(request(index, with_entry)).is_ok());
        };

        let began = Instant::now();
        send(1, true);
        send(2, false);
        send(2, true);
        assert_eq!(seen(sent.next().await), Some((1, 1)));
        assert_eq!(seen(sent.next().await), Some((2, 1)), "the empty one before it is gone");
        assert_eq!(began.elapsed(), Duration::ZERO);

        send(3, false);
        send(4, false);
        assert_eq!(seen(sent.next().await), Some((4, 0)), "the last of them, alone");
        let held = began.elapsed();
        assert!((HOLD..HOLD * 2).contains(&held), "{held:?}");

        let began = Instant::now();
        send(5, false);
        let late = async {
            tokio::time::sleep(HOLD / 2).await;
            send(5, true);
        };
        assert_eq!(seen(tokio::join!(sent.next(), late).0), Some((5, 1)), "as soon as it comes");
        assert!(began.elapsed() < HOLD);

        send(6, true);
        assert_eq!(seen(sent.next().await), Some((6, 1)), "nothing is lost after a hold");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_does_not_wait() {
        // As openraft's streams, this one panics if it is polled after its end.
        let once =
            stream::unfold(true, |first| async move { first.then(|| (request(1, false), false)) });
        let mut sent = Box::pin(coalesce(Box::pin(once)));
        let began = Instant::now();
        assert_eq!(seen(sent.next().await), Some((1, 0)));
        assert_eq!(seen(sent.next().await), None);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
