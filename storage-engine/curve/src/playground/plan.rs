//! What a playground consists of. Made once, kept in `DIR/playground.json`: ports and names stay
//! the same for the life of the directory.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use curve_types::{ByteSize, REPLICAS_MIN};
use serde::{Deserialize, Serialize};

use super::pki;

const PLAN_FILE: &str = "playground.json";
const CLUSTER_NAME: &str = "playground";
/// Below the range from which the kernel takes ports of outgoing connections, so that none of
/// those stands in the way of a restart.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const MDS_DEFAULT: u32 = 3;

/// What the command line asks for.
pub struct Wanted {
    pub mds: Option<u32>,
    pub chunkservers: Option<u32>,
    pub device_size: ByteSize,
    pub log_device_size: Option<ByteSize>,
}

/// A wish that cannot be fulfilled.
#[derive(Debug)]
pub struct BadPlan(String);

impl std::fmt::Display for BadPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadPlan {}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The playground's own port. 0 until `extend` gives one: directories made before it had one
    /// name none.
    #[serde(default)]
    pub metrics: u16,
    pub mds: Vec<Mds>,
    pub chunkservers: Vec<Chunkserver>,
}

/// One MDS and its ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mds {
    pub name: String,
    pub grpc: u16,
    pub raft: u16,
    pub metrics: u16,
}

/// One chunkserver, alone on its host and in its zone, and its ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chunkserver {
    pub name: String,
    pub host: String,
    pub zone: String,
    pub data: u16,
    pub metrics: u16,
    pub device_size: u64,
    /// If its log has a device of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_device_size: Option<u64>,
}

/// A child's name and its words after `curve`.
pub struct Command {
    pub name: String,
    pub args: Vec<String>,
    pub log: PathBuf,
}

pub fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

