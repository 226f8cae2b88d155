//! Snapshots of a playground's volumes: they keep what was there, clones and rollback bring it back.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use curve_client::{AttachOptions, BlockDevice, ClientConfig, MdsClient, Volume, VolumeBy};
use curve_e2e::playground::{Directory, Playground, Running, run};
use serde_json::Value;

const CHUNK: u64 = 4 << 20;

struct Scene {
    directory: Directory,
    playground: Playground,
}

impl Scene {
    fn start(name: &str) -> Result<Self> {
        let directory = Directory::create(name)?;
        let playground = Playground::start_small(&directory)?;
        Ok(Self { directory, playground })
    }

    fn socket(&self, volume: &str) -> PathBuf {
        self.directory.path.join(format!("{}.sock", volume.replace('@', "-")))
    }

    fn export(&self, volume: &str, args: &[&str]) -> Result<Running> {
        self.playground.export_with(volume, &self.socket(volume), args)
    }

    /// Runs qemu-io's commands on what is exported.
    fn io(&self, volume: &str, commands: &[&str]) -> Result<()> {
        let uri = format!("nbd+unix:///{volume}?socket={}", self.socket(volume).display());
        let mut args = vec!["-f", "raw", "-d", "unmap"];
        // A snapshot is served without the right to write.
        if volume.contains('@') {
            args.push("-r");
        }
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(&uri);
        let said = run("qemu-io", &args)?;
        ensure!(!said.contains("failed"), "{volume}: {said}");
        Ok(())
    }

    /// Exports a volume for as long as these commands take.
    fn once(&self, volume: &str, commands: &[&str]) -> Result<()> {
        let args: &[&str] = if volume.contains('@') { &["--read-only"] } else { &[] };
        let mut export = self.export(volume, args)?;
        self.io(volume, commands)?;
        export.stop()
    }

    fn refused(&self, args: &[&str], words: &str) -> Result<()> {
        let said = match self.playground.curve(args) {
            Ok(_) => anyhow::bail!("curve {} was not refused", args.join(" ")),
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains(words), "curve {}: {said}", args.join(" "));
        Ok(())
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let said = self.playground.curve(&[args, &["-o", "json"][..]].concat())?;
        serde_json::from_str(&said).context("parse JSON")
    }
}

#[test]
fn a_snapshot_keeps_what_was_there_and_a_clone_and_a_rollback_bring_it_back() -> Result<()> {
    let scene = Scene::start("snap")?;
    let curve = |args: &[&str]| scene.playground.curve(args);
    curve(&["volume", "create", "data", "--size", "64Mi"])?;
    let mut export = scene.export("data", &[])?;
    scene.io("data", &["write -P 0xaa 0 16M", "write -P 0xab 32M 4k"])?;
    // While it is attached.
    curve(&["volume", "snapshot", "create", "data@one"])?;
    scene.io("data", &["write -P 0xbb 4M 8M", "write -P 0xbc 0 512", "discard 32M 4k"])?;
    let before = ["read -P 0xaa 0 16M", "read -P 0xab 32M 4k", "read -P 0 48M 1M"];
    let after = ["read -P 0xbc 0 512", "read -P 0xbb 4M 8M", "read -P 0xaa 12M 4M"];
    scene.once("data@one", &before)?;
    scene.io("data", &after)?;
    let rollback = ["volume", "rollback", "data@one"];
    scene.refused(&rollback, "is attached on")?;
    export.stop()?;

    curve(&["volume", "snapshot", "create", "data@two"])?;
    let changes = |args: &[&str]| -> Result<Vec<[u64; 2]>> {
        let listed = scene.json(&[&["volume", "snapshot", "changes"], args].concat())?;
        let number = |value: &Value| value.as_u64().context("a number");
        let ranges = listed.as_array().context("ranges")?.iter();
        ranges.map(|range| Ok([number(&range["offset"])?, number(&range["length"])?])).collect()
    };
    let mib = |n: u64| n << 20;
    let since_one = changes(&["data@two", "--since", "data@one"])?;
    ensure!(since_one == [[0, 4096], [mib(4), mib(8)], [mib(32), 4096]], "{since_one:?}");
    let held = changes(&["data@one"])?;
    ensure!(held == [[0, mib(16)], [mib(32), 4096]], "{held:?}");
    curve(&["volume", "snapshot", "delete", "data@two"])?;

    curve(&["volume", "create", "copy", "--from", "data@one", "--size", "96Mi"])?;
    scene.once("copy", &before)?;
    scene.once("copy", &["write -P 0xcc 0 1M", "write -P 0xcd 80M 1M", "read -P 0xcd 80M 1M"])?;
    // None of them sees what is written to another.
    scene.once("data", &after)?;
    scene.once("data@one", &before)?;

    curve(&rollback)?;
    scene.once("data", &before)?;
    scene.once("data", &["write -P 0xdd 0 64M"])?;
    scene.once("data@one", &before)?;

    // Nothing depends on what it came from.
    curve(&["volume", "delete", "data"])?;
    scene.once("data@one", &before)?;
    curve(&["volume", "snapshot", "delete", "data@one"])?;
    scene.once("copy", &["read -P 0xcc 0 1M", "read -P 0xaa 1M 15M", "read -P 0xab 32M 4k"])?;
    scene.playground.stop()
}

