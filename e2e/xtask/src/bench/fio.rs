//! One fio run, and what its JSON says.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

/// What is being measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Work {
    pub name: &'static str,
    /// fio's `rw`.
    pub pattern: &'static str,
    pub block: &'static str,
    pub depth: u32,
    /// Sync after each write on the raw file, as a replicated write is durable when acknowledged.
    pub raw_sync: bool,
    pub pace: Pace,
}

impl Work {
    pub const fn new(
        name: &'static str,
        pattern: &'static str,
        block: &'static str,
        depth: u32,
    ) -> Self {
        let (raw_sync, pace) = (false, Pace::AsFastAsItGoes);
        Self { name, pattern, block, depth, raw_sync, pace }
    }

    pub const fn synced(self) -> Self {
        Self { raw_sync: true, ..self }
    }

    pub const fn at(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Pace {
    AsFastAsItGoes,
    /// The same, but whoever else wants the processor goes first: fio's NBD engine spins.
    Background,
    /// So many IOs per second.
    Iops(u32),
}

/// The figures of one run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    pub iops: f64,
    pub mib_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub ios: f64,
}

/// Where the IO goes.
pub enum Target<'a> {
    RawFile(&'a Path),
    Nbd(&'a Path),
}

pub fn run(work: &Work, target: &Target<'_>, size: u64, seconds: u32) -> Result<Figures> {
    let mut command = Command::new("fio");
    command.args(match work.pace {
        Pace::AsFastAsItGoes => None,
        Pace::Background => Some("--nice=19".to_owned()),
        Pace::Iops(rate) => Some(format!("--rate_iops={rate}")),
    });
    command.args(["--output-format=json", "--name=bench", "--time_based", "--randrepeat=0"]);
    command.args(["--percentile_list=50:99:99.9", "--norandommap"]);
    command.arg(format!("--rw={}", work.pattern)).arg(format!("--bs={}", work.block));
    command.arg(format!("--iodepth={}", work.depth)).arg(format!("--size={size}"));
    command.arg(format!("--runtime={seconds}"));
    match target {
        Target::RawFile(path) => {
            command.args(["--ioengine=io_uring", "--direct=1", "--overwrite=1"]);
            command.arg(format!("--filename={}", path.display()));
            if work.raw_sync {
                command.arg("--fdatasync=1");
            }
        }
        Target::Nbd(socket) => {
            command.arg("--ioengine=nbd");
            command.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
        }
    }
    // Beside what it measures: engines print notes of their own on stdout.
    let (Target::RawFile(beside) | Target::Nbd(beside)) = target;
    let report = beside.with_extension("fio.json");
    command.arg(format!("--output={}", report.display()));
    let output = command.output().context("start fio: install Debian's package fio")?;
    if !output.status.success() {
        bail!("fio {}: {}", work.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = std::fs::read(&report).with_context(|| format!("read {}", report.display()))?;
    let report = serde_json::from_slice(&text).context("parse fio's JSON")?;
    figures(&report).with_context(|| format!("read fio's figures of {}", work.name))
}

fn figures(report: &Value) -> Result<Figures> {
    let job = &report["jobs"][0];
    if job["error"] != 0 {
        bail!("fio met error {}", job["error"]);
    }
    let side = ["write", "read"]
        .map(|name| &job[name])
        .into_iter()
        .find(|side| side["total_ios"].as_u64().unwrap_or(0) > 0)
        .context("fio did no IO")?;
    let number = |value: &Value| value.as_f64().context("a figure is missing");
    let percentile = |name: &str| number(&side["clat_ns"]["percentile"][name]).map(|ns| ns / 1e3);
    Ok(Figures {
        iops: number(&side["iops"])?,
        mib_per_s: number(&side["bw_bytes"])? / f64::from(1 << 20),
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
        p999_us: percentile("99.900000")?,
        ios: number(&side["total_ios"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(ios: u64) -> Value {
        serde_json::json!({
            "total_ios": ios, "iops": 100.0, "bw_bytes": 2 << 20,
            "clat_ns": {"percentile": {"50.000000": 1000, "99.000000": 2000, "99.900000": 3000}},
        })
    }

    #[test]
    fn figures_come_from_the_side_that_did_io() {
        let report = serde_json::json!({"jobs": [{"error": 0, "write": side(0), "read": side(9)}]});
        let figures = figures(&report).expect("figures");
        assert_eq!((figures.ios, figures.p99_us, figures.mib_per_s), (9.0, 2.0, 2.0));
    }

    #[test]
    fn a_run_with_an_error_or_without_io_gives_no_figures() {
        let failed = serde_json::json!({"jobs": [{"error": 5, "write": side(1), "read": side(0)}]});
        assert!(figures(&failed).is_err());
        let idle = serde_json::json!({"jobs": [{"error": 0, "write": side(0), "read": side(0)}]});
        assert!(figures(&idle).is_err());
    }
}
