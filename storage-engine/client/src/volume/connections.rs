//! Data-plane connections of one session, one per device, made when first needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use curve_types::DeviceId;
use curve_wire::auth::Credentials;
use curve_wire::rpc::Connection;
use curve_wire::with_causes;
use tokio::time::Instant;

pub(super) struct Connections {
    credentials: Credentials,
    slots: Mutex<HashMap<DeviceId, Arc<Slot>>>,
}

type Slot = tokio::sync::Mutex<State>;

#[derive(Default)]
struct State {
    open: Option<Arc<Connection>>,
    /// When the last dial failed, and why. Callers that queued before then share the failure, so
    /// that a device that does not answer costs one timeout, not one per request.
    failed: Option<(Instant, String)>,
}

impl Connections {
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, slots: Mutex::default() }
    }

    fn slot(&self, device: DeviceId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(device).or_default().clone()
    }

    /// The open connection to `device`, or a new one to `address`. The error is for people.
    pub async fn get(&self, device: DeviceId, address: &str) -> Result<Arc<Connection>, String> {
        let asked = Instant::now();
        let slot = self.slot(device);
        let mut state = slot.lock().await;
        if let Some(open) = state.open.as_ref().filter(|open| !open.is_closed()) {
            return Ok(open.clone());
        }
        state.open = None;
        if let Some((at, why)) = &state.failed
            && *at >= asked
        {
            return Err(why.clone());
        }
        match Connection::open(address, &self.credentials, device).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                state.open = Some(connection.clone());
                state.failed = None;
                Ok(connection)
            }
            Err(error) => {
                let why = with_causes(&error);
                state.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// Forgets devices that the topology no longer names.
    pub fn retain(&self, known: impl Fn(DeviceId) -> bool) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|device, _| known(*device));
    }
}