#[test]
fn snapshots_are_kept_over_the_death_of_every_process() -> Result<()> {
    let scene = Scene::start("snapkill")?;
    let curve = |args: &[&str]| scene.playground.curve(args);
    curve(&["volume", "create", "data", "--size", "64Mi"])?;
    scene.once("data", &["write -P 1 0 8M"])?;
    curve(&["volume", "snapshot", "create", "data@one"])?;
    scene.once("data", &["write -P 2 2M 4M"])?;
    curve(&["volume", "create", "copy", "--from", "data@one"])?;
    scene.once("copy", &["write -P 3 6M 1M"])?;
    let Scene { directory, playground } = scene;
    playground.kill_all()?;
    let playground = Playground::start_small(&directory)?;
    let scene = Scene { directory, playground };
    scene.once("data", &["read -P 1 0 2M", "read -P 2 2M 4M", "read -P 1 6M 2M"])?;
    scene.once("data@one", &["read -P 1 0 8M", "read -P 0 8M 8M"])?;
    scene.once("copy", &["read -P 1 0 6M", "read -P 3 6M 1M", "read -P 1 7M 1M"])?;
    scene.playground.stop()
}

#[test]
fn the_command_line_says_what_can_be_done_with_a_snapshot() -> Result<()> {
    let scene = Scene::start("snapcli")?;
    let curve = |args: &[&str]| scene.playground.curve(args);
    for volume in ["db", "wal"] {
        curve(&["volume", "create", volume, "--size", "16Mi"])?;
    }
    let create = ["volume", "snapshot", "create", "db@n", "wal@n"];
    curve(&create)?;
    curve(&create)?;
    let listed = scene.json(&["volume", "snapshot", "list"])?;
    let names: Vec<&str> =
        listed.as_array().into_iter().flatten().filter_map(|each| each["name"].as_str()).collect();
    ensure!(names == ["db@n", "wal@n"], "{listed}");
    ensure!(listed[0]["ready"] == true && listed[0]["volume"] == "db", "{listed}");
    let of_one = scene.json(&["volume", "snapshot", "list", "wal"])?;
    ensure!(of_one.as_array().is_some_and(|all| all.len() == 1), "{of_one}");
    let volumes = curve(&["volume", "list"])?;
    ensure!(volumes.contains("SNAPSHOTS") && !volumes.contains("db@n"), "{volumes}");
    let shown = curve(&["volume", "show", "db"])?;
    ensure!(shown.contains("snapshots    db@n"), "{shown}");

    let socket = format!("unix:{}", scene.socket("db@n").display());
    let export = ["volume", "export", "db@n", "--nbd", &socket];
    scene.refused(&export, "use it read-only, or make a volume from it")?;
    scene.refused(&["volume", "delete", "db@n"], "curve volume snapshot delete db@n")?;
    scene.refused(&["volume", "snapshot", "delete", "db"], "expected VOLUME@SNAPSHOT")?;
    scene.refused(&["volume", "resize", "db@n", "--size", "32Mi"], "keeps its size")?;
    scene.refused(
        &["volume", "create", "x", "--from", "db@n", "--size", "1Mi"],
        "at least 16 MiB",
    )?;
    scene.refused(&["volume", "create", "x"], "--size")?;
    scene.refused(&["volume", "snapshot", "create", "no@n"], "volume \"no\" does not exist")?;
    curve(&["volume", "snapshot", "delete", "db@n"])?;
    curve(&["volume", "snapshot", "delete", "db@n"])?;
    scene.playground.stop()
}

