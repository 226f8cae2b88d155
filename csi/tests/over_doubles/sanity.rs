//! csi-sanity against the driver over doubles: the whole protocol in seconds. The same suite over
//! the real engine is `e2e/tests/csi_sanity.rs`.

use std::path::PathBuf;

use crate::doubles::{CLUSTER, Driver, require_root};

/// csi-test 5.4.0 waits for the state of its connection to change. One that is ready before it
/// looks does not change, and the suite gives up after a minute (`Connect` in its grpcutil.go):
/// such a run says nothing of the driver, and is repeated.
const MISSED_ITS_CONNECTION: &str = "Connection timed out";
const ATTEMPTS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_finds_no_fault_with_mounted_volumes() {
    run("mount").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_finds_no_fault_with_raw_volumes() {
    run("block").await;
}

async fn run(access_type: &str) {
    require_root();
    let driver = Driver::start();
    let parameters = driver.path("parameters.yaml");
    std::fs::write(&parameters, format!("cluster: {CLUSTER}\n")).expect("write");
    let mut suite = tokio::process::Command::new(csi_sanity());
    suite
        .arg(format!("--csi.endpoint=unix://{}", driver.path("node.sock")))
        .arg(format!("--csi.controllerendpoint=unix://{}", driver.path("controller.sock")))
        .arg(format!("--csi.mountdir={}", driver.path("mount")))
        .arg(format!("--csi.stagingdir={}", driver.path("staging")))
        .arg(format!("--csi.testvolumeaccesstype={access_type}"))
        .arg(format!("--csi.testvolumesize={}", 64 << 20))
        .arg(format!("--csi.testvolumeexpandsize={}", 128 << 20))
        .arg(format!("--csi.testvolumeparameters={parameters}"))
        .args(["--csi.testnodevolumeattachlimit", "--ginkgo.no-color"]);
    let mut attempt = 1;
    let (status, text) = loop {
        let output = suite.output().await.expect("csi-sanity runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if attempt == ATTEMPTS || !text.contains(MISSED_ITS_CONNECTION) {
            break (output.status, text);
        }
        attempt += 1;
    };
    assert!(status.success(), "{text}");
    println!("{access_type}: {}", text.lines().rev().find(|l| l.contains("Passed")).unwrap_or(""));
}

/// The suite's binary, which `cargo xtask test` builds once.
fn csi_sanity() -> PathBuf {
    let named = std::env::var_os("CURVE_CSI_SANITY");
    named.map(PathBuf::from).expect("run `cargo xtask test unit`, which sets CURVE_CSI_SANITY")
}
