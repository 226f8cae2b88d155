//! The chunk space against an array of bytes, through flushes, checkpoints and reopenings.

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{chunk, durable, open, sim};
use curve_types::{CopysetId, VolumeId};
use proptest::prelude::*;

const SPAN: u32 = 64 << 10;

#[derive(Clone, Debug)]
enum Action {
    Write(u8, u32, u32, u8),
    Zero(u8, u32, u32),
    Discard(u8, u32, u32),
    Delete,
    Checkpoint,
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    let range = || (0u8..2, 0..SPAN, 1..20_000u32);
    prop_oneof![
        6 => (range(), 1u8..).prop_map(|((c, o, l), b)| Action::Write(c, o, l.min(SPAN - o), b)),
        2 => range().prop_map(|(c, o, l)| Action::Zero(c, o, l.min(SPAN - o))),
        2 => range().prop_map(|(c, o, l)| Action::Discard(c, o, l.min(SPAN - o))),
        1 => Just(Action::Delete),
        2 => Just(Action::Checkpoint),
        1 => Just(Action::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn chunks_hold_what_an_array_would(actions in prop::collection::vec(action(), 1..60)) {
        let disk = sim(64 << 20, 1 << 20);
        let (mut store, _) = open(&disk);
        let mut group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
        let volume = VolumeId::random();
        let mut model: BTreeMap<u8, Vec<u8>> = (0..2).map(|c| (c, vec![0; SPAN as usize])).collect();
        for action in actions {
            let apply = group.begin_apply(1).expect("apply");
            let key = |c: u8| chunk(volume, u32::from(c));
            match action {
                Action::Write(c, o, l, b) => {
                    apply.write(key(c), o, Bytes::from(vec![b; l as usize])).expect("write");
                    model.get_mut(&c).expect("chunk")[o as usize..(o + l) as usize].fill(b);
                }
                Action::Zero(c, o, l) => {
                    apply.write_zeroes(key(c), o, l).expect("zero");
                    model.get_mut(&c).expect("chunk")[o as usize..(o + l) as usize].fill(0);
                }
                Action::Discard(c, o, l) => {
                    apply.discard(key(c), o, l).expect("discard");
                    let (first, last) = (o.div_ceil(4096) * 4096, (o + l) / 4096 * 4096);
                    if first < last {
                        model.get_mut(&c).expect("chunk")[first as usize..last as usize].fill(0);
                    }
                }
                Action::Delete => {
                    apply.delete_volume(volume).expect("delete");
                    model.values_mut().for_each(|bytes| bytes.fill(0));
                }
                Action::Checkpoint => {
                    drop(apply);
                    common::checkpoint(&store).expect("checkpoint");
                }
                Action::Reopen => {
                    drop(apply);
                    common::checkpoint(&store).expect("checkpoint");
                    drop((group, store));
                    let (again, found) = open(&disk);
                    (store, group) = (again, found[0].group.clone());
                }
            }
            for (c, bytes) in &model {
                let got = group.read(chunk(volume, u32::from(*c)), 0, SPAN).expect("read");
                prop_assert!(got[..] == bytes[..], "chunk {c} differs");
            }
        }
        let used = store.usage().data_blocks_used;
        let least = model.values().flat_map(|b| b.chunks(4096)).filter(|b| b.iter().any(|x| *x != 0)).count();
        prop_assert!(used >= least as u64 && used <= 2 * u64::from(SPAN) / 4096);
    }
}
