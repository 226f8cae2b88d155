//! The calling side of a connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use curve_types::DeviceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::transport::{FrameReader, Outgoing, WRITE_QUEUE, write_frames};
use super::{IN_FLIGHT_MAX, RpcError};
use crate::auth::{self, Credentials};
use crate::frame::{BODY_LEN_MAX, Direction, Frame};
use crate::net;

type Waiting = (oneshot::Sender<Frame>, OwnedSemaphorePermit);

/// Requests that await their answer; `None` once the connection is lost.
struct Pending(Mutex<Option<HashMap<u64, Waiting>>>);

impl Pending {
    fn insert(&self, id: u64, waiting: Waiting) -> Result<(), RpcError> {
        let mut pending = self.0.lock().expect("no panic while held");
        pending.as_mut().ok_or(RpcError::Closed)?.insert(id, waiting);
        Ok(())
    }

    fn remove(&self, id: u64) -> Option<Waiting> {
        self.0.lock().expect("no panic while held").as_mut()?.remove(&id)
    }

    fn close(&self) {
        drop(self.0.lock().expect("no panic while held").take());
    }
}

/// An authenticated connection to one device. Cheap to share behind an `Arc`; dropping the last
/// handle closes it.
pub struct Connection {
    next_id: AtomicU64,
    queue: mpsc::Sender<Outgoing>,
    pending: Arc<Pending>,
    permits: Arc<Semaphore>,
    closed: Arc<AtomicBool>,
    closed_signal: tokio::sync::watch::Receiver<bool>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Connection {
    /// Connects to `address` and authenticates. `expected` must answer there.
    pub async fn open(
        address: &str,
        credentials: &Credentials,
        expected: DeviceId,
    ) -> Result<Self, RpcError> {
        let dial = tokio::time::timeout(auth::HANDSHAKE_TIMEOUT, net::connect(address));
        let connected = match dial.await {
            Ok(result) => result,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        };
        let connect_error = |source| RpcError::Connect { address: address.to_owned(), source };
        let mut stream = connected.map_err(connect_error)?;
        auth::connect(&mut stream, credentials, expected)
            .await
            .map_err(|source| RpcError::Handshake { address: address.to_owned(), source })?;
        Ok(Self::start(stream))
    }

    fn start(stream: net::Stream) -> Self {
        let (read_half, write_half) = stream.into_split();
        let (queue, queued) = mpsc::channel(WRITE_QUEUE);
        let pending = Arc::new(Pending(Mutex::new(Some(HashMap::new()))));
        let closed = Arc::new(AtomicBool::new(false));
        let (signal, closed_signal) = tokio::sync::watch::channel(false);
        let writer = tokio::spawn(write_frames(write_half, queued));
        let reader = {
            let (pending, closed) = (pending.clone(), closed.clone());
            tokio::spawn(async move {
                let mut frames = FrameReader::new(read_half);
                while let Ok(Some(frame)) = frames.next().await {
                    if let Some((answer, _permit)) = pending.remove(frame.header.request_id) {
                        // A caller that gave up no longer listens; its answer is dropped.
                        let _ = answer.send(frame);
                    }
                }
                closed.store(true, Ordering::Release);
                pending.close();
                let _ = signal.send(true);
            })
        };
        Self {
            next_id: AtomicU64::new(1),
            queue,
            pending,
            permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            closed,
            closed_signal,
            tasks: [writer, reader],
        }
    }

    /// True once the connection is lost; every later call fails at once.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Resolves when the connection is lost.
    pub async fn closed(&self) {
        let mut signal = self.closed_signal.clone();
        let _ = signal.wait_for(|closed| *closed).await;
    }

    /// Sends a request and waits for its answer. The request is queued before the first await
    /// returns, so that calls made in order by one task are sent in that order. `head` and
    /// `payload` together form the body.
    pub async fn call(
        &self,
        kind: u16,
        group: u32,
        head: Bytes,
        payload: Bytes,
    ) -> Result<Frame, RpcError> {
        self.send(kind, group, head, payload).await?.await.map_err(|_| RpcError::Closed)
    }

    /// Queues a request and returns its pending answer, for callers that pipeline in order.
    pub async fn send(
        &self,
        kind: u16,
        group: u32,
        head: Bytes,
        payload: Bytes,
    ) -> Result<oneshot::Receiver<Frame>, RpcError> {
        let len = head.len() + payload.len();
        if len > BODY_LEN_MAX as usize {
            return Err(RpcError::TooLong(len));
        }
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| RpcError::Closed)?;
        let request_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.pending.insert(request_id, (answer, permit))?;
        let direction = Direction::Request;
        let frame = Outgoing { direction, kind, request_id, group, head, payload };
        if self.queue.send(frame).await.is_err() {
            self.pending.remove(request_id);
            return Err(RpcError::Closed);
        }
        Ok(answered)
    }
}
