//! csi-sanity over the real thing: a playground with three chunkservers, `curve agent`, and
//! `curve-csi` as controller and as node, all as processes of their own. Needs root and no cluster.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use curve_e2e::{playground, wait};
use curve_wire::pki::{Authority, Role};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const NODE: &str = "sanity-node";
/// csi-test 5.4.0 waits for the state of its connection to change. One that is ready before it
/// looks does not change, and the suite gives up after a minute (`Connect` in its grpcutil.go):
/// such a run says nothing of the driver, and is repeated.
const MISSED_ITS_CONNECTION: &str = "Connection timed out";
const ATTEMPTS: usize = 3;
/// Reported by the node, so that the suite can go one over it.
const VOLUMES_MAX: u32 = 4;
const READY: Duration = Duration::from_secs(60);
const STOPPED: Duration = Duration::from_secs(30);
const VOLUME_BYTES: u64 = 64 << 20;
const EXPANDED_BYTES: u64 = 128 << 20;

/// A process that is asked to end, and made to, when the value goes away.
struct Running {
    name: &'static str,
    child: Child,
}

impl Running {
    fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name, child })
    }

    fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).context("send SIGTERM")?;
        let status = wait::until(&format!("{} to end", self.name), STOPPED, || {
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status),
                other => Err(format!("{other:?}")),
            }
        })?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.stop().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The stack, in the order in which it must be stopped.
struct Stack {
    controller: Running,
    node: Running,
    agent: Running,
    playground: Running,
    dir: PathBuf,
}

impl Stack {
    fn start() -> Result<Self> {
        let bin = playground::binaries()?;
        // Short: Unix sockets lie in it.
        let dir = std::env::temp_dir().join(format!("curve-sanity-{}", std::process::id()));
        fs::create_dir_all(dir.join("log")).context("make the test's directory")?;
        let playground = start_playground(&bin, &dir)?;
        let cluster = dir.join("playground");
        write_connection(&cluster, &dir.join("csi/curve/demo"), Role::Csi, "curve-csi")?;
        write_connection(&cluster, &dir.join("agent/curve/demo"), Role::Agent, NODE)?;
        let at = |path: &str| dir.join(path);
        let agent = Running::start(
            "agent",
            logged(&bin.join("curve"), &dir, "agent")?
                .args(["agent", "--node", NODE, "--socket"])
                .arg(at("agent.sock"))
                .arg("--state-dir")
                .arg(at("agent-state"))
                .arg("--connection-dir")
                .arg(at("agent")),
        )?;
        let endpoint = |name: &str| format!("unix:{}", at(name).display());
        let controller = Running::start(
            "controller",
            logged(&bin.join("curve-csi"), &dir, "controller")?
                .args(["controller", "--endpoint", &endpoint("controller.sock")])
                .args(["--node", &format!("{NODE}={VOLUMES_MAX}"), "--connection-dir"])
                .arg(at("csi")),
        )?;
        let node = Running::start(
            "node",
            logged(&bin.join("curve-csi"), &dir, "node")?
                .args(["node", "--endpoint", &endpoint("node.sock"), "--node-id", NODE])
                .args(["--volumes-max", &VOLUMES_MAX.to_string(), "--agent-socket"])
                .arg(at("agent.sock")),
        )?;
        for socket in ["controller.sock", "node.sock"] {
            wait::until(&format!("{socket} to be ready"), READY, || {
                let mut health = Command::new(bin.join("curve-csi"));
                let output = health.args(["health", "--endpoint", &endpoint(socket)]).output();
                match output {
                    Ok(output) if output.status.success() => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })?;
        }
        Ok(Self { controller, node, agent, playground, dir })
    }

    /// Every process must end well on SIGTERM, and leave no mount and no device behind.
    fn stop(mut self) -> Result<()> {
        for process in [&mut self.controller, &mut self.node, &mut self.agent, &mut self.playground]
        {
            process.stop()?;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let dir = self.dir.display().to_string();
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&dir)).collect();
        ensure!(left.is_empty(), "left mounted: {left:?}");
        fs::remove_dir_all(&self.dir).context("remove the test's directory")
    }
}

