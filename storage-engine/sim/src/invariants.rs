//! What must hold in every run, one file each.

mod fencing;
mod linearizability;
mod promises;

use crate::history::History;
pub use crate::invariants::promises::Promises;

/// Everything that does not hold.
pub fn violations(history: &History, promises: &Promises) -> Vec<String> {
    let (ops, attachments) = (history.ops(), history.attachments());
    let mut found = fencing::violations(&ops, &attachments);
    found.extend(linearizability::violations(&ops, &attachments));
    found.extend(promises.violations());
    found
}
