//! Long-lived processes of the cluster: started detached, recorded by pid and start time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::paths::{Paths, write_atomically};

/// Joins the given cgroups, then becomes the program: from its first instant the process is
/// where clean-up looks, even if we are killed before its pid is recorded.
const JOIN_AND_EXEC: &str = r#"
for group in $CGROUPS; do echo $$ > "$group/cgroup.procs" || exit 97; done
unset CGROUPS
exec "$@"
"#;

/// A process is one only together with the time it started: pids are reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot, as /proc says it.
    start: u64,
}

/// Which namespaces a process starts in.
#[derive(Debug, Clone, Copy)]
pub enum Enter<'a> {
    Network(&'a str),
    /// Network, mounts and host name of the process with this pid.
    Node(i32),
}

#[derive(Debug)]
pub struct Launch<'a> {
    pub name: &'a str,
    pub cgroups: &'a [PathBuf],
    pub enter: Enter<'a>,
    /// Put in front of the system's directories.
    pub path: &'a str,
    pub argv: Vec<String>,
}

fn record_path(paths: &Paths, name: &str) -> PathBuf {
    paths.state.join("run").join(format!("{name}.json"))
}

pub fn log_path(paths: &Paths, name: &str) -> PathBuf {
    paths.log_dir().join(format!("{name}.log"))
}

/// The command that runs `argv` inside these namespaces.
pub fn enter_command(enter: Enter<'_>) -> Vec<String> {
    let mut argv = vec!["nsenter".to_string()];
    match enter {
        Enter::Network(name) => argv.push(format!("--net=/run/netns/{name}")),
        Enter::Node(pid) => {
            argv.extend(["--target".into(), pid.to_string()]);
            argv.extend(["--mount", "--net", "--uts"].map(String::from));
        }
    }
    argv.push("--".into());
    argv
}

pub fn start(paths: &Paths, launch: &Launch<'_>) -> Result<Identity> {
    let log = log_path(paths, launch.name);
    fs::create_dir_all(paths.log_dir()).context("make the log directory")?;
    keep_former_log(&log);
    let out = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let err = out.try_clone().context("share the log between stdout and stderr")?;
    let groups: Vec<String> =
        launch.cgroups.iter().map(|group| group.display().to_string()).collect();
    let child = Command::new("setsid")
        .args(["sh", "-c", JOIN_AND_EXEC, "sh"])
        .args(enter_command(launch.enter))
        .args(&launch.argv)
        .env_clear()
        .env("CGROUPS", groups.join(" "))
        .env("HOME", "/root")
        .env("PATH", format!("{}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", launch.path))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("start {}", launch.name))?;
    let pid = i32::try_from(child.id()).context("pid out of range")?;
    let Some(identity) = identify(pid) else {
        bail!("{} ended at once, see {}", launch.name, log.display());
    };
    let text = serde_json::to_vec(&identity).context("encode the process record")?;
    write_atomically(&record_path(paths, launch.name), &text)?;
    Ok(identity)
}

/// A restart after a failure must not destroy what explains the failure.
fn keep_former_log(log: &Path) {
    let _ = fs::rename(log, log.with_extension("log.1"));
}

/// None when the process is gone or a zombie.
fn identify(pid: i32) -> Option<Identity> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces: fields count from the last one.
    let rest = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let (state, start) = (fields.first()?, fields.get(19)?);
    if matches!(*state, "Z" | "X") {
        return None;
    }
    Some(Identity { pid, start: start.parse().ok()? })
}

pub fn recorded(paths: &Paths, name: &str) -> Option<Identity> {
    let bytes = fs::read(record_path(paths, name)).ok()?;
    let identity: Identity = serde_json::from_slice(&bytes).ok()?;
    (identify(identity.pid) == Some(identity)).then_some(identity)
}

pub fn is_alive(paths: &Paths, name: &str) -> bool {
    recorded(paths, name).is_some()
}

/// The end of a process's log, for an error that explains itself.
pub fn log_tail(paths: &Paths, name: &str) -> String {
    let log = log_path(paths, name);
    let text = fs::read_to_string(&log).unwrap_or_default();
    format!("end of {}:\n{}", log.display(), command::tail(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognized_only_with_its_start_time() {
        let me = identify(i32::try_from(std::process::id()).expect("pid")).expect("running");
        assert_eq!(identify(me.pid), Some(me));
        assert_ne!(identify(me.pid), Some(Identity { start: me.start + 1, ..me }));
    }

    #[test]
    fn a_zombie_counts_as_gone() {
        let mut child = Command::new("true").spawn().expect("start true");
        let pid = i32::try_from(child.id()).expect("pid");
        while identify(pid).is_some() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.wait().expect("reap");
    }
}
