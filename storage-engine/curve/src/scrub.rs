//! `curve scrub`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Subcommand;
use curve_client::MdsClient;
use curve_types::ByteSize;
use curve_wire::proto::{
    Comparison, CopysetScrub, EndedScrub, ReplicaScrub, RunningScrub, ScrubReport, Scrubs,
};
use serde_json::{Value, json};

use crate::cluster::ClusterArgs;
use crate::lifetime;
use crate::output::{self, OutputArgs, id_text, table, time_text};

/// Between two looks of `--wait`.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve scrub start --volume data --wait
  curve scrub status")]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Scrub now, before what is due and whatever the schedule says.
    #[command(after_help = "Example:
  curve scrub start                  # everything
  curve scrub start --volume data --wait")]
    Start {
        /// Only the copysets that hold this volume; others of its blocks are read with it.
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        /// Wait for the end and print what was found.
        #[arg(long)]
        wait: bool,
    },
    /// Say when each copyset was scrubbed, how far it is now, and what was found.
    #[command(after_help = "Example:
  curve scrub status -o json | jq '.copysets[] | select(.last.replicas == \"differ\")'")]
    Status {
        /// Only the copysets that hold this volume.
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
    },
    /// Let scrubs run in windows only. Without a schedule they run at any time, slowly.
    #[command(after_help = "Example:
  curve scrub schedule '0 1 * * *' --window 5h     # every night from 1:00 UTC on
  curve scrub schedule --always")]
    Schedule {
        /// MINUTE HOUR DAY MONTH WEEKDAY, as cron has it, in UTC: when windows open.
        #[arg(required_unless_present = "always", requires = "window")]
        cron: Option<String>,
        /// How long each window is open: 5h, 30m, 1d.
        #[arg(long, value_name = "TIME", value_parser = parse_window)]
        window: Option<u64>,
        /// No windows.
        #[arg(long, conflicts_with_all = ["cron", "window"])]
        always: bool,
    },
}

pub fn run(args: Args) -> Result<()> {
    let Args { cluster, output, verb } = args;
    cluster.path()?;
    lifetime::run_command(async move {
        let mds = cluster.connect()?;
        let print = |scrubs: Scrubs| {
            output::print(output.output, || scrubs_json(&scrubs), || scrubs_text(&scrubs))
        };
        match verb {
            Verb::Start { volume, wait } => {
                let copysets = mds.start_scrub(volume.as_deref()).await?;
                ensure!(!copysets.is_empty(), "there is no copyset to scrub yet");
                if wait {
                    print(wait_for_end(&mds, volume.as_deref()).await?)?;
                }
            }
            Verb::Status { volume } => print(mds.scrubs(volume.as_deref()).await?)?,
            Verb::Schedule { cron, window, always: _ } => {
                let (cron, window) = (cron.unwrap_or_default(), window.unwrap_or_default());
                mds.set_scrub_schedule(&cron, window).await?;
            }
        }
        Ok(())
    })
}

/// Seconds.
fn parse_window(text: &str) -> Result<u64, String> {
    let wrong = || format!("window is {text:?}: expected a number with s, m, h or d, such as 5h");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    count.checked_mul(seconds).ok_or_else(wrong)
}

