//! A playground as the tests use it: the real binary, started, killed and started again.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use xtask::deploy;
use xtask::paths::Paths;

use crate::wait;

/// The name of the process that starts the others.
const ITSELF: &str = "playground";
const STOPPED: Duration = Duration::from_secs(30);
const SERVING: Duration = Duration::from_secs(30);

/// The `curve` binary of this checkout, in the profile of this test.
pub fn binary() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        binaries().map(|dir| dir.join("curve")).map_err(|error| format!("{error:#}"))
    });
    built.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// The directory of this checkout's binaries, built if they are not up to date.
pub fn binaries() -> Result<PathBuf> {
    let mut cargo = deploy::build_command(&Paths::from_env()?, false);
    let built = cargo.arg("--quiet").status().context("run cargo")?;
    ensure!(built.success(), "cargo build failed");
    let test = std::env::current_exe().context("find this test's binary")?;
    Ok(test.ancestors().nth(2).context("find the target directory")?.to_owned())
}

/// A process that is asked to end, and made to, when the value goes away.
pub struct Running(Child);

impl Running {
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// SIGTERM, and an exit status of 0.
    pub fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).context("send SIGTERM")?;
        let status = wait::until("a process to end", STOPPED, || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })?;
        ensure!(status.success(), "it ended with {status} after SIGTERM");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) && self.stop().is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A directory on a real disk, for a playground or what else a test needs; removed with everything
/// in it.
/// `CURVE_E2E_KEEP=1` keeps it for inspection.
pub struct Directory {
    pub path: PathBuf,
    /// One playground at a time: they would only take each other's processors.
    _turn: MutexGuard<'static, ()>,
}

