//! Where other devices are, as the MDS last said.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use curve_raft::Resolve;
use curve_types::DeviceId;

/// Replaced whole by each newer device map.
#[derive(Debug, Default)]
pub struct AddressBook(RwLock<Book>);

#[derive(Debug, Default)]
struct Book {
    version: u64,
    addresses: HashMap<DeviceId, String>,
}

impl AddressBook {
    /// Version of the map in use; 0 before the first.
    pub fn version(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).version
    }

    /// Takes a map over, unless the one in use is newer.
    pub fn replace(&self, version: u64, addresses: HashMap<DeviceId, String>) {
        let mut book = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if version >= book.version {
            *book = Book { version, addresses };
        }
    }
}

impl Resolve for AddressBook {
    fn address(&self, device: DeviceId) -> Option<String> {
        let book = self.0.read().unwrap_or_else(PoisonError::into_inner);
        book.addresses.get(&device).cloned()
    }
}
