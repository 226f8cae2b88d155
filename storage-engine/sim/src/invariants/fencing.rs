//! A fenced writer changes nothing: no write that began after a newer attachment was told is ever
//! acknowledged, or found by a read.

use std::collections::BTreeSet;

use crate::history::{Attachment, Kind, Moment, Op};

/// When the operation's attachment was fenced.
pub fn fenced_at(op: &Op, attachments: &[Attachment]) -> Option<Moment> {
    let newer = attachments.iter().filter(|newer| newer.epoch > op.epoch);
    newer.map(|newer| newer.since).min()
}

pub fn violations(ops: &[Op], attachments: &[Attachment]) -> Vec<String> {
    let reads = ops.iter().filter(|op| op.kind == Kind::Read && op.ended.is_some());
    let found: BTreeSet<(u64, u64)> = reads.map(|op| (op.block, op.version)).collect();
    let late = ops.iter().filter(|op| {
        let fenced = fenced_at(op, attachments).is_some_and(|fenced| fenced < op.begun);
        let had_effect = op.ended.is_some() || found.contains(&(op.block, op.version));
        op.kind == Kind::Write && fenced && had_effect
    });
    late.map(|op| format!("fencing: a fenced write had an effect: {op:?}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_write_is_found_by_its_acknowledgement_or_by_a_read() {
        let attachments = [Attachment { epoch: 2, since: 5 }, Attachment { epoch: 1, since: 9 }];
        let op = |kind, epoch, begun, ended| Op { kind, block: 7, version: 1, epoch, begun, ended };
        let count = |ops: &[Op]| violations(ops, &attachments).len();
        let lost = op(Kind::Write, 1, 6, None);
        assert_eq!(count(&[lost]), 0);
        assert_eq!(count(&[op(Kind::Write, 1, 6, Some(7))]), 1);
        assert_eq!(count(&[lost, op(Kind::Read, 2, 10, Some(11))]), 1);
        // The older one was told later: the newer one is not fenced by it.
        assert_eq!(count(&[op(Kind::Write, 2, 10, Some(11))]), 0);
    }
}
