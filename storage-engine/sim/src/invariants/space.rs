//! Space is accounted exactly: once all volumes and snapshots are deleted and each store has
//! written a checkpoint, every block of a device is free, or holds a payload of the log.

use std::collections::BTreeMap;

use curve_store::Usage;

/// None of a device is one that never wrote a checkpoint.
pub fn violations(usages: &BTreeMap<&str, Option<Usage>>) -> Vec<String> {
    let leaks = |usage: &Usage| {
        let known = usage.data_blocks_free + usage.data_blocks_logged;
        usage.data_blocks_used > 0 || known != usage.data_blocks_total
    };
    let leaking = usages.iter().filter(|(_, usage)| usage.as_ref().is_none_or(leaks));
    leaking.map(|(name, usage)| format!("space: {name}: {usage:?}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_is_neither_free_nor_of_the_log_is_found() {
        let empty = Usage { data_blocks_total: 10, data_blocks_free: 10, ..Usage::default() };
        let count = |usage| violations(&BTreeMap::from([("device", Some(usage))])).len();
        assert_eq!(count(empty), 0);
        assert_eq!(count(Usage { data_blocks_free: 8, data_blocks_logged: 2, ..empty }), 0);
        assert_eq!(count(Usage { data_blocks_free: 8, data_blocks_logged: 1, ..empty }), 1);
        assert_eq!(count(Usage { data_blocks_used: 1, ..empty }), 1);
    }
}
