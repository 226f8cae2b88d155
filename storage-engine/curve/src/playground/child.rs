//! One child process, started again whenever it ends, until it is told to stay down.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::GRACE;
use super::metrics::ChildMetrics;
use super::plan::Command;

/// First pause before a restart: a killed child is missed only briefly.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A child that lived this long started well: the next pause is short again.
const LIVED: Duration = Duration::from_secs(5);
/// Ends in a row, each soon after the start and by the child's own doing, after which it is given
/// up: what keeps it from starting will not pass.
const FAILURES_MAX: u32 = 5;
/// But not before: one that was killed in mid-sync keeps its device a while.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
/// Bytes of its log that are shown when a child is given up.
const LOG_TAIL: u64 = 2000;

/// Who runs at this moment, also in `DIR/pids.json`.
pub struct Pids {
    path: PathBuf,
    pids: RefCell<BTreeMap<String, u32>>,
}

impl Pids {
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("pids.json"), pids: RefCell::default() }
    }

    pub fn get(&self, name: &str) -> Option<u32> {
        self.pids.borrow().get(name).copied()
    }

    fn set(&self, name: &str, pid: Option<u32>) -> Result<()> {
        let mut pids = self.pids.borrow_mut();
        match pid {
            Some(pid) => pids.insert(name.to_owned(), pid),
            None => pids.remove(name),
        };
        let text = serde_json::to_vec(&*pids).context("encode pids")?;
        let new = self.path.with_extension("new");
        std::fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &self.path).context("replace pids.json")
    }
}

pub struct Child {
    command: Command,
    pids: Rc<Pids>,
    metrics: ChildMetrics,
    end: watch::Receiver<bool>,
}

impl Child {
    /// `end` becomes true when the child is to stop for good.
    pub fn new(
        command: Command,
        pids: Rc<Pids>,
        metrics: ChildMetrics,
        end: watch::Receiver<bool>,
    ) -> Self {
        Self { command, pids, metrics, end }
    }

    /// Returns once the child has ended for good; an error if it cannot be kept running.
    pub async fn run(mut self) -> Result<()> {
        let (mut pause, mut failures, mut failing_since) = (PAUSE_FIRST, 0, Instant::now());
        while !*self.end.borrow() {
            let started = Instant::now();
            let Some(status) = self.run_once().await? else { return Ok(()) };
            let name = &self.command.name;
            tracing::warn!(name, %status, "a child ended: starting it again");
            self.metrics.restarts.inc();
            if started.elapsed() > LIVED {
                (pause, failures, failing_since) = (PAUSE_FIRST, 0, Instant::now());
            } else if status.code().is_some() {
                failures += 1;
            }
            if failures >= FAILURES_MAX && failing_since.elapsed() > GIVEN_UP_AFTER {
                bail!("{name} ends each time it is started ({status}):\n{}", self.log_tail());
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.end.wait_for(|end| *end) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(())
    }

    /// `None` if the child was told to end.
    async fn run_once(&mut self) -> Result<Option<ExitStatus>> {
        let mut process = self.spawn()?;
        let pid = process.id();
        self.pids.set(&self.command.name, pid)?;
        self.metrics.up.set(1);
        let ended = tokio::select! {
            status = process.wait() => Some(status),
            _ = self.end.wait_for(|end| *end) => None,
        };
        let status = match ended {
            Some(status) => Some(status.context("wait for a child")?),
            None => {
                if let Some(pid) = pid {
                    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
                }
                if tokio::time::timeout(GRACE, process.wait()).await.is_err() {
                    tracing::warn!(name = self.command.name, "does not end: killing it");
                    process.kill().await.context("kill a child")?;
                }
                None
            }
        };
        self.metrics.up.set(0);
        self.pids.set(&self.command.name, None)?;
        Ok(status)
    }

    fn spawn(&self) -> Result<tokio::process::Child> {
        let Command { name, args, log } = &self.command;
        let open = OpenOptions::new().create(true).append(true).open(log);
        let log = open.with_context(|| format!("open {}", log.display()))?;
        tokio::process::Command::new("/proc/self/exe")
            .args(["--parent-pid", &std::process::id().to_string()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicate a log file")?)
            .stderr(log)
            // Ctrl-C reaches the playground, which ends its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {name}"))
    }

    fn log_tail(&self) -> String {
        use std::io::{Read, Seek, SeekFrom};
        let mut tail = Vec::new();
        if let Ok(mut log) = std::fs::File::open(&self.command.log) {
            let len = log.metadata().map(|found| found.len()).unwrap_or(0);
            let _ = log.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL)));
            let _ = log.read_to_end(&mut tail);
        }
        String::from_utf8_lossy(&tail).trim_end().to_owned()
    }
}
