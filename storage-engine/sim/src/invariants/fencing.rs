//! A fenced writer changes nothing: no write that began after a newer attachment was told is ever
//! acknowledged.

use crate::history::{Attachment, Kind, Moment, Op};

/// When the operation's attachment was fenced.
pub fn fenced_at(op: &Op, attachments: &[Attachment]) -> Option<Moment> {
    attachments.iter().find(|newer| newer.number > op.attachment).map(|newer| newer.since)
}

pub fn violations(ops: &[Op], attachments: &[Attachment]) -> Vec<String> {
    let late = ops.iter().filter(|op| {
        let fenced = fenced_at(op, attachments).is_some_and(|fenced| fenced < op.begun);
        op.kind == Kind::Write && op.ended.is_some() && fenced
    });
    late.map(|op| format!("fencing: a fenced writer was acknowledged: {op:?}")).collect()
}