impl Plan {
    pub fn load_or_make(dir: &Path, wanted: &Wanted) -> Result<Self> {
        let path = dir.join(PLAN_FILE);
        let existing = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("parse {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let mut port = free_port(existing.ports());
        let plan = existing.extend(wanted, &mut port)?;
        let text = serde_json::to_vec_pretty(&plan).context("encode the plan")?;
        let new = path.with_extension("new");
        std::fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))?;
        Ok(plan)
    }

    /// Adds what is wanted and not there yet. `port` gives an unused port.
    fn extend(mut self, wanted: &Wanted, port: &mut impl FnMut() -> Result<u16>) -> Result<Self> {
        let has = (self.mds.len() as u32, self.chunkservers.len() as u32);
        let mds = wanted.mds.unwrap_or(if has.0 > 0 { has.0 } else { MDS_DEFAULT });
        let chunkservers = wanted.chunkservers.unwrap_or(has.1.max(REPLICAS_MIN));
        let refused = |message| Err(BadPlan(message).into());
        if !matches!(mds, 1 | 3) {
            return refused(format!("--mds is {mds}: expected 1 or 3"));
        }
        if has.0 > 0 && has.0 != mds {
            let has = has.0;
            return refused(format!(
                "--mds is {mds}, but this directory has {has}: it cannot change"
            ));
        }
        if chunkservers < REPLICAS_MIN {
            return refused(format!(
                "--chunkservers is {chunkservers}: a pool keeps {REPLICAS_MIN} replicas on \
                 different hosts, so at least {REPLICAS_MIN} are needed"
            ));
        }
        if chunkservers < has.1 {
            let has = has.1;
            return refused(format!(
                "--chunkservers is {chunkservers}, but this directory has {has}: none can be taken away"
            ));
        }
        if self.metrics == 0 {
            self.metrics = port()?;
        }
        for at in has.0..mds {
            let (grpc, raft, metrics) = (port()?, port()?, port()?);
            self.mds.push(Mds { name: format!("mds-{at}"), grpc, raft, metrics });
        }
        for at in has.1..chunkservers {
            self.chunkservers.push(Chunkserver {
                name: format!("chunkserver-{at}"),
                host: format!("host-{}", at + 1),
                zone: format!("z{}", at + 1),
                data: port()?,
                metrics: port()?,
                device_size: wanted.device_size.0,
                log_device_size: wanted.log_device_size.map(|size| size.0),
            });
        }
        Ok(self)
    }

    fn ports(&self) -> HashSet<u16> {
        let mds = self.mds.iter().flat_map(|mds| [mds.grpc, mds.raft, mds.metrics]);
        let chunkservers = self.chunkservers.iter().flat_map(|s| [s.data, s.metrics]);
        mds.chain(chunkservers).chain([self.metrics]).collect()
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.mds.iter().map(|mds| loopback(mds.grpc)).collect()
    }

    pub fn write_client_toml(&self, dir: &Path) -> Result<()> {
        let path = dir.join("client.toml");
        let text = format!("mds = {:?}\ntls_dir = \"tls/admin\"\n", self.endpoints());
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// A chunkserver makes its device file, but not the directory that the file lies in.
    pub fn make_device_dirs(&self, dir: &Path) -> Result<()> {
        for server in &self.chunkservers {
            let path = dir.join(&server.name);
            std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        Ok(())
    }

    /// The children's command lines.
    pub fn commands(&self, dir: &Path, out_after_secs: u64) -> Vec<Command> {
        let mds = self.mds.iter().map(|mds| self.mds_command(dir, mds, out_after_secs));
        let chunkservers = self.chunkservers.iter().map(|s| self.chunkserver_command(dir, s));
        mds.chain(chunkservers).collect()
    }

    fn mds_command(&self, dir: &Path, mds: &Mds, out_after_secs: u64) -> Command {
        let mut flags = vec![
            ("--name", mds.name.clone()),
            ("--data-dir", dir.join(&mds.name).display().to_string()),
            ("--cluster-name", CLUSTER_NAME.to_owned()),
            ("--listen-grpc", loopback(mds.grpc)),
            ("--listen-raft", loopback(mds.raft)),
            ("--listen-metrics", loopback(mds.metrics)),
            ("--tls-dir", pki::tls_dir(dir, &mds.name).display().to_string()),
            ("--out-after-secs", out_after_secs.to_string()),
        ];
        flags.extend(self.mds.iter().map(|peer| {
            let (grpc, raft) = (loopback(peer.grpc), loopback(peer.raft));
            ("--peer", format!("{},{grpc},{raft}", peer.name))
        }));
        command(dir, "mds", &mds.name, flags)
    }

    fn chunkserver_command(&self, dir: &Path, server: &Chunkserver) -> Command {
        let file = |name| dir.join(&server.name).join(name).display().to_string();
        let mut flags = vec![
            ("--name", server.name.clone()),
            ("--host", server.host.clone()),
            ("--zone", server.zone.clone()),
            ("--device", file("device")),
            ("--device-size", server.device_size.to_string()),
            ("--listen", loopback(server.data)),
            ("--advertise", loopback(server.data)),
            ("--listen-metrics", loopback(server.metrics)),
            ("--mds", self.endpoints().join(",")),
            ("--tls-dir", pki::tls_dir(dir, &server.name).display().to_string()),
        ];
        if let Some(size) = server.log_device_size {
            flags.push(("--log-device", file("log")));
            flags.push(("--log-device-size", size.to_string()));
        }
        command(dir, "chunkserver", &server.name, flags)
    }
}

fn command(dir: &Path, role: &str, name: &str, flags: Vec<(&str, String)>) -> Command {
    let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    Command {
        name: name.to_owned(),
        args: std::iter::once(role.to_owned()).chain(flags).collect(),
        log: dir.join("log").join(format!("{name}.log")),
    }
}

/// Gives ports that nobody listens on, each once, and none of those that are `given` already:
/// nobody listens on these while the playground is down.
fn free_port(mut given: HashSet<u16>) -> impl FnMut() -> Result<u16> {
    move || {
        // Starting anywhere keeps two playgrounds that start at once apart.
        let start = rand::random_range(PORTS);
        let from_start = (start..PORTS.end).chain(PORTS.start..start);
        for port in from_start {
            if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
                given.insert(port);
                return Ok(port);
            }
        }
        anyhow::bail!("no port from {} to {} is free on 127.0.0.1", PORTS.start, PORTS.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extend(plan: Plan, mds: Option<u32>, chunkservers: Option<u32>) -> Result<Plan> {
        let mut next = 100;
        let mut port = || {
            next += 1;
            Ok(next)
        };
        let (device_size, log_device_size) = (ByteSize(1 << 30), None);
        let wanted = Wanted { mds, chunkservers, device_size, log_device_size };
        plan.extend(&wanted, &mut port)
    }

    #[test]
    fn a_plan_grows_and_never_shrinks() {
        let plan = extend(Plan::default(), None, None).expect("default");
        assert_eq!((plan.mds.len(), plan.chunkservers.len()), (3, 3));
        let again = extend(plan.clone(), None, None).expect("again");
        assert_eq!(again, plan);
        let more = extend(plan.clone(), Some(3), Some(4)).expect("more");
        assert_eq!(more.chunkservers[..3], plan.chunkservers[..]);
        assert_eq!(more.chunkservers[3].host, "host-4");
        let kept = extend(more.clone(), None, None).expect("kept");
        assert_eq!(kept.chunkservers.len(), 4);
        for (plan, mds, chunkservers, expected) in [
            (more.clone(), Some(1), None, "cannot change"),
            (more, None, Some(3), "none can be taken away"),
            (Plan::default(), Some(2), None, "expected 1 or 3"),
            (Plan::default(), None, Some(2), "at least 3"),
        ] {
            let error = extend(plan, mds, chunkservers).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_directory_from_before_the_playground_had_a_port_gets_one_and_keeps_the_others() {
        let plan = extend(Plan::default(), None, None).expect("default");
        let mut old = serde_json::to_value(&plan).expect("encode");
        old.as_object_mut().expect("an object").remove("metrics").expect("the port");
        let old: Plan = serde_json::from_value(old).expect("an old plan");
        let later = extend(old.clone(), None, None).expect("extend");
        assert_ne!(later.metrics, 0);
        assert_eq!(Plan { metrics: 0, ..later.clone() }, old);
        assert_eq!(extend(later.clone(), None, None).expect("again"), later);
    }

    #[test]
    fn every_port_is_given_once() {
        // Half of them are the plan's own, whose processes do not run.
        let given: HashSet<u16> = PORTS.step_by(2).collect();
        let mut port = free_port(given.clone());
        let ports: HashSet<u16> = (0..50).map(|_| port().expect("free")).collect();
        assert_eq!(ports.len(), 50);
        assert!(ports.iter().all(|port| PORTS.contains(port) && !given.contains(port)));
    }
}
