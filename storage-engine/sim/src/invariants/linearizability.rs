//! Every block is a linearizable register; thereby no acknowledged write is lost.
//!
//! No two writes of a block have the same version, so that a history can be checked in
//! O(n log n): Gibbons and Korach, "Testing Shared Memories", SIAM Journal on Computing 26(4), 1997.

use std::collections::BTreeMap;

use super::fencing::fenced_at;
use crate::history::{Attachment, Kind, Moment, Op};

/// A write with all reads that found it.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    version: u64,
    write_begun: Moment,
    /// The first end and the last beginning of its operations.
    first_end: Moment,
    last_begin: Moment,
    is_read: bool,
    is_acknowledged: bool,
}

impl Cluster {
    /// The block has this version during all of `span`.
    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }

    fn span(&self) -> (Moment, Moment) {
        (self.first_end.min(self.last_begin), self.first_end.max(self.last_begin))
    }
}

pub fn violations(ops: &[Op], attachments: &[Attachment]) -> Vec<String> {
    let mut blocks: BTreeMap<u64, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        blocks.entry(op.block).or_default().push(op);
    }
    blocks.into_iter().flat_map(|(block, ops)| of_block(block, &ops, attachments)).collect()
}

fn of_block(block: u64, ops: &[&Op], attachments: &[Attachment]) -> Vec<String> {
    let initial = Cluster {
        version: 0,
        write_begun: 0,
        first_end: 0,
        last_begin: 0,
        is_read: false,
        is_acknowledged: true,
    };
    let mut clusters = BTreeMap::from([(0, initial)]);
    for op in ops.iter().filter(|op| op.kind == Kind::Write) {
        // What had no effect before its attachment was fenced has none at all.
        let fenced = fenced_at(op, attachments).unwrap_or(Moment::MAX);
        let cluster = Cluster {
            version: op.version,
            write_begun: op.begun,
            first_end: op.ended.unwrap_or(Moment::MAX).min(fenced),
            last_begin: op.begun,
            is_read: false,
            is_acknowledged: op.ended.is_some(),
        };
        clusters.insert(op.version, cluster);
    }
    let mut found = Vec::new();
    for op in ops.iter().filter(|op| op.kind == Kind::Read) {
        let Some(ended) = op.ended else { continue };
        match clusters.get_mut(&op.version) {
            Some(cluster) if cluster.write_begun < ended => {
                cluster.is_read = true;
                cluster.first_end = cluster.first_end.min(ended);
                cluster.last_begin = cluster.last_begin.max(op.begun);
            }
            _ => found.push(format!("linearizability: block {block}: read before written: {op:?}")),
        }
    }
    let counted =
        clusters.into_values().filter(|cluster| cluster.is_read || cluster.is_acknowledged);
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) =
        counted.partition(Cluster::is_forward);
    forward.sort_by_key(Cluster::span);
    for pair in forward.windows(2) {
        if pair[1].span().0 < pair[0].span().1 {
            found.push(format!(
                "linearizability: block {block}: versions {} and {} were both there: {pair:?}",
                pair[0].version, pair[1].version
            ));
        }
    }
    for inner in backward {
        let (begin, end) = inner.span();
        let covers = |outer: &&Cluster| outer.span().0 < begin && end < outer.span().1;
        if let Some(outer) = forward.iter().find(covers) {
            found.push(format!(
                "linearizability: block {block}: version {} while it was {}: {inner:?} in {outer:?}",
                inner.version, outer.version
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: Kind, version: u64, begun: Moment, ended: Option<Moment>) -> Op {
        Op { kind, block: 7, version, epoch: 1, begun, ended }
    }

    fn count(ops: &[Op]) -> usize {
        violations(ops, &[Attachment { epoch: 1, since: 0 }]).len()
    }

    #[test]
    fn a_register_that_behaves_is_accepted() {
        let (write, read) = (Kind::Write, Kind::Read);
        assert_eq!(count(&[op(read, 0, 1, Some(2)), op(write, 1, 3, Some(4))]), 0);
        // A write without an answer may have happened, at any time, or never.
        let unknown = op(write, 1, 1, None);
        assert_eq!(count(&[unknown, op(read, 0, 2, Some(3)), op(read, 1, 4, Some(5))]), 0);
        assert_eq!(count(&[unknown, op(read, 0, 2, Some(3)), op(read, 0, 4, Some(5))]), 0);
        // Two that overlap may take place either way.
        let both = [op(write, 1, 1, Some(4)), op(write, 2, 2, Some(5))];
        for last in [1, 2] {
            let read = op(read, last, 6, Some(7));
            assert_eq!(count(&[both[0], both[1], read]), 0, "{last} last");
        }
    }

    #[test]
    fn lost_stale_and_wavering_values_are_found() {
        let (write, read) = (Kind::Write, Kind::Read);
        let lost = [op(write, 1, 1, Some(2)), op(read, 0, 3, Some(4))];
        assert_ne!(count(&lost), 0);
        let stale = [op(write, 1, 1, Some(2)), op(write, 2, 3, Some(4)), op(read, 1, 5, Some(6))];
        assert_ne!(count(&stale), 0);
        let wavering = [op(write, 1, 1, None), op(read, 1, 2, Some(3)), op(read, 0, 4, Some(5))];
        assert_ne!(count(&wavering), 0);
        assert_ne!(count(&[op(read, 9, 1, Some(2))]), 0, "never written");
        let early = [op(read, 1, 1, Some(2)), op(write, 1, 3, Some(4))];
        assert_ne!(count(&early), 0);
    }

    #[test]
    fn a_fenced_write_has_its_effect_before_the_fence_or_never() {
        let attachments = [Attachment { epoch: 1, since: 0 }, Attachment { epoch: 2, since: 5 }];
        let write = op(Kind::Write, 1, 1, None);
        let later =
            |version, begun| Op { epoch: 2, ..op(Kind::Read, version, begun, Some(begun + 1)) };
        assert_eq!(violations(&[write, later(1, 6), later(1, 8)], &attachments).len(), 0);
        assert_eq!(violations(&[write, later(0, 6), later(0, 8)], &attachments).len(), 0);
        assert_ne!(violations(&[write, later(0, 6), later(1, 8)], &attachments).len(), 0);
    }
}
