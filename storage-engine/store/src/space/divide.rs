//! Moving chunks to a space of their own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use curve_types::ChunkKey;

use super::{Space, Tables};

impl Space {
    /// Moves the chunks of which `moves` is true to a space of their own. None, without effect, if
    /// the space is retired.
    pub fn divide(self: &Arc<Self>, moves: impl Fn(&ChunkKey) -> bool) -> Option<Arc<Self>> {
        let mut tables = self.changeable()?;
        let chunks = tables.chunks.extract_if(.., |key, _| moves(key)).collect();
        let dirty = tables.dirty.extract_if(.., |key| moves(key)).collect();
        // After all pins of readers that may have seen the chunks here.
        let here = (Arc::downgrade(self), self.data.pin_tick());
        let origins = self.origins.iter().cloned().chain([here]).collect();
        Some(Arc::new(Self {
            data: self.data.clone(),
            tables: RwLock::new(Tables { chunks, dirty, retired: false }),
            reclaim: Mutex::default(),
            origins,
            losses: AtomicU32::new(self.losses.load(Ordering::Relaxed)),
        }))
    }

    /// The tick of the oldest reader that was at work where its chunks were before.
    pub(super) fn inherited_pin(&self) -> Option<u64> {
        let oldest = self.origins.iter().filter_map(|(origin, until)| {
            let oldest = origin.upgrade()?.reclaim().pins.keys().next().copied()?;
            (oldest < *until).then_some(oldest)
        });
        oldest.min()
    }
}
