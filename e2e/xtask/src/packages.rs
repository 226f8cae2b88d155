//! Debian packages the commands need: asked of dpkg, installed by apt when root.

use std::process::Command;

use anyhow::{Result, bail};

use crate::command;
use crate::progress::Step;

/// What the local cluster's nodes, the image builds and the tests run. One line per reason.
const PACKAGES: &[&str] = &[
    // kube-proxy, kubelet and the nodes' networks
    "conntrack",
    "ipset",
    "iproute2",
    "iptables",
    "socat",
    // file systems and mounts of volumes; setsid, nsenter, unshare
    "e2fsprogs",
    "mount",
    "util-linux",
    "xfsprogs",
    // root file systems of images; runc is cgo and links libseccomp
    "gcc",
    "libc6-dev",
    "libseccomp-dev",
    "mmdebstrap",
    "pkg-config",
    // tests and benchmarks of the engine over NBD and FUSE
    "curl",
    "fio",
    "fuse3",
    "libnbd-bin",
    "qemu-utils",
];

fn missing() -> Vec<&'static str> {
    PACKAGES
        .iter()
        .copied()
        .filter(|package| {
            let status = command::output(Command::new("dpkg-query").args([
                "-W",
                "-f",
                "${db:Status-Status}",
                package,
            ]));
            !status.is_ok_and(|status| status == "installed")
        })
        .collect()
}

pub fn ensure(step: &mut Step) -> Result<()> {
    if command::find_program("dpkg-query").is_none() {
        step.say("not a Debian system: expecting the programs to be on PATH");
        return Ok(());
    }
    let missing = missing();
    if missing.is_empty() {
        step.say(format!("all {} are installed", PACKAGES.len()));
        return Ok(());
    }
    let list = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "Debian packages are missing; install them with this line and run again:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends -y {list}"
        );
    }
    step.line(&format!("installing {list}"));
    let log = std::env::temp_dir().join("curve-apt.log");
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    command::logged(&mut apt(&["update"]), &log, || step.say("apt-get update"))?;
    let mut install = apt(&["install", "--no-install-recommends", "-y"]);
    command::logged(install.args(&missing), &log, || step.say("apt-get install"))?;
    step.say(format!("installed {list}"));
    Ok(())
}
