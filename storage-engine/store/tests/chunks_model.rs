//! The chunk space against an array of bytes, through flushes, checkpoints and reopenings.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::{chunk, durable, open, sim};
use curve_store::CopyKind;
use curve_types::{CopysetId, VolumeId};
use proptest::prelude::*;

const SPAN: u32 = 64 << 10;
/// Each has two chunks.
const VOLUMES: u8 = 4;

fn id(volume: u8) -> VolumeId {
    VolumeId::from_bytes([volume + 1; 16])
}

#[derive(Clone, Debug)]
enum Action {
    Write(u8, u32, u32, u8),
    Zero(u8, u32, u32),
    Discard(u8, u32, u32),
    Delete(u8),
    Copy(u8, u8, CopyKind),
    Checkpoint,
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    let range = || (0..2 * VOLUMES, 0..SPAN, 1..20_000u32);
    let kind = prop_oneof![Just(CopyKind::Snapshot), Just(CopyKind::Clone)];
    let other = |from: u8, by: u8| (from + by) % VOLUMES;
    prop_oneof![
        6 => (range(), 1u8..).prop_map(|((c, o, l), b)| Action::Write(c, o, l.min(SPAN - o), b)),
        2 => range().prop_map(|(c, o, l)| Action::Zero(c, o, l.min(SPAN - o))),
        2 => range().prop_map(|(c, o, l)| Action::Discard(c, o, l.min(SPAN - o))),
        1 => (0..VOLUMES).prop_map(Action::Delete),
        3 => (0..VOLUMES, 1..VOLUMES, kind).prop_map(move |(from, by, k)| Action::Copy(from, other(from, by), k)),
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
        let key = |c: u8| chunk(id(c / 2), u32::from(c % 2));
        let mut model: BTreeMap<u8, Vec<u8>> =
            (0..2 * VOLUMES).map(|c| (c, vec![0; SPAN as usize])).collect();
        for action in actions {
            let apply = group.begin_apply(1).expect("apply");
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
                Action::Delete(volume) => {
                    apply.delete_volume(id(volume)).expect("delete");
                    let own = model.iter_mut().filter(|(c, _)| **c / 2 == volume);
                    own.for_each(|(_, bytes)| bytes.fill(0));
                }
                Action::Copy(from, to, kind) => {
                    apply.copy_volume(id(from), id(to), kind);
                    for c in 0..2 {
                        let bytes = model[&(from * 2 + c)].clone();
                        model.insert(to * 2 + c, bytes);
                    }
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
                let got = group.read(key(*c), 0, SPAN).expect("read");
                prop_assert!(got[..] == bytes[..], "chunk {c} differs");
            }
        }
        let used = store.usage().data_blocks_used;
        let blocks = |bytes: &Vec<u8>| -> Vec<Vec<u8>> {
            bytes.chunks(4096).map(<[u8]>::to_vec).collect()
        };
        let distinct: BTreeSet<Vec<u8>> = model.values().flat_map(blocks).collect();
        prop_assert!(used + 1 >= distinct.len() as u64);
        prop_assert!(used <= model.len() as u64 * u64::from(SPAN) / 4096);
        // What nothing refers to any more is free again, to the last block.
        let apply = group.begin_apply(1).expect("apply");
        (0..VOLUMES).for_each(|volume| apply.delete_volume(id(volume)).expect("delete"));
        drop(apply);
        common::checkpoint(&store).expect("checkpoint");
        let usage = store.usage();
        prop_assert_eq!((usage.data_blocks_used, usage.data_blocks_pending_free), (0, 0));
        prop_assert_eq!(usage.data_blocks_free, usage.data_blocks_total);
    }
}
