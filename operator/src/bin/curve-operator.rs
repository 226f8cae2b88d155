//! The operator's process: flags, logging, and the one-shot that erases a directory. All work is
//! in the library.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use curve_operator::cluster::build::AddressFamily;
use curve_operator::context::Settings;
use curve_operator::run;

/// Port of the process contract.
const METRICS_PORT: u16 = 7409;

/// Runs Curve storage clusters on Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Namespace of the operator; connection Secrets are written there.
    #[arg(long, env = "CURVE_NAMESPACE", default_value = "curve-system")]
    namespace: String,

    /// Address of the metrics port (HTTPS with client certificates); port 7409 of all addresses
    /// if absent.
    #[arg(long)]
    listen_metrics: Option<SocketAddr>,

    /// Image of clusters that name none: the one this operator runs from.
    #[arg(long, env = "CURVE_IMAGE", default_value = "localhost/curve:dev")]
    image: String,
}

#[derive(Subcommand)]
enum Command {
    /// Removes a directory with all it holds; done as well if there is none.
    Erase { directory: PathBuf },
}

#[tokio::main]
async fn main() -> Result<()> {
    curve_wire::telemetry::init_logging();
    let args = Args::parse();
    if let Some(Command::Erase { directory }) = &args.command {
        return erase(directory);
    }
    let client = kube::Client::try_default().await.context("find the API server")?;
    let api_server = std::env::var("KUBERNETES_SERVICE_HOST").unwrap_or_default();
    let family = AddressFamily::of_address(&api_server);
    let any: IpAddr = match family {
        AddressFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listen_metrics = args.listen_metrics.unwrap_or(SocketAddr::new(any, METRICS_PORT));
    let settings = Settings { namespace: args.namespace, image: args.image, family };
    run::run(client, settings, listen_metrics).await
}

fn erase(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => println!("erased {}", directory.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("{} is not there", directory.display());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("erase {}", directory.display()));
        }
    }
    Ok(())
}
