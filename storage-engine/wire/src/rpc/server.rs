//! The serving side: accepts, authenticates, and hands requests to a `Service`.

use std::sync::Arc;

use bytes::Bytes;
use curve_types::DeviceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::IN_FLIGHT_MAX;
use super::transport::{FrameReader, Outgoing, WRITE_QUEUE, write_frames};
use crate::auth::{self, Key, Principal};
use crate::frame::{Direction, Frame};
use crate::net::{Listener, Stream};

/// Connections that have not yet authenticated. Beyond it new ones wait in the listen backlog, so
/// strangers cannot exhaust memory or descriptors.
const HANDSHAKES_MAX: usize = 128;

/// One request, with who sent it.
pub struct Request {
    pub principal: Principal,
    pub frame: Frame,
}

/// Owed for every request. Dropping it unanswered closes nothing: the caller then waits for its
/// own timeout, so a service answers even when it refuses.
pub struct Replier {
    kind: u16,
    group: u32,
    request_id: u64,
    queue: mpsc::Sender<Outgoing>,
    _permit: OwnedSemaphorePermit,
}

impl Replier {
    /// Sends the answer; `head` and `payload` together form its body.
    pub async fn reply(self, head: Bytes, payload: Bytes) {
        let Self { kind, group, request_id, queue, _permit } = self;
        let direction = Direction::Reply;
        let frame = Outgoing { direction, kind, request_id, group, head, payload };
        // A connection that is gone needs no answer.
        let _ = queue.send(frame).await;
    }
}

/// What a process does with requests.
pub trait Service: Send + Sync + 'static {
    /// Called in the order of arrival on each connection and must not block: work that waits goes
    /// into a task that owns the `Replier`.
    fn on_request(&self, request: Request, replier: Replier);
}

/// Serves `listener` until the future is dropped.
pub async fn serve<S: Service>(
    listener: Listener,
    device: DeviceId,
    peer_key: Key,
    service: Arc<S>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let permit = handshakes.clone().acquire_owned().await.expect("never closed");
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Out of descriptors: accepting again at once would spin.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (peer_key, service) = (peer_key.clone(), service.clone());
        connections.spawn(async move {
            let mut stream = stream;
            let shaken = auth::accept(&mut stream, device, &peer_key).await;
            drop(permit);
            match shaken {
                Ok(principal) => serve_connection(stream, principal, service).await,
                Err(error) => tracing::warn!(%address, %error, "refused a connection"),
            }
        });
    }
}

async fn serve_connection<S: Service>(stream: Stream, principal: Principal, service: Arc<S>) {
    let (read_half, write_half) = stream.into_split();
    let (queue, queued) = mpsc::channel(WRITE_QUEUE);
    let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let writer = tokio::spawn(write_frames(write_half, queued));
    let mut frames = FrameReader::new(read_half);
    loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) if frame.header.direction == Direction::Request => frame,
            Ok(Some(_)) => {
                tracing::warn!(?principal, "closed a connection that sent a reply as a request");
                break;
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(?principal, %error, "closed a connection");
                break;
            }
        };
        let permit = permits.clone().acquire_owned().await.expect("never closed");
        let replier = Replier {
            kind: frame.header.kind,
            group: frame.header.group,
            request_id: frame.header.request_id,
            queue: queue.clone(),
            _permit: permit,
        };
        service.on_request(Request { principal, frame }, replier);
    }
    writer.abort();
}
