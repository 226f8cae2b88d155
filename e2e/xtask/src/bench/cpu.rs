//! CPU time of processes, from /proc.

use std::fs;

use anyhow::{Context, Result};

/// Kernel ticks per second in /proc, fixed at 100 for user space on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of the processes so far, in microseconds.
pub fn total_us(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("read the CPU time of process {pid}: has it died?"))?;
        ticks += parse_ticks(&stat).with_context(|| format!("parse /proc/{pid}/stat"))?;
    }
    Ok(ticks as f64 * 1e6 / TICKS_PER_SECOND)
}

/// Fields 14 and 15 of proc(5); the name in parentheses may hold spaces.
fn parse_ticks(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// A process and all its descendants.
pub fn family(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let path = format!("/proc/{0}/task/{0}/children", found[at]);
        let children = fs::read_to_string(path).unwrap_or_default();
        found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_name_with_spaces() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0 100 0 0";
        assert_eq!(parse_ticks(stat), Some(12));
    }

    #[test]
    fn this_process_has_used_some_time() {
        assert!(total_us(&[std::process::id()]).is_ok());
        assert!(total_us(&[u32::MAX]).is_err());
    }
}
