//! `cargo xtask test`: every suite in order of cost, one closing line with the totals.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::check::{self, Outcome};
use crate::cluster::Cluster;
use crate::cluster::record::{ClusterLock, LOCK_HELD_ENV};
use crate::command;
use crate::deploy::{self, test_command};
use crate::fuzz;
use crate::packages;
use crate::paths::Paths;
use crate::progress::{Progress, Step, human};
use crate::tools::Tools;
use crate::up;

const E2E_NODES: u8 = 3;
/// Of each fuzz target: finds what is easy to find; `cargo xtask fuzz` takes its time.
const FUZZ_EACH: Duration = Duration::from_secs(10);
/// As many as find what a change breaks; `cargo xtask sim` runs more.
const SIM_SEEDS: u64 = 200;
/// Needs no cluster, so it has a command of its own.
const CSI_SANITY: &str = "csi_sanity";
/// What an end-to-end test's file name starts with.
const E2E_PREFIXES: &[&str] = &["operator_", "csi_", "chaos_"];

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Collects parts until the closing report.
struct Run {
    paths: Paths,
    outcomes: Vec<Outcome>,
    totals: Totals,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    All { cluster: bool },
    Unit,
    CsiSanity,
    EndToEnd { name: Option<String> },
}

/// True if everything passed.
pub fn test(selection: &Selection) -> Result<bool> {
    let mut run =
        Run { paths: Paths::from_env()?, outcomes: Vec::new(), totals: Totals::default() };
    let mut step = Step::new("Debian packages".into());
    let installed = packages::ensure(&mut step);
    step.finish(installed.is_ok());
    installed?;
    match selection {
        Selection::All { cluster } => {
            run.check()?;
            run.unit()?;
            run.fuzz()?;
            run.add(simulate(&run.paths, 1, SIM_SEEDS)?);
            run.playground()?;
            run.csi_sanity()?;
            if *cluster {
                run.end_to_end(None)?;
            }
        }
        Selection::Unit => run.unit()?,
        Selection::CsiSanity => run.csi_sanity()?,
        Selection::EndToEnd { name } => run.end_to_end(name.as_deref())?,
    }
    Ok(run.report())
}

/// The long form of a test that the suite runs few rounds of.
pub fn kills(paths: &Paths, rounds: u64, seed: u64) -> Result<()> {
    let mut cargo = cargo_test_of(paths, "playground_kills");
    cargo.args(["--", "--nocapture"]);
    cargo.env("CURVE_KILL_ROUNDS", rounds.to_string()).env("CURVE_KILL_SEED", seed.to_string());
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "the last round above is the one that failed");
    Ok(())
}

/// Runs the simulator on `seeds` seeds.
pub fn simulate(paths: &Paths, first: u64, seeds: u64) -> Result<Outcome> {
    let mut run = Command::new(build_binaries(paths)?.join(deploy::SIMULATOR));
    run.args(["--first", &first.to_string(), "--seeds", &seeds.to_string()]);
    Ok(check::part(paths, "simulation", &mut run))
}

impl Run {
    fn check(&mut self) -> Result<()> {
        check::check(&self.paths)?.into_iter().for_each(|outcome| self.add(outcome));
        Ok(())
    }

    fn unit(&mut self) -> Result<()> {
        let tools = self.csi_tools()?;
        let mut cargo = test_command(&self.paths);
        cargo.args(["--exclude", "curve-e2e"]);
        // The driver over doubles runs the whole suite; charts are tested with the pinned helm.
        cargo.env("CURVE_CSI_SANITY", tools.csi_sanity());
        cargo.env("CURVE_HELM", tools.helm());
        self.cargo_test("unit and integration", &mut cargo);
        Ok(())
    }

    fn fuzz(&mut self) -> Result<()> {
        let outcomes = fuzz::fuzz(&self.paths, None, FUZZ_EACH)?;
        outcomes.into_iter().for_each(|outcome| self.add(outcome));
        Ok(())
    }

    fn csi_tools(&self) -> Result<Tools> {
        let mut step = Step::new("tools of csi-sanity".into());
        let tools = Tools::ensure(&self.paths, &mut step, &["csi-sanity", "csi-spec", "sidecars"]);
        step.finish(tools.is_ok());
        tools
    }

    /// The engine as processes on loopback, without Kubernetes.
    fn playground(&mut self) -> Result<()> {
        build_binaries(&self.paths)?;
        for target in test_files(&self.paths.repo.join("e2e/tests"), &["playground_"])? {
            let mut cargo = cargo_test_of(&self.paths, &target);
            cargo.args(["--", "--test-threads=1"]);
            self.cargo_test(&target, &mut cargo);
        }
        Ok(())
    }

