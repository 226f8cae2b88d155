//! A snapshot is what the volume was at one moment, between when it was asked for and when it was
//! answered: it has no write that begun later, it lacks none that was acknowledged before, and none
//! that came, on whichever block, before another that it has. It never changes.
//!
//! That each of its blocks is a version that this block had then is checked with the reads: see
//! `Snapshot::reads`.

use std::collections::BTreeMap;

use super::fencing::fenced_at;
use crate::history::{Attachment, Kind, Moment, Op, Snapshot};

/// A version of a block.
#[derive(Clone, Copy)]
struct Write {
    begun: Moment,
    /// By then it was there, unless it has no effect at all.
    settled: Moment,
    has_effect: bool,
}

/// All versions of each block.
type Writes = BTreeMap<u64, BTreeMap<u64, Write>>;

impl Snapshot {
    /// It, as one read of each of its blocks.
    pub fn reads(&self) -> impl Iterator<Item = Op> + '_ {
        self.found.iter().map(|(block, version)| Op {
            kind: Kind::Read,
            block: *block,
            version: *version,
            epoch: 0,
            begun: self.begun,
            ended: self.ended,
        })
    }
}

pub fn violations(
    ops: &[Op],
    attachments: &[Attachment],
    snapshots: &BTreeMap<String, Snapshot>,
) -> Vec<String> {
    let writes = writes(ops, attachments);
    let found = snapshots.iter().filter_map(|(name, snapshot)| {
        let why = changed(snapshot).or_else(|| of_no_moment(snapshot, &writes))?;
        Some(format!("snapshots: {name}: {why}: {snapshot:?}"))
    });
    found.collect()
}

fn writes(ops: &[Op], attachments: &[Attachment]) -> Writes {
    let mut writes = Writes::new();
    for op in ops.iter().filter(|op| op.kind == Kind::Write) {
        let fenced = fenced_at(op, attachments).unwrap_or(Moment::MAX);
        let settled = op.ended.unwrap_or(Moment::MAX).min(fenced);
        let write = Write { begun: op.begun, settled, has_effect: op.ended.is_some() };
        writes.entry(op.block).or_default().insert(op.version, write);
    }
    for op in ops.iter().filter(|op| op.kind == Kind::Read) {
        let write = writes.get_mut(&op.block).and_then(|block| block.get_mut(&op.version));
        if let (Some(write), Some(ended)) = (write, op.ended) {
            write.settled = write.settled.min(ended);
            write.has_effect = true;
        }
    }
    writes
}

fn changed(snapshot: &Snapshot) -> Option<String> {
    let mut pairs = snapshot.found.iter().zip(snapshot.found.iter().skip(1));
    let ((block, one), (_, other)) = pairs.find(|(one, other)| one.0 == other.0)?;
    Some(format!("block {block} was {one} and {other}"))
}

fn of_no_moment(snapshot: &Snapshot, writes: &Writes) -> Option<String> {
    let (mut from, mut upto) = (snapshot.begun, snapshot.ended.unwrap_or(Moment::MAX));
    for (block, version) in &snapshot.found {
        let none = BTreeMap::new();
        let versions = writes.get(block).unwrap_or(&none);
        // Of a version that was never written the reads tell.
        let (begun, settled) = versions.get(version).map_or((0, 0), |w| (w.begun, w.settled));
        let later = versions.values().filter(|other| other.has_effect && other.begun > settled);
        from = from.max(begun);
        upto = later.map(|later| later.settled).fold(upto, Moment::min);
    }
    (upto < from).then(|| format!("it is of no moment: not before {from}, and not after {upto}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(block: u64, version: u64, begun: Moment, ended: Option<Moment>) -> Op {
        Op { kind: Kind::Write, block, version, epoch: 1, begun, ended }
    }

    fn count(ops: &[Op], begun: Moment, ended: Moment, found: &[(u64, u64)]) -> usize {
        let found = found.iter().copied().collect();
        let snapshot = Snapshot { begun, ended: Some(ended), found };
        let snapshots = BTreeMap::from([("volume@1".to_owned(), snapshot)]);
        violations(ops, &[Attachment { epoch: 1, since: 0 }], &snapshots).len()
    }

    #[test]
    fn a_snapshot_of_one_moment_is_accepted() {
        let ops = [write(7, 1, 1, Some(2)), write(7, 2, 4, Some(6)), write(8, 3, 5, None)];
        assert_eq!(count(&ops, 3, 9, &[(7, 1), (8, 0)]), 0);
        assert_eq!(count(&ops, 3, 9, &[(7, 2), (8, 0)]), 0);
        // Whether the one without an answer came first is not known.
        assert_eq!(count(&ops, 3, 9, &[(7, 1), (8, 3)]), 0);
    }

    #[test]
    fn one_that_is_too_old_too_new_of_two_moments_or_changed_is_found() {
        let ops = [write(7, 1, 1, Some(2)), write(7, 2, 4, Some(5)), write(8, 3, 6, Some(7))];
        assert_eq!(count(&ops, 3, 9, &[(7, 0)]), 1, "too old");
        assert_eq!(count(&ops, 1, 3, &[(7, 2)]), 1, "too new");
        assert_eq!(count(&ops, 3, 9, &[(7, 1), (8, 3)]), 1, "of two moments");
        assert_eq!(count(&ops, 3, 9, &[(7, 1), (7, 2)]), 1, "changed");
    }
}
