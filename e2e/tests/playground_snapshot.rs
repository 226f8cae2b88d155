//! Snapshots of a playground's volumes: they keep what was there, clones and rollback bring it back.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use curve_e2e::playground::{Directory, Playground, Running, run};
use serde_json::Value;

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