    fn csi_sanity(&mut self) -> Result<()> {
        build_binaries(&self.paths)?;
        let tools = self.csi_tools()?;
        let mut cargo = cargo_test_of(&self.paths, CSI_SANITY);
        cargo.args(["--", "--nocapture"]).env("CURVE_CSI_SANITY", tools.csi_sanity());
        self.cargo_test("csi-sanity", &mut cargo);
        Ok(())
    }

    fn end_to_end(&mut self, name: Option<&str>) -> Result<()> {
        let files = test_files(&self.paths.repo.join("e2e/tests"), E2E_PREFIXES)?;
        let (targets, filter) = select(&files, name);
        ensure!(!targets.is_empty(), "there are no end-to-end tests in e2e/tests");
        let _lock = ClusterLock::take()?;
        let mut progress = Progress::new(8);
        let ready = up::start_cluster(&self.paths, E2E_NODES, &mut progress).and_then(|cluster| {
            up::deploy_all(&cluster, false, &mut progress)?;
            Ok(cluster)
        });
        let outcome = Outcome {
            name: "cluster with Curve".into(),
            elapsed: progress.elapsed(),
            failure: ready.as_ref().err().map(|error| format!("{error:#}")),
        };
        self.add(outcome);
        if let Ok(cluster) = ready {
            let before = self.totals;
            self.run_on(&cluster, &targets, filter)?;
            if let Some(name) = name
                && self.totals == before
            {
                let failure = Some(format!("no end-to-end test and no file of them has {name:?}"));
                let outcome = Outcome { name: name.into(), elapsed: Duration::ZERO, failure };
                self.add(outcome);
            }
        }
        self.remove_cluster_in_ci()
    }

    /// A machine that only tests should be left as it was found.
    fn remove_cluster_in_ci(&self) -> Result<()> {
        if std::env::var_os("CI").is_some() {
            let mut step = Step::new("removing the cluster".into());
            let removed = Cluster::new(self.paths.clone(), Tools::cached(&self.paths)?)
                .and_then(|cluster| cluster.remove(true));
            step.finish(removed.is_ok());
            removed?;
        }
        Ok(())
    }

    fn run_on(
        &mut self,
        cluster: &Cluster,
        targets: &[String],
        filter: Option<&str>,
    ) -> Result<()> {
        let path = path_with(&cluster.tools.path_entries())?;
        for target in targets {
            let mut cargo = cargo_test_of(&self.paths, target);
            cargo.args(filter).args(["--", "--test-threads=1"]);
            cargo
                .env("PATH", &path)
                .env("KUBECONFIG", cluster.paths.admin_kubeconfig())
                .env(LOCK_HELD_ENV, "1");
            if !self.cargo_test(target, &mut cargo) {
                self.keep_cluster_state(cluster, target);
            }
        }
        Ok(())
    }

    /// What the cluster looked like right after a failure, beside the logs.
    fn keep_cluster_state(&self, cluster: &Cluster, target: &str) {
        let mut text = String::new();
        for args in [
            vec!["get", "nodes,pods,pvc,pv,curveclusters,curvepools", "-A", "-o", "wide"],
            vec!["get", "events", "-A", "--sort-by=.lastTimestamp"],
        ] {
            text.push_str(&command::output(cluster.kubectl().args(&args)).unwrap_or_default());
            text.push('\n');
        }
        let file = self.paths.cache.join("log").join(format!("{target}.cluster.txt"));
        let _ = fs::write(file, text);
    }

    fn cargo_test(&mut self, name: &str, command: &mut Command) -> bool {
        let mut outcome = check::part(&self.paths, name, command);
        let log = check::log_path(&self.paths, name);
        let text = fs::read_to_string(&log).unwrap_or_default();
        let totals = count(&text);
        if outcome.failure.is_some() {
            let failed = failed_tests(&text);
            if !failed.is_empty() {
                outcome.failure = Some(failure_text(&text, &failed, &log));
            }
        }
        self.totals.passed += totals.passed;
        self.totals.skipped += totals.skipped;
        // A suite that did not even build has failed, though it counted nothing.
        let broken = outcome.failure.is_some() && totals.failed == 0;
        self.totals.failed += totals.failed + u64::from(broken);
        let passed = outcome.failure.is_none();
        self.outcomes.push(outcome);
        passed
    }

    /// A part that counts as one test.
    fn add(&mut self, outcome: Outcome) {
        match outcome.failure {
            None => self.totals.passed += 1,
            Some(_) => self.totals.failed += 1,
        }
        self.outcomes.push(outcome);
    }

