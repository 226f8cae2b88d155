//! `cargo xtask bench block`: a volume of a playground with three chunkservers, through the NBD
//! socket, interleaved with fio on a raw preallocated file beside it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::Pid;

use super::cpu;
use super::fio::{self, Target, Work};
use super::neighbours;
use super::report::{Round, Row, head};

const WORKS: [Work; 6] = [
    Work::new("4k write QD1", "randwrite", "4k", 1).synced(),
    Work::new("4k write QD32", "randwrite", "4k", 32),
    Work::new("4k read QD1", "randread", "4k", 1),
    Work::new("4k read QD32", "randread", "4k", 32),
    Work::new("1M write QD8", "write", "1M", 8),
    Work::new("1M read QD8", "read", "1M", 8),
];

/// What is measured, and how long.
pub struct Options {
    /// Where playground and raw file live: must be a real disk.
    pub dir: PathBuf,
    pub rounds: u32,
    pub seconds: u32,
    pub volume_size: u64,
    pub json: Option<PathBuf>,
    /// The `curve` binary to measure.
    pub curve: PathBuf,
}

/// Measures and prints; the JSON file gets every round.
pub fn run(mut options: Options) -> Result<()> {
    let scratch = Scratch::create(&options.dir)?;
    options.dir.clone_from(&scratch.0);
    let options = &options;
    refuse_memory(&options.dir)?;
    let raw = options.dir.join("raw.img");
    preallocate(&raw, options.volume_size)?;
    let playground = Playground::start(options)?;
    let socket = options.dir.join("bench.sock");
    let export = playground.export("bench", options.volume_size, &socket)?;
    println!("filling the volume once, so that reads find data");
    fill(options, &socket)?;

    println!("{}", head());
    let mut rows = Vec::new();
    for work in WORKS {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            rounds.push(round(&work, options, &raw, &socket, &playground, &export)?);
        }
        let row = Row::new(work, rounds);
        println!("{}", row.line());
        rows.push(row);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_vec_pretty(&rows).context("encode the report")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    neighbours::measure(options, &playground, &socket)?;
    drop((export, playground));
    Ok(())
}

/// A directory of this run alone, removed however it ends: the one it is made in is the user's.
struct Scratch(PathBuf);

impl Scratch {
    fn create(within: &Path) -> Result<Self> {
        let path = within.join(format!("curve-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes every block of the volume once.
pub(super) fn fill(options: &Options, socket: &Path) -> Result<()> {
    let fill = Work::new("fill", "write", "1M", 8);
    fio::run(&fill, &Target::Nbd(socket), options.volume_size, fill_seconds(options))?;
    Ok(())
}

/// Long enough to write every block once at a tenth of a slow disk's speed.
fn fill_seconds(options: &Options) -> u32 {
    ((options.volume_size >> 20) / 50).clamp(5, 120) as u32
}

fn round(
    work: &Work,
    options: &Options,
    raw: &Path,
    socket: &Path,
    playground: &Playground,
    export: &Running,
) -> Result<Round> {
    let raw_file = Target::RawFile(raw);
    let raw = fio::run(work, &raw_file, options.volume_size, options.seconds)?;
    let mut pids = cpu::family(playground.process.0.id());
    pids.extend(cpu::family(export.0.id()));
    let before = cpu::total_us(&pids)?;
    let curve = fio::run(work, &Target::Nbd(socket), options.volume_size, options.seconds)?;
    let cpu_us_per_io = (cpu::total_us(&pids)? - before) / curve.ios;
    Ok(Round { raw, curve, cpu_us_per_io })
}

fn refuse_memory(dir: &Path) -> Result<()> {
    let stats = statfs(dir).with_context(|| format!("statfs {}", dir.display()))?;
    ensure!(
        stats.filesystem_type() != TMPFS_MAGIC,
        "{} lies on tmpfs, which has no disk to measure: pass --dir on a real disk",
        dir.display()
    );
    Ok(())
}

/// Writes the raw file once, so that no later write allocates.
fn preallocate(path: &Path, size: u64) -> Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let chunk = vec![0x5a; 4 << 20];
    for _ in 0..size / chunk.len() as u64 {
        file.write_all(&chunk).with_context(|| format!("write {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// A child that is asked to stop, and then waited for, when dropped.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

pub(super) struct Playground {
    process: Running,
    curve: PathBuf,
    config: PathBuf,
}

impl Playground {
    fn start(options: &Options) -> Result<Self> {
        let dir = options.dir.join("playground");
        // Room for the volume, the log and checkpoints, and blocks that wait to be reused.
        let device_size = (options.volume_size * 3).max(1 << 30).to_string();
        let mut child = Command::new(&options.curve)
            .args(["playground", "start", "--mds", "1", "--chunkservers", "3"])
            .args(["--device-size", &device_size, "--dir"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", options.curve.display()))?;
        let stdout = child.stdout.take().context("the playground's stdout")?;
        let process = Running(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("read from the playground")?;
        ensure!(line.contains("\"ready\":true"), "the playground did not become ready: {line}");
        Ok(Self { process, curve: options.curve.clone(), config: dir.join("client.toml") })
    }

    pub(super) fn export(&self, volume: &str, size: u64, socket: &Path) -> Result<Running> {
        let created = Command::new(&self.curve)
            .args(["volume", "create", volume, "--size", &size.to_string(), "--config"])
            .arg(&self.config)
            .output()
            .context("create the volume")?;
        ensure!(
            created.status.success(),
            "create the volume: {}",
            String::from_utf8_lossy(&created.stderr)
        );
        let export = Command::new(&self.curve)
            .args(["volume", "export", volume, "--config"])
            .arg(&self.config)
            .arg("--nbd")
            .arg(format!("unix:{}", socket.display()))
            .stdout(Stdio::null())
            .spawn()
            .context("export the volume")?;
        let mut export = Running(export);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            if let Some(status) = export.0.try_wait()? {
                bail!("the export ended with {status}");
            }
            ensure!(Instant::now() < deadline, "no NBD socket after 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(export)
    }
}