/// Places of a cut: in the first chunks of both volumes, which lie in different copysets.
const PLACES: u64 = 8;

/// One writer, one write after the other, each with a number of its own.
async fn count(volumes: [Volume; 2], stop: Arc<AtomicBool>) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for number in 1.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let place = number % PLACES;
        let mut data = vec![0; 4096];
        data[..8].copy_from_slice(&number.to_le_bytes());
        let began = Instant::now();
        volumes[(place % 2) as usize].write(place / 2 * CHUNK, data.into()).await?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

async fn open(mds: &MdsClient, name: &str, read_only: bool) -> Result<Volume> {
    let options = AttachOptions { node: "test".into(), read_only, ..AttachOptions::default() };
    let session = mds.attach(name, &options).await?;
    Ok(Volume::open(mds.clone(), session).await?)
}

/// A write that began after another was acknowledged is in no snapshot without that other.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_several_volumes_are_of_one_moment() -> Result<()> {
    let scene = Scene::start("snapcut")?;
    for volume in ["a", "b"] {
        scene.playground.curve(&["volume", "create", volume, "--size", "16Mi"])?;
    }
    let config = ClientConfig::load(&scene.playground.config())?;
    let mds = MdsClient::connect(&config.mds, &config.identity()?)?;
    let volumes = [open(&mds, "a", false).await?, open(&mds, "b", false).await?];
    let stop = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count(volumes.clone(), stop.clone()));
    let mut last = 0;
    for round in 0..12 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let name = format!("n{round}");
        let wanted = ["a", "b"].map(|volume| (VolumeBy::Name(volume.into()), name.clone()));
        mds.create_snapshots(wanted).await?;
        let mut found = [0; PLACES as usize];
        for (at, volume) in ["a", "b"].iter().enumerate() {
            let snapshot = open(&mds, &format!("{volume}@{name}"), true).await?;
            for place in (at as u64..PLACES).step_by(2) {
                let data = snapshot.read(place / 2 * CHUNK, 8).await?;
                found[place as usize] = u64::from_le_bytes(data[..].try_into()?);
            }
            snapshot.close();
        }
        let newest = found.iter().copied().max().unwrap_or(0);
        for (place, number) in (0..).zip(found) {
            let expected = newest - (newest + PLACES - place) % PLACES;
            ensure!(number == expected, "round {round}: {found:?} is no cut: {number} at {place}");
        }
        ensure!(newest > last.max(PLACES), "round {round}: nothing was written since {last}");
        last = newest;
    }
    stop.store(true, Ordering::SeqCst);
    let longest = counting.await??;
    println!("{last} writes, the longest took {longest:?}");
    ensure!(longest < Duration::from_secs(3), "a snapshot held a write up for {longest:?}");
    volumes.iter().for_each(Volume::close);
    scene.playground.stop()
}