impl Directory {
    pub fn create(name: &str) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // Short, since sockets lie in it, and not /tmp, which may be memory.
        let path = PathBuf::from(format!("/var/tmp/curve-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path, _turn: turn })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::env::var_os("CURVE_E2E_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// A port on which a process of a playground listens.
#[derive(Debug)]
pub struct Port {
    /// As `pids.json` has it; `playground` for the parent.
    pub process: String,
    pub kind: &'static str,
    pub address: SocketAddr,
}

/// A running playground.
pub struct Playground {
    process: Running,
    dir: PathBuf,
    /// What it printed when it was ready.
    pub ready: Value,
}

impl Playground {
    /// Starts or restarts the playground of `directory`; returns when it says it is ready.
    pub fn start(directory: &Directory, args: &[&str]) -> Result<Self> {
        let dir = directory.path.join("playground");
        let log_path = directory.path.join("playground.log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
        let mut child = Command::new(binary()?)
            .args(["playground", "start", "--dir"])
            .arg(&dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start the playground")?;
        let stdout = child.stdout.take().context("the playground's stdout")?;
        let process = Running(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("read the playground's stdout")?;
        let ready: Value = serde_json::from_str(&line).with_context(|| {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            format!("the playground said {line:?} and\n{}", tail(&log))
        })?;
        ensure!(ready["ready"] == true, "the playground is not ready: {line}");
        Ok(Self { process, dir, ready })
    }

    /// Small devices: enough for the tests, quick to make.
    pub fn start_small(directory: &Directory) -> Result<Self> {
        Self::start(directory, &["--device-size", "2Gi"])
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `curve ARGS` on this cluster; a failure carries its stderr.
    pub fn curve(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(binary()?)
            .args(args)
            .env("CURVE_CONFIG", self.config())
            .output()
            .context("run curve")?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("curve {}: {}: {}", args.join(" "), output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.curve(&["status", "-o", "json"])?).context("parse the status")
    }

    /// Children that run at this moment, by name.
    pub fn pids(&self) -> Result<Vec<(String, i32)>> {
        let text = std::fs::read(self.dir.join("pids.json")).context("read pids.json")?;
        let pids: serde_json::Map<String, Value> =
            serde_json::from_slice(&text).context("parse pids.json")?;
        let pid = |(name, pid): (String, Value)| Some((name, pid.as_i64()? as i32));
        Ok(pids.into_iter().filter_map(pid).collect())
    }

    /// Every port of every process, from the plan.
    pub fn ports(&self) -> Result<Vec<Port>> {
        let text = std::fs::read(self.dir.join("playground.json")).context("read the plan")?;
        let plan: Value = serde_json::from_slice(&text).context("parse the plan")?;
        let children = ["mds", "chunkservers"].into_iter().flat_map(|kind| plan[kind].as_array());
        let mut found = Vec::new();
        for process in children.flatten().chain([&plan]) {
            let name = process["name"].as_str().unwrap_or(ITSELF);
            for kind in ["grpc", "raft", "data", "metrics"] {
                if let Some(port) = process[kind].as_u64() {
                    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
                    found.push(Port { process: name.to_owned(), kind, address });
                }
            }
        }
        Ok(found)
    }

    /// kill -9 of one child, which is dead when this returns; the playground starts it again.
    pub fn kill_child(&self, name: &str) -> Result<()> {
        let pids = self.pids()?;
        let (_, pid) = pids
            .iter()
            .find(|(found, _)| found == name)
            .with_context(|| format!("{name} does not run; those that do are {pids:?}"))?;
        kill(Pid::from_raw(*pid), Signal::SIGKILL).with_context(|| format!("kill {name}"))?;
        wait_gone(&[(name.to_owned(), *pid)])
    }

    /// kill -9 of everything at once, the playground itself first so that nothing restarts.
    pub fn kill_all(mut self) -> Result<()> {
        let pids = self.pids()?;
        kill(Pid::from_raw(self.process.pid()), Signal::SIGKILL).context("kill the playground")?;
        for (_, pid) in &pids {
            // The kernel may have been faster: children die with the playground.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        self.process.0.wait().context("wait for the playground")?;
        wait_gone(&pids)
    }

    /// Ends it in order.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop()
    }

    /// Serves a volume over NBD at `socket`.
    pub fn export(&self, volume: &str, socket: &Path) -> Result<Running> {
        self.export_with(volume, socket, &[])
    }

    pub fn export_with(&self, volume: &str, socket: &Path, args: &[&str]) -> Result<Running> {
        let mut child = Command::new(binary()?)
            .args(["volume", "export", volume, "--nbd"])
            .arg(format!("unix:{}", socket.display()))
            .args(args)
            .env("CURVE_CONFIG", self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("export the volume")?;
        let ended = wait::until("the NBD socket", SERVING, || match child.try_wait() {
            Ok(None) if socket.exists() => Ok(None),
            Ok(Some(status)) => Ok(Some(status)),
            other => Err(format!("{other:?}")),
        })?;
        ensure!(ended.is_none(), "the export ended: {ended:?}");
        Ok(Running(child))
    }

    /// Children of the plan that are not there: dead, and not yet started again.
    fn missing(&self) -> Result<Vec<String>> {
        let running = self.pids()?.into_iter().filter(|(_, pid)| is_running(*pid));
        let running: BTreeSet<String> = running.map(|(name, _)| name).collect();
        let planned = self.ports()?.into_iter().map(|port| port.process);
        let planned: BTreeSet<String> = planned.filter(|name| name != ITSELF).collect();
        Ok(planned.difference(&running).cloned().collect())
    }

    /// Waits until all children run, all copysets have all replicas and nothing is wrong. The
    /// status alone would not say so: for some seconds the MDS does not know that one is dead.
    pub fn wait_healthy(&self, timeout: Duration) -> Result<Value> {
        wait::until("all children to run", timeout, || match self.missing() {
            Ok(missing) if missing.is_empty() => Ok(()),
            other => Err(format!("missing: {other:?}")),
        })?;
        wait::until("a healthy playground", timeout, || match self.status() {
            Ok(status) if status["health"] == "ok" => Ok(status),
            Ok(status) => Err(format!("{} {}", status["health"], status["messages"])),
            Err(error) => Err(format!("{error:#}")),
        })
    }
}

fn wait_gone(pids: &[(String, i32)]) -> Result<()> {
    wait::until("all that was killed to be gone", STOPPED, || {
        let alive = pids.iter().find(|(_, pid)| is_running(*pid));
        alive.map_or(Ok(()), |(name, _)| Err(format!("{name} still runs")))
    })
}

/// Neither gone nor a zombie that nobody has reaped yet.
fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Runs a program to its end and returns what it printed; a failure carries all of it.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("run {program}: is it installed?"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}\n{stdout}{stderr}", args.join(" "), output.status);
    }
    Ok(stdout)
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(3000);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[start..]
}
