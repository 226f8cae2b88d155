//! `curve`: every role of the storage engine and its command line. Wiring only: what a role does
//! is in its crate.

mod agent;
mod chunkserver;
mod cluster;
mod health;
mod lifetime;
mod mds;
mod output;
mod playground;
mod pool;
mod scheduler;
mod scrub;
mod status;
mod volume;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::cluster::NoCluster;
use crate::output::print_error;
use crate::playground::BadPlan;

/// Frames come and go from 4 KiB to a few MiB on every thread: the system's allocator spends more on
/// that, and gives memory back to the kernel only to ask for it again (docs/performance.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit status of a command line that makes no sense; clap uses the same.
const USAGE: u8 = 2;

/// Curve: replicated block storage.
#[derive(Parser)]
#[command(name = "curve", version, propagate_version = true)]
#[command(after_help = "Example:
  curve playground start --dir /var/tmp/curve > /tmp/playground.json &
  until grep -s '\"ready\":true' /tmp/playground.json; do sleep 1; done
  export CURVE_CONFIG=/var/tmp/curve/client.toml
  curve volume create data --size 1Gi
  curve volume export data --nbd unix:/tmp/data.sock")]
struct Cli {
    /// End when the process of this id does: set for the children of a playground.
    #[arg(long, hide = true, global = true)]
    parent_pid: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve cluster metadata.
    Mds(Box<mds::Args>),
    /// Serve one disk.
    Chunkserver(Box<chunkserver::Args>),
    /// Own the attachments of this node.
    Agent(agent::Args),
    /// Exit 0 if a process on this machine is serving: for probes.
    Health(health::Args),
    /// Run a whole cluster on loopback, for trying, testing and measuring.
    Playground(playground::Args),
    /// Create, list, grow, delete, export and attach volumes.
    Volume(volume::Args),
    /// Create, list and delete pools.
    Pool(pool::Args),
    /// Pause and resume what the cluster does by itself with data that is there.
    Scheduler(scheduler::Args),
    /// Read all blocks, repair what is damaged, and compare the replicas.
    Scrub(scrub::Args),
    /// Say how the cluster is.
    Status(status::Args),
    /// Print the completion script of a shell.
    #[command(after_help = "Example:
  source <(curve completion bash)")]
    Completion { shell: Shell },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(parent) = cli.parent_pid
        && let Err(error) = lifetime::end_with_parent(parent)
    {
        print_error(&error);
        return ExitCode::FAILURE;
    }
    let result = match cli.command {
        Command::Mds(args) => mds::run(*args),
        Command::Chunkserver(args) => chunkserver::run(*args),
        Command::Agent(args) => agent::run(args),
        Command::Health(args) => health::run(args),
        Command::Playground(args) => playground::run(args),
        Command::Volume(args) => volume::run(args),
        Command::Pool(args) => pool::run(args),
        Command::Scheduler(args) => scheduler::run(args),
        Command::Scrub(args) => scrub::run(args),
        Command::Status(args) => status::run(args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "curve", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            let usage = error.is::<NoCluster>() || error.is::<BadPlan>();
            if usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_an_example_in_its_help() {
        fn check(command: &mut clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example:\n  "), "{path}:\n{help}");
            for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
                check(verb, &path);
            }
        }
        check(&mut Cli::command(), "");
    }
}
