//! `curve scheduler`.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use curve_wire::proto::ClusterStatus;
use serde_json::json;

use crate::cluster::ClusterArgs;
use crate::lifetime;
use crate::output::{self, OutputArgs, table};

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve scheduler pause repair      # while a rack is moved
  curve scheduler resume")]
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
    /// Let schedulers begin nothing more; what they have begun is finished, but for a scrub.
    #[command(after_help = "Example:
  curve scheduler pause repair balance
  curve scheduler pause                # all")]
    Pause { schedulers: Vec<Scheduler> },
    /// Let them go on.
    #[command(after_help = "Example:
  curve scheduler resume balance
  curve scheduler resume               # all")]
    Resume { schedulers: Vec<Scheduler> },
    /// List the schedulers, what they do, and which are paused.
    #[command(after_help = "Example:
  curve scheduler list -o json | jq '.[] | select(.paused)'")]
    List,
}

/// As the MDS names them.
#[derive(Clone, Copy, ValueEnum)]
enum Scheduler {
    /// Re-creates the replicas of chunkservers that are out
    Repair,
    /// Moves replicas until all chunkservers are about equally full
    Balance,
    /// Spreads leadership, and hands it back after a restart
    Leaders,
    /// Reads all blocks now and then and compares replicas; one that is under way stands still too
    Scrub,
}

impl Scheduler {
    fn name(self) -> String {
        let value = self.to_possible_value().expect("no variant is skipped");
        value.get_name().to_owned()
    }

    fn what(self) -> String {
        let value = self.to_possible_value().expect("no variant is skipped");
        value.get_help().map(ToString::to_string).unwrap_or_default()
    }
}

pub fn run(args: Args) -> Result<()> {
    let Args { cluster, output, verb } = args;
    cluster.path()?;
    lifetime::run_command(async move {
        let mds = cluster.connect()?;
        let names = |schedulers: Vec<Scheduler>| schedulers.into_iter().map(Scheduler::name);
        match verb {
            Verb::Pause { schedulers } => {
                mds.pause_schedulers(names(schedulers).collect(), true).await?;
            }
            Verb::Resume { schedulers } => {
                mds.pause_schedulers(names(schedulers).collect(), false).await?;
            }
            Verb::List => {
                let status = mds.status().await?;
                let of = |scheduler: &Scheduler| {
                    let paused = is_paused(&status, *scheduler);
                    json!({"name": scheduler.name(), "paused": paused, "does": scheduler.what()})
                };
                let json = || Scheduler::value_variants().iter().map(of).collect();
                output::print(output.output, json, || list(&status))?;
            }
        }
        Ok(())
    })
}

fn is_paused(status: &ClusterStatus, scheduler: Scheduler) -> bool {
    status.paused_schedulers.contains(&scheduler.name())
}

fn list(status: &ClusterStatus) -> String {
    let row = |scheduler: &Scheduler| {
        let state = if is_paused(status, *scheduler) { "paused" } else { "running" };
        vec![scheduler.name(), state.to_owned(), scheduler.what()]
    };
    let rows: Vec<_> = Scheduler::value_variants().iter().map(row).collect();
    table(&["NAME", "STATE", "DOES"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_which_are_paused() {
        let status =
            ClusterStatus { paused_schedulers: vec!["balance".to_owned()], ..Default::default() };
        let text = list(&status);
        assert!(text.contains("balance  paused"), "{text}");
        assert!(text.contains("repair   running  Re-creates"), "{text}");
        assert_eq!(text.lines().count(), 5);
    }
}
