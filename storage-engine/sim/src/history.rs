//! What the clients asked and what they were told, in one order.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

/// Place in the one order of all that happened.
pub type Moment = u64;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Write,
    Read,
}

/// One operation on one block.
#[derive(Clone, Copy, Hash, Debug)]
pub struct Op {
    pub kind: Kind,
    pub block: u64,
    /// Written or found; 0 is a block that was never written.
    pub version: u64,
    /// Epoch of the attachment that it used.
    pub epoch: u64,
    pub begun: Moment,
    /// None if its outcome is unknown.
    pub ended: Option<Moment>,
}

/// An attachment: from the moment at which it was told, no older one changes anything.
#[derive(Clone, Copy, Hash, Debug)]
pub struct Attachment {
    /// Orders attachments; they need not be told in this order.
    pub epoch: u64,
    pub since: Moment,
}

/// The volume has had this size, at one moment between the two.
#[derive(Clone, Copy, Hash, Debug)]
pub struct Sight {
    pub asked: Moment,
    pub told: Moment,
    /// Bytes.
    pub size: u64,
}

/// A snapshot of the volume, of one moment between the two.
#[derive(Clone, Hash, Default, Debug)]
pub struct Snapshot {
    pub begun: Moment,
    /// None if its outcome is unknown and it was not found yet.
    pub ended: Option<Moment>,
    /// Blocks and their versions, as often as it was read.
    pub found: BTreeSet<(u64, u64)>,
}

#[derive(Default)]
struct Inner {
    clock: Cell<Moment>,
    versions: Cell<u64>,
    attachments: RefCell<Vec<Attachment>>,
    ops: RefCell<Vec<Op>>,
    sights: RefCell<Vec<Sight>>,
    /// By name.
    snapshots: RefCell<BTreeMap<String, Snapshot>>,
}

/// Shared by all clients of one simulation.
#[derive(Clone, Default)]
pub struct History(Rc<Inner>);

/// An operation under way: unknown until it is ended.
pub struct Pending(usize);

impl History {
    pub fn now(&self) -> Moment {
        self.0.clock.set(self.0.clock.get() + 1);
        self.0.clock.get()
    }

    /// A version that no other write has.
    pub fn next_version(&self) -> u64 {
        self.0.versions.set(self.0.versions.get() + 1);
        self.0.versions.get()
    }

    /// A client was told that its session of `epoch` is open.
    pub fn attached(&self, epoch: u64) {
        let since = self.now();
        self.0.attachments.borrow_mut().push(Attachment { epoch, since });
    }

    pub fn begin(&self, kind: Kind, block: u64, version: u64, epoch: u64) -> Pending {
        let begun = self.now();
        let mut ops = self.0.ops.borrow_mut();
        ops.push(Op { kind, block, version, epoch, begun, ended: None });
        Pending(ops.len() - 1)
    }

    /// It was acknowledged; a read found `version`.
    pub fn end(&self, pending: &Pending, version: u64) {
        let ended = Some(self.now());
        let op = &mut self.0.ops.borrow_mut()[pending.0];
        (op.version, op.ended) = (version, ended);
    }

    /// The volume was resized to this size, or found to have it, since `asked`.
    pub fn sized(&self, asked: Moment, size: u64) {
        let told = self.now();
        self.0.sights.borrow_mut().push(Sight { asked, told, size });
    }

    /// Bytes that the volume is known to have.
    pub fn size(&self) -> u64 {
        self.0.sights.borrow().iter().map(|sight| sight.size).max().unwrap_or(0)
    }

    pub fn sights(&self) -> Vec<Sight> {
        self.0.sights.borrow().clone()
    }

    pub fn begin_snapshot(&self, name: &str) -> Moment {
        let begun = self.now();
        let snapshot = Snapshot { begun, ..Snapshot::default() };
        self.0.snapshots.borrow_mut().insert(name.to_owned(), snapshot);
        begun
    }

    /// The snapshot is there; false if nobody began it.
    pub fn end_snapshot(&self, name: &str) -> bool {
        let now = self.now();
        let mut snapshots = self.0.snapshots.borrow_mut();
        let begun = snapshots.get_mut(name);
        begun.map(|snapshot| snapshot.ended.get_or_insert(now)).is_some()
    }

    /// What shows the snapshot has this version of a block.
    pub fn found_in(&self, snapshot: &str, block: u64, version: u64) {
        if let Some(snapshot) = self.0.snapshots.borrow_mut().get_mut(snapshot) {
            snapshot.found.insert((block, version));
        }
    }

    pub fn snapshots(&self) -> BTreeMap<String, Snapshot> {
        self.0.snapshots.borrow().clone()
    }

    pub fn ops(&self) -> Vec<Op> {
        self.0.ops.borrow().clone()
    }

    pub fn attachments(&self) -> Vec<Attachment> {
        self.0.attachments.borrow().clone()
    }

    /// The same for two runs in which the same happened.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.ops.borrow().hash(&mut hasher);
        self.0.attachments.borrow().hash(&mut hasher);
        self.0.sights.borrow().hash(&mut hasher);
        self.0.snapshots.borrow().hash(&mut hasher);
        hasher.finish()
    }
}
