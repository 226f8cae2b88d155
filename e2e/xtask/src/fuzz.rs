//! `cargo xtask fuzz`: builds the targets of `storage-engine/fuzz` with coverage and lets each look
//! for inputs that panic, hang or take too much memory.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::check::{self, Outcome};
use crate::deploy::{self, cargo};
use crate::paths::Paths;

/// Of `storage-engine/fuzz`.
const TARGETS: &[&str] = &["log", "checkpoint", "frames", "nbd"];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What libFuzzer needs of the code that it is to explore.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// One input may take so long, in seconds, and so much memory, in MiB.
const INPUT_SECONDS_MAX: u32 = 20;
const MEMORY_MIB_MAX: u32 = 2048;

/// Fuzzes one target or all, each for so long. Inputs that led somewhere new are kept in the cache
/// and are where the next run begins, as are those in `seeds/`: valid ones, and what once failed.
pub fn fuzz(paths: &Paths, target: Option<&str>, each: Duration) -> Result<Vec<Outcome>> {
    let targets: Vec<&str> =
        TARGETS.iter().copied().filter(|name| target.is_none_or(|t| t == *name)).collect();
    ensure!(
        !targets.is_empty(),
        "no fuzz target {:?}; there are {}",
        target.unwrap_or_default(),
        TARGETS.join(", ")
    );
    let target_dir = deploy::target_dir(paths)?.join("fuzz");
    let mut build = cargo(paths);
    // With a triple, build scripts and macros are not instrumented.
    build
        .args(["build", "--package", "curve-fuzz", "--target", TRIPLE, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTFLAGS", COVERAGE.join(" "));
    let built = check::part(paths, "fuzz targets", &mut build);
    let failed = built.failure.is_some();
    let mut outcomes = vec![built];
    if failed {
        return Ok(outcomes);
    }
    for name in targets {
        let program = target_dir.join(TRIPLE).join("debug").join(format!("fuzz-{name}"));
        let mut run = run(paths, name, program, each)?;
        outcomes.push(check::part(paths, &format!("fuzz {name}"), &mut run));
    }
    Ok(outcomes)
}

fn run(paths: &Paths, name: &str, program: PathBuf, each: Duration) -> Result<Command> {
    let corpus = paths.cache.join("fuzz").join(name);
    fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    let mut run = Command::new(program);
    run.arg(format!("-max_total_time={}", each.as_secs()))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        // Where the input that failed is written.
        .arg(format!("-artifact_prefix={}/{name}-", paths.cache.join("log").display()))
        .arg("-print_final_stats=1")
        // Long inputs from the start: the seeds are.
        .arg("-len_control=0")
        .arg(corpus)
        .arg(paths.repo.join("storage-engine/fuzz/seeds").join(name));
    Ok(run)
}