    fn report(&self) -> bool {
        println!("\n{:<28} {:>12}", "part", "time");
        let mut sum = Duration::ZERO;
        for outcome in &self.outcomes {
            sum += outcome.elapsed;
            let word = if outcome.failure.is_some() { "  FAILED" } else { "" };
            println!("{:<28} {:>12}{word}", outcome.name, human(outcome.elapsed));
        }
        println!("{:<28} {:>12}", "all", human(sum));
        for outcome in &self.outcomes {
            if let Some(failure) = &outcome.failure {
                println!("\n---- {} ----\n{failure}", outcome.name);
            }
        }
        let Totals { passed, failed, skipped } = self.totals;
        if failed > 0 {
            println!(
                "\nlogs: {} and {}",
                self.paths.cache.join("log").display(),
                self.paths.log_dir().display()
            );
        }
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}

fn path_with(entries: &[PathBuf]) -> Result<std::ffi::OsString> {
    let former = std::env::var_os("PATH").unwrap_or_default();
    let all = entries.iter().cloned().chain(std::env::split_paths(&former));
    std::env::join_paths(all).context("join PATH")
}

/// What tests start must be what the source says. Returns the directory that they are in.
fn build_binaries(paths: &Paths) -> Result<PathBuf> {
    let mut step = Step::new("binaries".into());
    let built = deploy::build(paths, false, &mut step);
    step.finish(built.is_ok());
    built
}

fn cargo_test_of(paths: &Paths, target: &str) -> Command {
    let mut cargo = test_command(paths);
    cargo.args(["--test", target]);
    cargo
}

/// The tests in `dir` whose file name starts with one of `prefixes`.
fn test_files(dir: &Path, prefixes: &[&str]) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().strip_suffix(".rs")?.to_string();
            let wanted = prefixes.iter().any(|prefix| name.starts_with(prefix));
            (wanted && name != CSI_SANITY).then_some(name)
        })
        .collect())
}

/// Files whose name holds `name`; if none does, every file, with `name` as the tests' filter.
/// Tests that break nodes come last, so that they disturb nobody.
fn select<'a>(files: &BTreeSet<String>, name: Option<&'a str>) -> (Vec<String>, Option<&'a str>) {
    let mut all: Vec<String> = files.iter().cloned().collect();
    all.sort_by_key(|file| (file.starts_with("chaos_"), file.contains("node"), file.clone()));
    let Some(name) = name else { return (all, None) };
    let matching: Vec<String> = all.iter().filter(|file| file.contains(name)).cloned().collect();
    if matching.is_empty() { (all, Some(name)) } else { (matching, None) }
}

/// Adds up libtest's closing lines: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(text: &str) -> Totals {
    let mut totals = Totals::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let (_, numbers) = line.split_once(". ").unwrap_or_default();
        for part in numbers.split(';') {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => totals.passed += number,
                "failed" => totals.failed += number,
                "ignored" => totals.skipped += number,
                _ => {}
            }
        }
    }
    totals
}

fn failed_tests(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect()
}

/// Each failed test with the end of what it printed.
fn failure_text(text: &str, failed: &[&str], log: &Path) -> String {
    let mut report = format!("full log in {}\n", log.display());
    for test in failed {
        report.push_str(&format!("{test}:\n"));
        let header = format!("---- {test} stdout ----\n");
        if let Some((_, said)) = text.split_once(&header) {
            let said = said.split("\n---- ").next().unwrap_or(said);
            let said = said.split("\n\nfailures:").next().unwrap_or(said);
            // It would push out what failed.
            let said = said.split("\nStack backtrace:\n").next().unwrap_or(said);
            report.push_str(&command::tail(said));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "
running 2 tests
test a ... ok
test b ... FAILED

failures:

---- b stdout ----
Error: left != right

Stack backtrace:
   0: main

failures:
    b

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out
test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out
";

    #[test]
    fn totals_add_up_every_closing_line() {
        assert_eq!(count(LOG), Totals { passed: 6, failed: 1, skipped: 2 });
    }

    #[test]
    fn a_failure_is_shown_with_what_it_printed() {
        let text = failure_text(LOG, &failed_tests(LOG), Path::new("/log"));
        assert!(text.contains("left != right") && text.contains("/log"), "{text}");
        assert!(!text.contains("test result") && !text.contains("main"), "{text}");
    }

    #[test]
    fn node_loss_runs_last_and_a_name_selects_a_file_or_a_test() {
        let files = ["chaos_node", "chaos_io", "csi_pod"].map(String::from).into();
        assert_eq!(select(&files, None).0, ["csi_pod", "chaos_io", "chaos_node"]);
        assert_eq!(select(&files, Some("io")), (vec!["chaos_io".to_string()], None));
        assert_eq!(select(&files, Some("a_fenced_writer")).1, Some("a_fenced_writer"));
    }
}