/// A command whose output goes to a file of the test's directory.
fn logged(binary: &Path, dir: &Path, name: &str) -> Result<Command> {
    let log = fs::File::create(dir.join("log").join(name)).context("make a log file")?;
    let mut command = Command::new(binary);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

fn start_playground(bin: &Path, dir: &Path) -> Result<Running> {
    let mut command = logged(&bin.join("curve"), dir, "playground")?;
    command.args(["playground", "start", "--mds", "1", "--chunkservers", "3"]);
    command
        .args(["--device-size", "1GiB", "--dir"])
        .arg(dir.join("playground"))
        .stdout(Stdio::piped());
    let mut playground = Running::start("playground", &mut command)?;
    let stdout = playground.child.stdout.take().context("the playground's stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("read the playground's stdout")?;
    let ready: Value = serde_json::from_str(&line).with_context(|| {
        format!("the playground said {line:?}; its log is in {}", dir.display())
    })?;
    ensure!(ready["ready"] == true, "the playground is not ready: {line}");
    Ok(playground)
}

/// What the operator would put into a Secret: addresses, and a certificate of the role.
fn write_connection(cluster: &Path, to: &Path, role: Role, name: &str) -> Result<()> {
    let read = |file: &str| {
        let path = cluster.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let authority = Authority::from_pem(&read("tls/ca.crt")?, &read("tls/ca.key")?);
    authority.issue(role, name)?.save(to)?;
    let config = read("client.toml")?;
    let mds = config.lines().find(|line| line.starts_with("mds")).context("mds in client.toml")?;
    fs::write(to.join("client.toml"), format!("{mds}\ntls_dir = \".\"\n"))?;
    Ok(())
}

/// Runs the suite and judges its report.
fn run_suite(stack: &Stack, access_type: &str) -> Result<()> {
    let at = |name: &str| stack.dir.join(name);
    let parameters = at("parameters.yaml");
    fs::write(&parameters, "cluster: curve/demo\n").context("write the parameters")?;
    let report = at(&format!("{access_type}.json"));
    let binary = std::env::var_os("CURVE_CSI_SANITY")
        .context("`cargo xtask test csi-sanity` builds the suite and sets CURVE_CSI_SANITY")?;
    let mut suite = Command::new(&binary);
    suite
        .arg(format!("--csi.endpoint=unix://{}", at("node.sock").display()))
        .arg(format!("--csi.controllerendpoint=unix://{}", at("controller.sock").display()))
        .arg(format!("--csi.mountdir={}", at("mount").display()))
        .arg(format!("--csi.stagingdir={}", at("staging").display()))
        .arg(format!("--csi.testvolumeaccesstype={access_type}"))
        .arg(format!("--csi.testvolumesize={VOLUME_BYTES}"))
        .arg(format!("--csi.testvolumeexpandsize={EXPANDED_BYTES}"))
        .arg(format!("--csi.testvolumeparameters={}", parameters.display()))
        .arg("--csi.testnodevolumeattachlimit")
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .arg("--ginkgo.no-color");
    let mut attempt = 1;
    let (status, text) = loop {
        let output = suite.output().with_context(|| format!("run {binary:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if attempt == ATTEMPTS || !text.contains(MISSED_ITS_CONNECTION) {
            break (output.status, text);
        }
        attempt += 1;
    };
    if !status.success() {
        bail!(
            "csi-sanity with {access_type} volumes; logs are in {}:\n{text}",
            at("log").display()
        );
    }
    let passed = judge(&fs::read_to_string(&report).context("read the report")?)?;
    println!("csi-sanity, {access_type}: {passed} passed");
    Ok(())
}

/// Number of passed specs. Nothing that the suite looks at may be missing.
fn judge(report: &str) -> Result<usize> {
    let suites: Value = serde_json::from_str(report).context("parse the report")?;
    let specs = suites[0]["SpecReports"].as_array().context("specs in the report")?;
    let specs = || specs.iter().filter(|spec| spec["LeafNodeType"] == "It");
    let passed = specs().filter(|spec| spec["State"] == "passed").count();
    ensure!(passed > 80, "only {passed} specs ran");
    if let Some(spec) = specs().find(|spec| spec["State"] == "skipped") {
        let reason = spec["Failure"]["Message"].as_str().unwrap_or("without a reason");
        bail!("the suite skipped {}: {reason}", spec["LeafNodeText"]);
    }
    Ok(passed)
}

#[test]
fn csi_sanity_finds_no_fault_with_mounted_and_raw_volumes() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: it mounts file systems and makes loop devices");
    }
    let stack = Stack::start()?;
    run_suite(&stack, "mount")?;
    run_suite(&stack, "block")?;
    stack.stop()
}
