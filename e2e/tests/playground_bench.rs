//! The benchmark's own promises, on the smallest volume and time that still measure something.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use curve_e2e::playground::{Directory, binary};
use serde_json::Value;
use xtask::bench::block::{self, Options};

fn options(dir: PathBuf, json: Option<PathBuf>) -> Result<Options> {
    let curve = binary()?.to_owned();
    Ok(Options { dir, rounds: 1, seconds: 1, volume_size: 64 << 20, json, curve })
}

#[test]
fn the_benchmark_measures_volume_and_disk_and_removes_only_what_it_made() -> Result<()> {
    let directory = Directory::create("bench")?;
    let kept = directory.path.join("kept");
    std::fs::write(&kept, "the user's")?;
    let report = directory.path.join("report.json");
    block::run(options(directory.path.clone(), Some(report.clone()))?)?;

    let rows: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    let rows = rows.as_array().context("rows")?;
    ensure!(rows.len() == 6, "{} rows", rows.len());
    for row in rows {
        let round = &row["rounds"][0];
        for figure in [&round["raw"]["iops"], &round["curve"]["iops"], &round["cpu_us_per_io"]] {
            ensure!(figure.as_f64().is_some_and(|value| value > 0.0), "{row}");
        }
    }
    let mut left: Vec<_> = std::fs::read_dir(&directory.path)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    left.sort();
    ensure!(left == [kept, report], "{left:?}");
    Ok(())
}

#[test]
fn the_benchmark_refuses_memory() -> Result<()> {
    let error = block::run(options("/dev/shm".into(), None)?).expect_err("tmpfs");
    ensure!(error.to_string().contains("lies on tmpfs"), "{error:#}");
    Ok(())
}
