//! A volume of a playground under the tools that people use: nbdcopy, qemu-img, mkfs, fsck.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::playground::{Directory, Playground, run};

const MIB: usize = 1 << 20;

fn image(path: &Path, size: usize) -> Result<Vec<u8>> {
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    let bytes: Vec<u8> = (0..size / 8)
        .flat_map(|_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()
        })
        .collect();
    std::fs::write(path, &bytes).context("write the image")?;
    Ok(bytes)
}

#[test]
fn what_nbdcopy_wrote_is_what_qemu_img_and_nbdcopy_read() -> Result<()> {
    let directory = Directory::create("copy")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "128Mi"])?;
    let socket = directory.path.join("nbd.sock");
    let mut export = playground.export("data", &socket)?;
    let uri = format!("nbd+unix:///data?socket={}", socket.display());
    let source = directory.path.join("source");
    let bytes = image(&source, 128 * MIB)?;
    let source = source.to_str().context("path")?;
    run("nbdcopy", &[source, &uri])?;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri])?;
    export.stop()?;
    ensure!(!socket.exists(), "the export left its socket");

    // A later attachment reads the same.
    let _export = playground.export("data", &socket)?;
    let copy = directory.path.join("copy");
    run("nbdcopy", &[&uri, copy.to_str().context("path")?])?;
    ensure!(std::fs::read(&copy)? == bytes, "nbdcopy read something else");
    playground.stop()
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() -> Result<()> {
    let directory = Directory::create("zero")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "64Mi"])?;
    let socket = directory.path.join("nbd.sock");
    let _export = playground.export("data", &socket)?;
    let uri = format!("nbd+unix:///data?socket={}", socket.display());
    let commands = [
        "write -P 0xaa 0 16M",
        "discard 4M 4M",
        "write -z 9M 512k",
        "write -P 0xbb 512 512",
        "write -P 0xcc 16773632 1536",
        "flush",
        "read -P 0 4M 4M",
        "read -P 0 9M 512k",
        "read -P 0xaa 0 512",
        "read -P 0xbb 512 512",
        "read -P 0xaa 1024 1024",
        "read -P 0xcc 16773632 1536",
        "read -P 0 32M 1M",
    ];
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    let said = run("qemu-io", &args)?;
    ensure!(!said.contains("failed") && !said.contains("verification"), "{said}");
    playground.stop()
}

#[test]
fn a_file_system_on_the_attached_device_checks_clean_and_grows() -> Result<()> {
    let directory = Directory::create("attach")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "128Mi"])?;
    let state = directory.path.join("agent");
    let state = state.to_str().context("path")?;
    let attach = || playground.curve(&["volume", "attach", "data", "--state-dir", state]);
    let device = attach()?.trim().to_owned();
    ensure!(attach()?.trim() == device, "a second attach is the first");
    run("mkfs.ext4", &["-q", &device])?;
    let mount_point = directory.path.join("fs");
    std::fs::create_dir_all(&mount_point)?;
    let at = mount_point.to_str().context("path")?;
    run("mount", &["-o", "discard", &device, at])?;
    let worked = work_on(&mount_point, &playground, state);
    run("umount", &[at])?;
    worked?;
    run("fsck.ext4", &["-fn", &device])?;
    // Unmounted: growing a mounted ext4 needs CAP_SYS_RESOURCE, which containers rarely have.
    run("fsck.ext4", &["-fp", &device])?;
    run("resize2fs", &[&device])?;
    let detach = || playground.curve(&["volume", "detach", "data", "--state-dir", state]);
    detach()?;
    ensure!(detach().is_err(), "a second detach says that nothing is attached");

    let device = attach()?.trim().to_owned();
    run("fsck.ext4", &["-fn", &device])?;
    run("mount", &["-o", "ro", &device, at])?;
    let kept = std::fs::read(mount_point.join("kept"));
    run("umount", &[at])?;
    ensure!(kept? == std::fs::read(directory.path.join("original"))?, "the file has changed");
    detach()?;
    playground.stop()
}

fn work_on(mount_point: &Path, playground: &Playground, state: &str) -> Result<()> {
    let original = mount_point.parent().context("parent")?.join("original");
    let bytes = image(&original, 24 * MIB)?;
    std::fs::write(mount_point.join("kept"), &bytes)?;
    std::fs::write(mount_point.join("removed"), &bytes)?;
    std::fs::remove_file(mount_point.join("removed"))?;
    run("sync", &["-f", mount_point.to_str().context("path")?])?;
    let busy = playground.curve(&["volume", "detach", "data", "--state-dir", state]);
    let busy = busy.expect_err("it is mounted").to_string();
    ensure!(busy.contains("in use"), "{busy}");
    let resize = ["volume", "resize", "data", "--size", "192Mi", "--state-dir", state];
    playground.curve(&resize)?;
    let device = run("findmnt", &["-no", "SOURCE", mount_point.to_str().context("path")?])?;
    let device = device.trim();
    let size = run("blockdev", &["--getsize64", device])?;
    ensure!(size.trim() == (192 * MIB).to_string(), "{device} has {size} bytes");
    Ok(())
}

#[test]
fn a_newer_export_fences_the_older_one() -> Result<()> {
    let directory = Directory::create("fence")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "16Mi"])?;
    let sockets = [directory.path.join("old.sock"), directory.path.join("new.sock")];
    let old = playground.export("data", &sockets[0])?;
    let uri = |at: usize| format!("nbd+unix:///?socket={}", sockets[at].display());
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 64k", &uri(0)])?;
    // The same node replaces its own session; the older process must notice by itself.
    let _new = playground.export("data", &sockets[1])?;
    run("qemu-io", &["-f", "raw", "-c", "write -P 2 0 64k", &uri(1)])?;
    let late = run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 64k", &uri(0)]);
    ensure!(late.map_or(true, |said| said.contains("failed")), "a fenced write was accepted");
    let said = run("qemu-io", &["-f", "raw", "-c", "read -P 2 0 64k", &uri(1)])?;
    ensure!(!said.contains("verification failed"), "a fenced write changed the volume: {said}");
    let pid = old.pid();
    curve_e2e::wait::until("the fenced export to end", Duration::from_secs(20), || {
        let gone = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_or(true, |stat| stat.contains(") Z "));
        if gone { Ok(()) } else { Err("it still runs".to_owned()) }
    })?;
    playground.stop()
}

#[test]
fn schedulers_pause_and_resume_on_command() -> Result<()> {
    let directory = Directory::create("pause")?;
    let playground = Playground::start_small(&directory)?;
    playground.curve(&["scheduler", "pause", "repair"])?;
    let status = playground.curve(&["status"])?;
    ensure!(status.contains("HEALTH_WARN: repair paused by command"), "{status}");
    let listed = playground.curve(&["scheduler", "list"])?;
    ensure!(listed.contains("repair   paused") && listed.contains("balance  running"), "{listed}");
    let refused = playground.curve(&["scheduler", "pause", "compaction"]);
    let said = format!("{:#}", refused.err().context("an unknown scheduler was paused")?);
    ensure!(said.contains("[possible values: repair, balance, leaders, scrub]"), "{said}");
    playground.curve(&["scheduler", "resume"])?;
    playground.wait_healthy(Duration::from_secs(10))?;
    playground.stop()
}