async fn wait_for_end(mds: &MdsClient, volume: Option<&str>) -> Result<Scrubs> {
    let terminal = std::io::stderr().is_terminal();
    loop {
        let scrubs = mds.scrubs(volume).await?;
        let asked = |scrub: &&CopysetScrub| {
            scrub.requested || scrub.running.as_ref().is_some_and(|running| running.requested)
        };
        let left: Vec<_> = scrubs.copysets.iter().filter(asked).collect();
        if terminal {
            let all = scrubs.copysets.len();
            eprint!("\r{} of {all} copysets scrubbed ", all - left.len());
        }
        if left.is_empty() {
            if terminal {
                eprintln!();
            }
            return Ok(scrubs);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// What a copyset's scrub is about.
fn state(scrubs: &Scrubs, scrub: &CopysetScrub) -> &'static str {
    match &scrub.running {
        Some(running) if scrubs.paused || !(running.requested || scrubs.open) => "held",
        Some(_) => "running",
        None if scrub.requested => "requested",
        None if scrub.due => "due",
        None => "idle",
    }
}

/// Percent of the chunks that all replicas have read.
fn progress(running: &RunningScrub) -> u64 {
    let parts = running.replicas.iter().map(|replica| match replica.report {
        Some(report) if report.ended => 100,
        Some(report) => (report.chunks_read * 100).checked_div(report.chunks).unwrap_or(0),
        None => 0,
    });
    parts.sum::<u64>() / running.replicas.len().max(1) as u64
}

fn comparison(last: &EndedScrub) -> &'static str {
    match Comparison::try_from(last.comparison) {
        Ok(Comparison::Alike) => "alike",
        Ok(Comparison::Differ) => "differ",
        Ok(Comparison::Unknown) | Err(_) => "unknown",
    }
}

fn total(replicas: &[ReplicaScrub], of: impl Fn(ScrubReport) -> u64) -> u64 {
    replicas.iter().filter_map(|replica| replica.report).map(of).sum()
}

fn scrubs_text(scrubs: &Scrubs) -> String {
    let when = match (scrubs.schedule.is_empty(), scrubs.open) {
        (true, _) => "at any time, each copyset once a week".to_owned(),
        (false, open) => {
            let (schedule, hours) = (&scrubs.schedule, scrubs.window_secs as f64 / 3600.0);
            let now = if open { "open" } else { "closed" };
            format!("{schedule:?} (UTC), {hours:.1} h each, now {now}")
        }
    };
    let paused = if scrubs.paused { "; paused: curve scheduler resume scrub" } else { "" };
    let rows: Vec<_> = scrubs.copysets.iter().map(|scrub| row(scrubs, scrub)).collect();
    let head = [
        "COPYSET",
        "POOL",
        "STATE",
        "DONE",
        "LAST ENDED",
        "READ",
        "REPAIRED",
        "LOST",
        "UNREPAIRED",
        "REPLICAS",
    ];
    format!("scrubs run {when}{paused}\n{}", table(&head, &rows))
}

fn row(scrubs: &Scrubs, scrub: &CopysetScrub) -> Vec<String> {
    let done = scrub.running.as_ref().map(|running| format!("{} %", progress(running)));
    let mut row = vec![
        scrub.copyset.to_string(),
        scrub.pool.clone(),
        state(scrubs, scrub).to_owned(),
        done.unwrap_or_default(),
    ];
    match &scrub.last {
        None => row.extend(["never", "", "", "", "", ""].map(str::to_owned)),
        Some(last) => {
            let total = |of: fn(ScrubReport) -> u64| total(&last.replicas, of);
            row.push(time_text(last.ended_unix_ms));
            row.push(ByteSize(total(|report| report.bytes_read)).to_string());
            row.push(total(|report| report.repaired).to_string());
            row.push(total(|report| report.lost).to_string());
            row.push(total(|report| report.unrepaired).to_string());
            row.push(comparison(last).to_owned());
        }
    }
    row
}

fn scrubs_json(scrubs: &Scrubs) -> Value {
    let schedule = (!scrubs.schedule.is_empty())
        .then(|| json!({"cron": scrubs.schedule, "window_secs": scrubs.window_secs}));
    let copyset = |scrub: &CopysetScrub| {
        json!({
            "copyset": scrub.copyset,
            "pool": scrub.pool,
            "state": state(scrubs, scrub),
            "running": scrub.running.as_ref().map(running_json),
            "last": scrub.last.as_ref().map(last_json),
        })
    };
    json!({
        "schedule": schedule,
        "open": scrubs.open,
        "paused": scrubs.paused,
        "copysets": scrubs.copysets.iter().map(copyset).collect::<Vec<_>>(),
    })
}

fn running_json(running: &RunningScrub) -> Value {
    let replica = |replica: &ReplicaScrub| {
        let report = replica.report.unwrap_or_default();
        json!({
            "chunkserver": replica.name,
            "device_id": id_text(&replica.device_id),
            "chunks_read": report.chunks_read,
            "chunks": report.chunks,
            "bytes_read": report.bytes_read,
            "read": report.ended,
            "repaired": report.repaired,
            "lost": report.lost,
        })
    };
    json!({
        "began_unix_ms": running.began_unix_ms,
        "requested": running.requested,
        "percent": progress(running),
        "by_replica": running.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

fn last_json(last: &EndedScrub) -> Value {
    let replica = |replica: &ReplicaScrub| {
        let report = replica.report.unwrap_or_default();
        let digest = report.digest.and_then(|digest| digest.value);
        json!({
            "chunkserver": replica.name,
            "device_id": id_text(&replica.device_id),
            "bytes_read": report.bytes_read,
            "repaired": report.repaired,
            "lost": report.lost,
            "unrepaired": report.unrepaired,
            "digest": digest.map(|digest| format!("{digest:016x}")),
        })
    };
    let total = |of: fn(ScrubReport) -> u64| total(&last.replicas, of);
    json!({
        "began_unix_ms": last.began_unix_ms,
        "ended_unix_ms": last.ended_unix_ms,
        "bytes_read": total(|report| report.bytes_read),
        "repaired": total(|report| report.repaired),
        "lost": total(|report| report.lost),
        "unrepaired": total(|report| report.unrepaired),
        "replicas": comparison(last),
        "log_index": last.index,
        "by_replica": last.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve_wire::proto::TableDigest;

    fn replica(name: &str, report: ScrubReport) -> ReplicaScrub {
        ReplicaScrub { name: name.into(), report: Some(report), ..ReplicaScrub::default() }
    }

    #[test]
    fn a_person_sees_what_runs_and_what_was_found() {
        let half = ScrubReport { chunks: 10, chunks_read: 5, ..ScrubReport::default() };
        let whole = ScrubReport { ended: true, ..ScrubReport::default() };
        let replicas = vec![replica("a", half), replica("b", whole)];
        let running = RunningScrub { replicas, ..RunningScrub::default() };
        let digest = Some(TableDigest { index: 9, value: Some(0xab) });
        let found = ScrubReport { repaired: 2, bytes_read: 4 << 20, digest, ..whole };
        let last = EndedScrub {
            comparison: Comparison::Differ.into(),
            replicas: vec![replica("a", found)],
            ..EndedScrub::default()
        };
        let scrubs = Scrubs {
            schedule: "0 1 * * *".into(),
            window_secs: 5 * 3600,
            copysets: vec![
                CopysetScrub { copyset: 1, running: Some(running), ..CopysetScrub::default() },
                CopysetScrub { copyset: 2, due: true, last: Some(last), ..CopysetScrub::default() },
            ],
            ..Scrubs::default()
        };
        let text = scrubs_text(&scrubs);
        assert!(text.starts_with("scrubs run \"0 1 * * *\" (UTC), 5.0 h each, now closed\n"));
        assert!(text.contains("held   75 %  never"), "{text}");
        assert!(text.contains("4 MiB") && text.contains("differ\n"), "{text}");
        let json = scrubs_json(&scrubs);
        assert_eq!(json["copysets"][0]["running"]["percent"], 75);
        assert_eq!(json["copysets"][1]["last"]["repaired"], 2);
        assert_eq!(json["copysets"][1]["last"]["by_replica"][0]["digest"], "00000000000000ab");
        let open = Scrubs { open: true, paused: true, schedule: String::new(), ..scrubs };
        assert!(scrubs_text(&open).contains("any time, each copyset once a week; paused"));
    }

    #[test]
    fn a_window_has_a_unit() {
        assert_eq!(parse_window("5h"), Ok(18_000));
        assert_eq!(parse_window("1d"), Ok(86_400));
        for text in ["", "5", "h", "5 h", "-1h", "5w", "99999999999999999999h"] {
            let error = parse_window(text).expect_err(text);
            assert!(error.contains("such as 5h"), "{error}");
        }
    }
}
