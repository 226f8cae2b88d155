//! kill -9 of processes that a seed chooses, round after round, under two loads that check what they
//! read: nothing acknowledged is lost, no IO fails. `cargo xtask kills` runs many rounds.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use curve_e2e::load::{Load, open, verify};
use curve_e2e::playground::{Directory, Playground};

const HEALED: Duration = Duration::from_secs(90);
/// Acknowledged writes between two rounds, and after what is killed.
const WRITES: u64 = 50;
const ROUNDS: u64 = 6;
const SEED: u64 = 1;

/// What one round kills.
#[derive(Debug)]
enum Victims {
    One(String),
    /// Of each kind one, at once: each has two others.
    Pair(String, String),
    All,
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed chooses the same victims.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// Every sixth round kills all, so that few rounds do as well.
    fn victims(&mut self, round: u64) -> Victims {
        let (mds, chunkserver) =
            (format!("mds-{}", self.below(3)), format!("chunkserver-{}", self.below(3)));
        match self.below(4) {
            _ if round % 6 == 5 => Victims::All,
            0 => Victims::Pair(mds, chunkserver),
            1 => Victims::One(mds),
            _ => Victims::One(chunkserver),
        }
    }
}

fn variable(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |text| {
        text.parse().with_context(|| format!("{name} is {text:?}, expected a number"))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_and_no_io_fails_whatever_is_killed() -> Result<()> {
    let rounds = variable("CURVE_KILL_ROUNDS", ROUNDS)?;
    let seed = variable("CURVE_KILL_SEED", SEED)?;
    let directory = Directory::create("kills")?;
    let mut playground = Playground::start_small(&directory)?;
    playground.curve(&["volume", "create", "data", "--size", "256Mi"])?;
    playground.curve(&["volume", "create", "checked", "--size", "64Mi"])?;
    let socket = directory.path.join("nbd.sock");
    let export = playground.export("checked", &socket)?;
    let fio = fio(&socket)?;
    let volume = open(&playground.config()).await?;
    let load = Load::start(&volume, Arc::default(), false);
    let mut random = Random(seed);
    for round in 0..rounds {
        load.progress(WRITES).await?;
        let victims = random.victims(round);
        println!("seed {seed} round {round}: {victims:?}");
        match &victims {
            Victims::One(name) => playground.kill_child(name)?,
            Victims::Pair(one, other) => {
                playground.kill_child(one)?;
                playground.kill_child(other)?;
            }
            Victims::All => {
                playground.kill_all()?;
                playground = Playground::start(&directory, &[])?;
            }
        }
        let context = || format!("seed {seed} round {round}: {victims:?}");
        load.progress(WRITES).await.with_context(context)?;
        // The next only when all are back: two of three would be one too many.
        let whole = tokio::task::block_in_place(|| playground.wait_healthy(HEALED));
        whole.with_context(context)?;
    }
    let ledger = load.finish().await?;
    verify(&volume, &ledger).await?;
    ensure!(ledger.blocks().len() > 100, "the load wrote too little to prove anything");
    volume.close();
    fio.stop()?;
    drop(export);
    playground.stop()
}

/// fio, which reads back and verifies what it wrote, until it is stopped.
struct Fio(std::process::Child);

fn fio(socket: &std::path::Path) -> Result<Fio> {
    let child = std::process::Command::new("fio")
        .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=4"])
        .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()))
        .args(["--size=64M", "--time_based", "--runtime=1d", "--rate_iops=200"])
        .args(["--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1"])
        .args(["--verify_state_save=0", "--eta=never"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .context("run fio: is it installed?")?;
    Ok(Fio(child))
}

impl Fio {
    /// Ends it as a person would, and demands that nothing went wrong before.
    fn stop(mut self) -> Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "fio ended by itself: {}", self.said()?);
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0.id() as i32),
            nix::sys::signal::Signal::SIGINT,
        )?;
        let said = self.said()?;
        ensure!(said.contains("err= 0"), "fio found: {said}");
        Ok(())
    }

    fn said(&mut self) -> Result<String> {
        use std::io::Read;
        let mut said = String::new();
        self.0.stdout.take().context("fio's stdout")?.read_to_string(&mut said)?;
        self.0.stderr.take().context("fio's stderr")?.read_to_string(&mut said)?;
        self.0.wait()?;
        Ok(said)
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
