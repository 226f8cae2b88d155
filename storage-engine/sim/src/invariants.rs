//! What must hold in every run, one file each.

mod fencing;
mod linearizability;

use crate::history::History;

/// Everything that does not hold.
pub fn violations(history: &History) -> Vec<String> {
    let (ops, attachments) = (history.ops(), history.attachments());
    let mut found = fencing::violations(&ops, &attachments);
    found.extend(linearizability::violations(&ops, &attachments));
    found
}
