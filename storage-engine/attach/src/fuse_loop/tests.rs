//! On a real FUSE mount and loop device; needs root, as the agent does.

use std::process::Command;
use std::sync::atomic::Ordering;

use super::*;
use crate::memory::MemoryDevice;

const MIB: u64 = 1 << 20;

struct Attached {
    device: Arc<MemoryDevice>,
    front: FuseLoop,
    dir: tempfile::TempDir,
    /// Serves the FUSE file while the test's thread blocks on it.
    _runtime: tokio::runtime::Runtime,
}

fn attach(size: u64, name: &str) -> Attached {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let dir = tempfile::tempdir().expect("directory");
    let device = Arc::new(MemoryDevice::new(size));
    let name = format!("{name}-{}", std::process::id());
    let mount_point = dir.path().join("mount");
    let handle = runtime.handle().clone();
    let forget = |_: &Path| Ok::<(), FuseLoopError>(());
    let front = FuseLoop::attach(device.clone(), &mount_point, &name, handle, forget);
    let front = front.expect("attach");
    Attached { device, front, dir, _runtime: runtime }
}

impl Attached {
    fn node(&self) -> String {
        self.front.path().to_str().expect("path").to_owned()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.front.detach();
    }
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().expect(program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{program} {args:?}: {text}{errors}"))
    }
}

#[test]
fn a_file_system_lives_on_the_device_and_checks_clean() {
    let mut attached = attach(128 * MIB, "fs");
    let node = attached.node();
    run("mkfs.ext4", &["-q", "-E", "nodiscard", &node]).expect("mkfs");
    let at = attached.dir.path().join("fs");
    std::fs::create_dir(&at).expect("mkdir");
    let at_text = at.to_str().expect("path");
    run("mount", &[&node, at_text]).expect("mount");
    let bytes: Vec<u8> = (0..20 * MIB / 8).flat_map(|i| (i * 77).to_le_bytes()).collect();
    std::fs::write(at.join("a"), &bytes).expect("write");
    std::fs::write(at.join("b"), &bytes).expect("write");
    std::fs::remove_file(at.join("b")).expect("remove");
    assert!(matches!(attached.front.detach(), Err(FuseLoopError::Busy { .. })), "it is mounted");
    run("fstrim", &[at_text]).expect("fstrim");
    run("umount", &[at_text]).expect("umount");
    assert!(attached.device.discarded.load(Ordering::SeqCst) > 0, "trim reaches the device");
    assert!(attached.device.flushes.load(Ordering::SeqCst) > 0, "flush reaches the device");
    run("fsck.ext4", &["-fn", &node]).expect("fsck");
    run("mount", &["-o", "ro", &node, at_text]).expect("mount again");
    assert!(std::fs::read(at.join("a")).expect("read") == bytes);
    run("umount", &[at_text]).expect("umount");
    attached.front.detach().expect("detach");
    assert!(attached.front.device.backing_name().is_none());
}

#[test]
fn the_device_has_direct_io_and_small_sectors() {
    let attached = attach(16 * MIB, "sectors");
    let node = attached.node();
    let columns = run("losetup", &["-n", "-O", "DIO,LOG-SEC", &node]).expect("losetup");
    assert_eq!(columns.split_ascii_whitespace().collect::<Vec<_>>(), ["1", "512"]);
}

#[test]
fn a_grown_volume_grows_its_device() {
    let attached = attach(16 * MIB, "grow");
    attached.device.grow(48 * MIB);
    attached.front.resize().expect("resize");
    let size = run("blockdev", &["--getsize64", &attached.node()]).expect("blockdev");
    assert_eq!(size.trim(), (48 * MIB).to_string());
}

#[test]
fn a_fenced_volume_fails_io_at_once_and_still_detaches() {
    let mut attached = attach(16 * MIB, "fenced");
    let node = attached.node();
    attached.device.fenced.store(true, Ordering::SeqCst);
    let target = format!("of={node}");
    let written = run("dd", &["if=/dev/zero", &target, "bs=4k", "count=1", "oflag=direct"]);
    assert!(written.expect_err("fenced").contains("Input/output error"));
    attached.front.detach().expect("detach");
}

#[test]
fn fio_verifies_random_writes_through_the_device() {
    let attached = attach(32 * MIB, "fio");
    let filename = format!("--filename={}", attached.node());
    let args = [
        "--name=t",
        "--ioengine=libaio",
        "--direct=1",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--size=32M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        &filename,
    ];
    run("fio", &args).expect("fio");
}

#[test]
fn a_device_that_somebody_has_open_is_busy_and_stays_the_volumes() {
    let mut attached = attach(16 * MIB, "held");
    let holder = std::fs::File::open(attached.node()).expect("open");
    assert!(matches!(attached.front.detach(), Err(FuseLoopError::Busy { .. })), "it is open");
    assert!(attached.front.serves(), "its end waits for the holder");
    drop(holder);
    std::thread::sleep(RELEASE_POLL);
    assert!(attached.front.serves(), "the holder took it along");
    attached.front.detach().expect("detach");
}

#[test]
fn an_end_that_waits_for_the_last_user_is_no_attachment_and_can_be_taken_back() {
    let attached = attach(16 * MIB, "pending");
    let node = attached.node();
    let holder = std::fs::File::open(&node).expect("open");
    run("losetup", &["--detach", &node]).expect("losetup");
    assert!(attached.front.device.backing_name().is_some(), "the holder keeps it");
    assert!(!attached.front.serves());
    assert!(matches!(attached.front.resize(), Err(FuseLoopError::Gone { .. })));
    assert!(attached.front.keep().expect("keep"));
    drop(holder);
    assert!(attached.front.serves());
    let columns = run("losetup", &["-n", "-O", "DIO,AUTOCLEAR", &node]).expect("losetup");
    assert_eq!(columns.split_ascii_whitespace().collect::<Vec<_>>(), ["1", "0"]);
}

#[test]
fn a_device_that_has_become_another_volumes_is_left_alone() {
    let mut stale = attach(16 * MIB, "stale");
    let other = attach(16 * MIB, "other");
    run("losetup", &["--detach", &stale.node()]).expect("losetup");
    // The number is free now, and the other volume gets it.
    stale.front.device = other.front.device.clone();
    assert!(!stale.front.serves());
    assert!(!stale.front.keep().expect("look"));
    assert!(matches!(stale.front.resize(), Err(FuseLoopError::Gone { .. })));
    stale.front.detach().expect("nothing is left to detach");
    assert!(other.front.serves());
}

#[test]
fn what_a_dead_process_left_is_cleaned_up() {
    let mut attached = attach(16 * MIB, "dead");
    let node = PathBuf::from(attached.node());
    let mount_point = attached.dir.path().join("mount");
    let name = format!("dead-{}", std::process::id());
    clean_up(&node, &mount_point, "another-name").expect("not ours");
    // The mount is gone, but a loop device of another name is left alone.
    assert!(attached.front.device.backing_name().is_some());
    clean_up(&node, &mount_point, &name).expect("ours");
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    while attached.front.device.backing_name().is_some() {
        assert!(Instant::now() < deadline, "the loop device is still configured");
        std::thread::sleep(RELEASE_POLL);
    }
    attached.front.detach().expect("nothing is left to detach");
}
