//! The first error that fails the store, and access to the disk that records it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::{Disk, StoreError};

type FailureCallback = Box<dyn FnOnce(StoreError) + Send>;

/// The disk with its fate. Any error of the disk fails the store for good.
pub(crate) struct Device {
    disk: Arc<dyn Disk>,
    failure: OnceLock<StoreError>,
    callback: Mutex<Option<FailureCallback>>,
    /// Wake whoever waits for something that will now never come.
    wakers: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Device {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, failure: OnceLock::new(), callback: Mutex::new(None), wakers: OnceLock::new() }
    }

    /// Raw access, for writers that report their own step.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Called once while the store is put together.
    pub fn set_wakers(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.wakers.set(wake);
    }

    pub fn on_failure(&self, callback: FailureCallback) {
        match self.failure() {
            Some(error) => callback(error),
            None => {
                *self.callback.lock().unwrap_or_else(PoisonError::into_inner) = Some(callback);
                // The failure may have come between the look and the registration.
                if let Some(error) = self.failure() {
                    self.call_back(error);
                }
            }
        }
    }

    fn call_back(&self, error: StoreError) {
        let callback = self.callback.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(callback) = callback {
            callback(error);
        }
    }

    pub fn failure(&self) -> Option<StoreError> {
        self.failure.get().cloned()
    }

    /// Err once the store has failed.
    pub fn check(&self) -> Result<(), StoreError> {
        match self.failure.get() {
            None => Ok(()),
            Some(error) => Err(StoreError::Failed { reason: describe(error).into() }),
        }
    }

    /// Fails the store unless it already has, and gives the error back.
    pub fn fail(&self, error: StoreError) -> StoreError {
        if self.failure.set(error.clone()).is_ok() {
            tracing::error!(error = describe(&error), "store failed");
            if let Some(wake) = self.wakers.get() {
                wake();
            }
            self.call_back(error.clone());
        }
        error
    }

    pub fn read(&self, step: &'static str, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.disk
            .read_at(buf, offset)
            .map_err(|source| self.fail(StoreError::io(step, offset, source)))
    }

    pub fn write(&self, step: &'static str, buf: &[u8], offset: u64) -> Result<(), StoreError> {
        self.check()?;
        self.disk
            .write_at(buf, offset)
            .map_err(|source| self.fail(StoreError::io(step, offset, source)))
    }

    /// Writes all of several ranges, in any order.
    pub fn write_all(&self, step: &'static str, writes: &[(u64, &[u8])]) -> Result<(), StoreError> {
        self.check()?;
        let offset = writes.first().map_or(0, |(offset, _)| *offset);
        self.disk
            .write_all_at(writes)
            .map_err(|source| self.fail(StoreError::io(step, offset, source)))
    }

    pub fn sync_log(&self, step: &'static str) -> Result<(), StoreError> {
        self.check()?;
        self.disk.sync_log().map_err(|source| self.fail(StoreError::io(step, 0, source)))
    }

    pub fn sync(&self, step: &'static str) -> Result<(), StoreError> {
        self.check()?;
        self.disk.sync().map_err(|source| self.fail(StoreError::io(step, 0, source)))
    }
}

fn describe(error: &StoreError) -> String {
    match error {
        StoreError::Io { source, .. } => format!("{error}: {source}"),
        other => other.to_string(),
    }
}
