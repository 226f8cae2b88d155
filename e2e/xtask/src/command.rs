//! Running other programs: every failure names the program, its exit and the end of what it said.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Enough to hold the cause; the whole text lies in the log that the error names.
const TAIL_LINES: usize = 25;

pub fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args().take(8) {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs to the end and returns stdout; stderr is part of the error.
pub fn output(command: &mut Command) -> Result<String> {
    let result = run(command)?;
    if !result.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            describe(command),
            result.status,
            tail(&String::from_utf8_lossy(&result.stdout)),
            tail(&String::from_utf8_lossy(&result.stderr)),
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// Whether it exits 0; says nothing.
pub fn succeeds(command: &mut Command) -> bool {
    run(command).is_ok_and(|result| result.status.success())
}

fn run(command: &mut Command) -> Result<Output> {
    let name = describe(command);
    command.stdin(Stdio::null()).output().with_context(|| format!("start {name}"))
}

/// Runs with everything it prints going to `log`; `watch` is called a few times a second.
pub fn logged(command: &mut Command, log: &Path, mut watch: impl FnMut()) -> Result<()> {
    let name = describe(command);
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let out = File::create(log).with_context(|| format!("create log {}", log.display()))?;
    let err = out.try_clone().context("share the log between stdout and stderr")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("start {name}"))?;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {name}"))? {
            if status.success() {
                return Ok(());
            }
            let text = fs::read_to_string(log).unwrap_or_default();
            bail!("{name} failed ({status}), full log in {}:\n{}", log.display(), tail(&text));
        }
        watch();
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].iter().map(|line| format!("  {line}\n")).collect()
}

/// How far a program that writes to this log has come.
pub fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().next_back().unwrap_or_default().trim().chars().take(100).collect()
}

/// Looks for `name` on PATH and in the system directories an ordinary user's PATH leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// Polls until `ready` says so; the error carries the last thing that was missing.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<std::result::Result<(), String>>,
) -> Result<()> {
    let started = Instant::now();
    loop {
        match ready()? {
            Ok(()) => return Ok(()),
            Err(missing) if started.elapsed() >= limit => {
                bail!("{what} took more than {} s: {missing}", limit.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}
