//! What every RPC goes through: one operation at a time per volume, a repeated call joins the one
//! that is under way, and each is logged and counted. Nothing here knows what an RPC does.

pub mod metrics;

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use prost::Message;
use tonic::{Code, Response, Status};

use self::metrics::RpcMetrics;
use crate::error::CsiError;

/// Different operations that may wait for one volume. An orchestrator sends them one by one, so
/// more than a few means that it has given up on the earlier ones.
const WAITING_MAX: usize = 8;

type Outcome<T> = Result<T, Status>;
type Running<T> = Shared<BoxFuture<'static, Outcome<T>>>;

/// An operation is the same if method, volume and every byte of the request are.
#[derive(Clone, PartialEq, Eq, Hash)]
struct OperationKey {
    method: &'static str,
    volume: String,
    request: Vec<u8>,
}

#[derive(Default)]
struct State {
    /// Values are `Running<T>` of the method's response type.
    running: HashMap<OperationKey, Box<dyn Any + Send>>,
    /// One lock per volume with an operation; dead entries are swept as new ones come.
    lanes: HashMap<String, Weak<tokio::sync::Mutex<()>>>,
}

/// Runs RPCs. Cheap to clone.
///
/// An operation runs in a task of its own: a caller that goes away (its deadline, kubelet's
/// restart) does not stop it half-way, and finds its result when it calls again.
#[derive(Clone)]
pub struct Rpcs {
    state: Arc<Mutex<State>>,
    metrics: RpcMetrics,
}

/// Takes the operation off the list, however it ends.
struct Listed {
    state: Arc<Mutex<State>>,
    key: OperationKey,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.state.lock().expect("not poisoned").running.remove(&self.key);
    }
}

impl Rpcs {
    pub fn new(metrics: RpcMetrics) -> Self {
        Self { state: Arc::default(), metrics }
    }

    /// Runs an operation that changes or depends on the state of `volume`.
    pub async fn change<Req, Res, F>(
        &self,
        method: &'static str,
        volume: &str,
        request: &Req,
        work: F,
    ) -> Result<Response<Res>, Status>
    where
        Req: Message,
        Res: Clone + Send + Sync + 'static,
        F: Future<Output = Result<Res, CsiError>> + Send + 'static,
    {
        let key =
            OperationKey { method, volume: volume.to_owned(), request: request.encode_to_vec() };
        self.observe(method, volume, async {
            match self.join_or_start(key, work) {
                Ok(running) => running.await,
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Runs an operation that changes nothing.
    pub async fn read<Res>(
        &self,
        method: &'static str,
        volume: &str,
        work: impl Future<Output = Result<Res, CsiError>>,
    ) -> Result<Response<Res>, Status> {
        self.observe(method, volume, work.map(|result| result.map_err(Status::from))).await
    }

    async fn observe<Res>(
        &self,
        method: &'static str,
        volume: &str,
        work: impl Future<Output = Outcome<Res>>,
    ) -> Result<Response<Res>, Status> {
        let _in_flight = self.metrics.start(method);
        let start = Instant::now();
        let outcome = work.await;
        let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let took = start.elapsed();
        self.metrics.observe(method, code, took);
        let ms = took.as_millis() as u64;
        match &outcome {
            Ok(_) => tracing::info!(method, volume, ms, code = "Ok", "rpc"),
            Err(status) => {
                let error = status.message();
                tracing::warn!(method, volume, ms, code = ?code, error, "rpc");
            }
        }
        outcome.map(Response::new)
    }

    fn join_or_start<Res, F>(&self, key: OperationKey, work: F) -> Result<Running<Res>, CsiError>
    where
        Res: Clone + Send + Sync + 'static,
        F: Future<Output = Result<Res, CsiError>> + Send + 'static,
    {
        let mut state = self.state.lock().expect("not poisoned");
        let running = state.running.get(&key).and_then(|any| any.downcast_ref::<Running<Res>>());
        if let Some(running) = running {
            tracing::debug!(method = key.method, volume = key.volume, "joins the call under way");
            return Ok(running.clone());
        }
        let lane = state.lane(&key.volume)?;
        let listed = Listed { state: self.state.clone(), key: key.clone() };
        let task = tokio::spawn(async move {
            let _listed = listed;
            let _turn = lane.lock().await;
            work.await.map_err(Status::from)
        });
        let running = task
            .map(|joined| {
                joined.unwrap_or_else(|error| Err(Status::internal(format!("operation: {error}"))))
            })
            .boxed()
            .shared();
        state.running.insert(key, Box::new(running.clone()));
        Ok(running)
    }
}

impl State {
    fn lane(&mut self, volume: &str) -> Result<Arc<tokio::sync::Mutex<()>>, CsiError> {
        self.lanes.retain(|_, lane| lane.strong_count() > 0);
        match self.lanes.get(volume).and_then(Weak::upgrade) {
            // This upgrade holds one count itself, the running operation another.
            Some(lane) if Arc::strong_count(&lane) > WAITING_MAX + 1 => {
                Err(CsiError::Busy { volume: volume.to_owned(), waiting: WAITING_MAX })
            }
            Some(lane) => Ok(lane),
            None => {
                let lane = Arc::new(tokio::sync::Mutex::new(()));
                self.lanes.insert(volume.to_owned(), Arc::downgrade(&lane));
                Ok(lane)
            }
        }
    }
}

#[cfg(test)]
mod tests;
