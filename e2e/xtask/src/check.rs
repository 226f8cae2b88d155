//! `check` looks and changes nothing; `fix` is what `check` would have asked for.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::{self, last_line};
use crate::deploy::{cargo, test_command};
use crate::paths::Paths;
use crate::progress::Step;

/// A pinned tool is as much part of the result as the code.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// How one part of a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    pub elapsed: Duration,
    /// Why it failed; None if it passed.
    pub failure: Option<String>,
}

/// Runs `command` as the part `name`; its output goes to a log of that name.
pub fn part(paths: &Paths, name: &str, command: &mut Command) -> Outcome {
    let mut step = Step::new(name.to_string());
    let started = Instant::now();
    let log = log_path(paths, name);
    let result = command::logged(command, &log, || {
        step.say(last_line(&log));
    });
    step.say("");
    step.finish(result.is_ok());
    Outcome {
        name: name.to_string(),
        elapsed: started.elapsed(),
        failure: result.err().map(|error| format!("{error:#}")),
    }
}

pub fn log_path(paths: &Paths, name: &str) -> PathBuf {
    paths.cache.join("log").join(format!("{}.log", name.replace(' ', "-")))
}

pub fn check(paths: &Paths) -> Result<Vec<Outcome>> {
    let mut outcomes = vec![
        part(paths, "fmt", cargo(paths).args(["fmt", "--all", "--check"])),
        part(
            paths,
            "clippy",
            cargo(paths)
                .args(["clippy", "--workspace", "--all-targets", "--"])
                .args(["-D", "warnings"]),
        ),
        part(paths, "crds drift", test_command(paths).args(["--test", "crds"])),
    ];
    // It reads the manifests of all platforms' dependencies; a build here fetches only its own.
    outcomes.push(part(paths, "cargo fetch", cargo(paths).args(["fetch", "--locked"])));
    let deny = cargo_deny(paths)?;
    outcomes.push(part(
        paths,
        "cargo deny",
        Command::new(deny)
            .current_dir(&paths.repo)
            // The advisory database is fetched from outside: a check must not depend on that.
            .args(["--offline", "check", "bans", "licenses", "sources"]),
    ));
    Ok(outcomes)
}

/// cargo-deny from PATH, or built once into the cache.
fn cargo_deny(paths: &Paths) -> Result<PathBuf> {
    if let Some(program) = command::find_program("cargo-deny") {
        return Ok(program);
    }
    let root = paths.cache.join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.is_file() {
        let mut step = Step::new("building cargo-deny, once".into());
        let log = paths.cache.join("log/cargo-deny-install.log");
        let mut install = cargo(paths);
        install
            // Unoptimized: it reads a lock file, and building it is what takes long.
            .args(["install", "--debug", "--locked", "--no-default-features", "--root"])
            .arg(&root)
            .arg(format!("cargo-deny@{CARGO_DENY_VERSION}"))
            // Its dependencies must not be rebuilt into the checkout's target directory.
            .env("CARGO_TARGET_DIR", paths.cache.join("cargo-deny-target"));
        let result = command::logged(&mut install, &log, || {
            step.say(last_line(&log));
        });
        step.finish(result.is_ok());
        result.context("install cargo-deny")?;
        let _ = std::fs::remove_dir_all(paths.cache.join("cargo-deny-target"));
    }
    Ok(program)
}

pub fn fix(paths: &Paths) -> Result<Vec<Outcome>> {
    Ok(vec![
        part(
            paths,
            "clippy --fix",
            cargo(paths)
                .args(["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty"])
                .arg("--allow-staged"),
        ),
        part(paths, "fmt", cargo(paths).args(["fmt", "--all"])),
        part(paths, "crds", cargo(paths).args(["run", "-p", "curve-operator", "--bin", "crdgen"])),
    ])
}
