//! What must hold in every run, one file each.

mod fencing;
mod linearizability;
mod promises;
mod size;
mod snapshots;
mod space;

use crate::history::History;
pub use crate::invariants::promises::Promises;
pub use crate::invariants::space::violations as unaccounted;

/// Everything that does not hold.
pub fn violations(history: &History, promises: &Promises) -> Vec<String> {
    let (mut ops, attachments, snapshots) =
        (history.ops(), history.attachments(), history.snapshots());
    let mut found = snapshots::violations(&ops, &attachments, &snapshots);
    ops.extend(snapshots.values().flat_map(|snapshot| snapshot.reads()));
    found.extend(fencing::violations(&ops, &attachments));
    found.extend(linearizability::violations(&ops, &attachments));
    found.extend(size::violations(&history.sights()));
    found.extend(promises.violations());
    found
}
