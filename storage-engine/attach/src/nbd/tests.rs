//! The server against real peers (nbdinfo, nbdcopy, qemu-img, fio) and against bytes on a socket.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use curve_client::BlockDevice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::NbdServer;
use super::protocol::{
    CMD_DISC, CMD_READ, CMD_WRITE, HANDSHAKE_FIXED_NEWSTYLE, MAGIC_OPTION, MAGIC_REQUEST,
    OPT_EXPORT_NAME,
};
use crate::memory::MemoryDevice;

const MIB: u64 = 1 << 20;

struct Running {
    device: Arc<MemoryDevice>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Running {
    fn start(size: u64) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let device = Arc::new(MemoryDevice::new(size));
        let stop = CancellationToken::new();
        let server = NbdServer::bind(&dir.path().join("nbd.sock")).expect("bind");
        let served: Arc<dyn BlockDevice> = device.clone();
        let server = tokio::spawn(server.serve(served, "data".into(), stop.clone()));
        Self { device, stop, server, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///data?socket={}", self.socket().display())
    }

    /// Connects and enters transmission by the old way, with simple replies.
    async fn client(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.expect("connect");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.expect("greeting");
        let mut hello = u32::from(HANDSHAKE_FIXED_NEWSTYLE).to_be_bytes().to_vec();
        hello.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
        hello.extend_from_slice(&OPT_EXPORT_NAME.to_be_bytes());
        hello.extend_from_slice(&0u32.to_be_bytes());
        stream.write_all(&hello).await.expect("hello");
        let mut export = [0; 134];
        stream.read_exact(&mut export).await.expect("export");
        stream
    }
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut out = MAGIC_REQUEST.to_be_bytes().to_vec();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out
}

/// (errno, cookie) of a simple reply.
async fn simple_reply(stream: &mut UnixStream) -> (u32, u64) {
    let mut raw = [0; 16];
    stream.read_exact(&mut raw).await.expect("reply");
    let errno = u32::from_be_bytes(raw[4..8].try_into().expect("4 bytes"));
    (errno, u64::from_be_bytes(raw[8..].try_into().expect("8 bytes")))
}

async fn run(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args);
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.expect("join").unwrap_or_else(|e| panic!("start {program}: {e}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

fn pattern_file(path: &Path, size: u64) -> Vec<u8> {
    let bytes: Vec<u8> = (0..size / 8).flat_map(|i| (i * 0x9e37_79b9).to_le_bytes()).collect();
    std::fs::write(path, &bytes).expect("write");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_size_name_and_abilities() {
    let running = Running::start(64 * MIB);
    let text = run("nbdinfo", &["--json", &running.uri()]).await;
    for wanted in [
        "\"export-size\": 67108864",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_multi_conn\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"block_size_minimum\": 512",
        "\"block_size_preferred\": 4096",
    ] {
        assert!(text.contains(wanted), "no {wanted} in {text}");
    }
    let list = format!("nbd+unix:///?socket={}", running.socket().display());
    assert!(run("nbdinfo", &["--list", &list]).await.contains("data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_and_qemu_img_find_what_was_copied_in() {
    let running = Running::start(64 * MIB);
    let source = running.dir.path().join("source");
    let bytes = pattern_file(&source, 64 * MIB);
    let source = source.to_str().expect("path");
    run("nbdcopy", &["--connections=4", source, &running.uri()]).await;
    assert!(running.device.contents() == bytes, "nbdcopy wrote something else");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &running.uri()]).await;
    let copy = running.dir.path().join("copy");
    run("nbdcopy", &["--connections=4", &running.uri(), copy.to_str().expect("path")]).await;
    assert!(std::fs::read(&copy).expect("read") == bytes, "nbdcopy read something else");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_trims_zeroes_and_flushes() {
    let running = Running::start(16 * MIB);
    let commands =
        ["write -P 0xaa 0 1M", "discard 64k 64k", "write -z 256k 4k", "write -f 512 512", "flush"];
    let uri = running.uri();
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push(&uri);
    let text = run("qemu-io", &args).await;
    assert!(!text.contains("failed"), "{text}");
    let found = running.device.contents();
    assert!(found[..512].iter().all(|b| *b == 0xaa));
    assert!(found[65536..131_072].iter().all(|b| *b == 0));
    assert!(found[262_144..266_240].iter().all(|b| *b == 0));
    assert_eq!(found[266_240], 0xaa);
    assert_eq!(running.device.discarded.load(Ordering::SeqCst), 65536);
    assert!(running.device.flushes.load(Ordering::SeqCst) >= 2, "FUA and flush reach the device");
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_a_deep_queue() {
    let running = Running::start(32 * MIB);
    let uri = format!("--uri=nbd+unix:///?socket={}", running.socket().display());
    let args = [
        "--name=t",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=64",
        "--size=32M",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    run("fio", &args).await;
}

#[tokio::test]
async fn a_slow_read_does_not_hold_up_the_replies_behind_it() {
    let running = Running::start(MIB);
    running.device.first_block_delay_ms.store(300, Ordering::SeqCst);
    let mut client = running.client().await;
    let mut both = request(CMD_READ, 1, 0, 512);
    both.extend(request(CMD_READ, 2, 4096, 512));
    client.write_all(&both).await.expect("send");
    let mut data = [0; 512];
    assert_eq!(simple_reply(&mut client).await, (0, 2));
    client.read_exact(&mut data).await.expect("data");
    assert_eq!(simple_reply(&mut client).await, (0, 1));
}

#[tokio::test]
async fn a_refused_write_leaves_the_connection_in_step() {
    let running = Running::start(MIB);
    let mut client = running.client().await;
    let mut bytes = request(CMD_WRITE, 1, MIB, 4096);
    bytes.extend([1; 4096]);
    bytes.extend(request(CMD_WRITE, 2, 4096, 512));
    bytes.extend([2; 512]);
    client.write_all(&bytes).await.expect("send");
    let mut replies = [simple_reply(&mut client).await, simple_reply(&mut client).await];
    replies.sort_by_key(|reply| reply.1);
    assert_eq!(replies, [(28, 1), (0, 2)]);
    assert_eq!(running.device.contents()[4096..4608], [2; 512]);
}

#[tokio::test]
async fn a_fenced_volume_answers_eio() {
    let running = Running::start(MIB);
    running.device.fenced.store(true, Ordering::SeqCst);
    let mut client = running.client().await;
    client.write_all(&request(CMD_READ, 9, 0, 512)).await.expect("send");
    assert_eq!(simple_reply(&mut client).await, (5, 9));
}

#[tokio::test]
async fn garbage_ends_the_connection_and_disturbs_nobody_else() {
    let running = Running::start(MIB);
    let mut bystander = running.client().await;
    let mut in_handshake = UnixStream::connect(running.socket()).await.expect("connect");
    in_handshake.write_all(&[0xff; 4096]).await.expect("send");
    let mut in_transmission = running.client().await;
    in_transmission.write_all(&[0xff; 4096]).await.expect("send");
    let mut huge = running.client().await;
    huge.write_all(&request(CMD_WRITE, 1, 0, u32::MAX)).await.expect("send");
    for stream in [&mut in_handshake, &mut in_transmission, &mut huge] {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest));
        // A reset is an end, too: the server did not read what it refused.
        let _ = end.await.expect("closed");
    }
    bystander.write_all(&request(CMD_READ, 5, 0, 512)).await.expect("send");
    assert_eq!(simple_reply(&mut bystander).await, (0, 5));
}

#[tokio::test]
async fn a_stop_answers_what_was_accepted_and_removes_the_socket() {
    let running = Running::start(MIB);
    running.device.first_block_delay_ms.store(200, Ordering::SeqCst);
    let mut client = running.client().await;
    client.write_all(&request(CMD_READ, 1, 0, 512)).await.expect("send");
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.stop.cancel();
    assert_eq!(simple_reply(&mut client).await, (0, 1));
    let socket = running.socket();
    running.server.await.expect("join");
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_client_that_leaves_politely_gets_its_replies_first() {
    let running = Running::start(MIB);
    let mut client = running.client().await;
    let mut bytes = request(CMD_READ, 1, 4096, 512);
    bytes.extend(request(CMD_DISC, 2, 0, 0));
    client.write_all(&bytes).await.expect("send");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("read");
    assert_eq!(rest.len(), 16 + 512);
}
