//! What a simulation puts in the place of the machine: devices, and the time that their work takes.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError, Weak};
use std::time::Duration;

use crate::core::Core;
use crate::upkeep::UpkeepThread;
use crate::wal::writer::Writer;
use crate::{Disk, FileDisk, Usage};

/// Tells that a store has something to do.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// The simulated machine.
pub trait Machine: Send + Sync + 'static {
    /// The device at `path`, made with `len` bytes if there is none.
    fn open_or_create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn Disk>>;
    /// A store was opened on `disk`. It has no threads: `steps` does their work.
    fn opened(&self, disk: &dyn Disk, steps: Steps) -> Waker;
}

static SIMULATED: OnceLock<Box<dyn Machine>> = OnceLock::new();

/// Puts `machine` in the place of the real one, for all of this process and for good; false if
/// there is one in place already.
pub fn simulate(machine: Box<dyn Machine>) -> bool {
    SIMULATED.set(machine).is_ok()
}

pub fn is_simulated() -> bool {
    SIMULATED.get().is_some()
}

/// Opens the device at `path`, or creates it as a file of `len` bytes. See `FileDisk`.
pub fn open_or_create(path: &Path, len: u64) -> io::Result<Arc<dyn Disk>> {
    match SIMULATED.get() {
        Some(machine) => machine.open_or_create(path, len),
        None => Ok(Arc::new(FileDisk::open_or_create(path, len)?)),
    }
}

/// Does what the threads of one store would do.
pub struct Steps(Weak<Core>);

impl Steps {
    /// Does all that waits; `is_idle` says that nothing came for the time that the last call
    /// answered. The answer is after how long to call again even if the waker was not called;
    /// None once the store is closed.
    pub fn step(&self, is_idle: bool) -> Option<Duration> {
        let core = self.0.upgrade()?;
        let loops = core.loops()?;
        loops.run();
        if is_idle {
            loops.with(&loops.writer, Writer::mark);
        }
        Some(core.options.idle_mark_after)
    }

    /// Writes a checkpoint, which frees what is superseded, and says what blocks are used for then.
    /// None once the store is closed.
    pub fn settle(&self) -> Option<Usage> {
        let core = self.0.upgrade()?;
        core.upkeep.request_checkpoint();
        core.serve();
        Some(core.usage())
    }
}

/// The loops of a store without threads.
pub(crate) struct Loops {
    writer: Mutex<Writer>,
    upkeep: Mutex<UpkeepThread>,
}

impl Loops {
    /// Those of `core` where there is a simulation.
    pub fn start(
        core: &Arc<Core>,
        writer: impl FnOnce() -> Writer,
        upkeep: impl FnOnce() -> UpkeepThread,
    ) -> Option<Arc<Self>> {
        let waker = SIMULATED.get()?.opened(core.device.disk(), Steps(Arc::downgrade(core)));
        core.queue.set_waker(waker.clone());
        core.upkeep.set_waker(waker);
        Some(Arc::new(Self { writer: Mutex::new(writer()), upkeep: Mutex::new(upkeep()) }))
    }

    /// Does all that waits.
    pub fn run(&self) {
        self.write();
        self.with(&self.upkeep, UpkeepThread::step);
        self.write();
    }

    /// Writes what is queued.
    pub fn write(&self) {
        self.with(&self.writer, Writer::step);
    }

    /// Nothing if it is a part of that loop's own work that calls.
    fn with<T>(&self, of: &Mutex<T>, step: impl FnOnce(&mut T)) {
        match of.try_lock() {
            Ok(mut one) => step(&mut one),
            Err(TryLockError::Poisoned(poisoned)) => step(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

impl Core {
    fn loops(&self) -> Option<Arc<Loops>> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// To be called before a wait for what the threads do: where there are none, does it.
    pub fn serve(&self) {
        if let Some(loops) = self.loops() {
            loops.run();
        }
    }

    /// As `serve`, for what only the IO thread does.
    pub fn serve_writes(&self) {
        if let Some(loops) = self.loops() {
            loops.write();
        }
    }

    /// Does what is left and ends the loops.
    pub fn close(&self) {
        self.serve();
        drop(self.loops.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
