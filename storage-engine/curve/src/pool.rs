//! `curve pool`.

use anyhow::Result;
use clap::Subcommand;
use curve_client::CreatePool;
use curve_types::{ByteSize, REPLICAS_MIN};
use curve_wire::proto;
use serde_json::{Value, json};

use crate::cluster::ClusterArgs;
use crate::lifetime;
use crate::output::{self, OutputArgs, table};

#[derive(clap::Args)]
#[command(after_help = "Example:
  curve pool create fast --replicas 3 --failure-domain zone --device-class nvme")]
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
    /// Make a pool.
    #[command(after_help = "Example:
  curve pool create fast --replicas 3 --failure-domain zone --device-class nvme")]
    Create {
        name: String,
        /// Copies of each block; at least 3.
        #[arg(long, default_value_t = REPLICAS_MIN)]
        replicas: u32,
        /// What no two copies may share.
        #[arg(long, value_enum, default_value_t)]
        failure_domain: Domain,
        /// Use only devices of this class.
        #[arg(long, value_name = "CLASS", default_value = "")]
        device_class: String,
    },
    /// List all pools.
    #[command(after_help = "Example:
  curve pool list")]
    List,
    /// Delete a pool without volumes.
    #[command(after_help = "Example:
  curve pool delete fast")]
    Delete { name: String },
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum Domain {
    #[default]
    Host,
    Zone,
}

impl From<Domain> for proto::FailureDomain {
    fn from(domain: Domain) -> Self {
        match domain {
            Domain::Host => Self::Host,
            Domain::Zone => Self::Zone,
        }
    }
}

/// Name of a failure domain as people write it.
pub fn domain_name(domain: i32) -> &'static str {
    match proto::FailureDomain::try_from(domain) {
        Ok(proto::FailureDomain::Zone) => "zone",
        Ok(proto::FailureDomain::Host | proto::FailureDomain::Unspecified) | Err(_) => "host",
    }
}

pub fn run(args: Args) -> Result<()> {
    let Args { cluster, output, verb } = args;
    cluster.path()?;
    lifetime::run_command(async move {
        let mds = cluster.connect()?;
        match verb {
            Verb::Create { name, replicas, failure_domain, device_class } => {
                let failure_domain = failure_domain.into();
                let pool = CreatePool { name, replicas, failure_domain, device_class };
                mds.create_pool(pool).await?;
            }
            Verb::Delete { name } => mds.delete_pool(&name).await?,
            Verb::List => {
                let pools = mds.list_pools().await?;
                let json = || pools.iter().map(pool_json).collect();
                output::print(output.output, json, || pool_table(&pools))?;
            }
        }
        Ok(())
    })
}

fn pool_table(pools: &[proto::PoolStatus]) -> String {
    let row = |status: &proto::PoolStatus| {
        let pool = status.pool.clone().unwrap_or_default();
        vec![
            pool.name,
            pool.replicas.to_string(),
            domain_name(pool.failure_domain).to_owned(),
            if pool.device_class.is_empty() { "any".to_owned() } else { pool.device_class },
            status.copysets.to_string(),
            ByteSize(status.logical_capacity).to_string(),
            ByteSize(status.provisioned).to_string(),
        ]
    };
    let rows: Vec<_> = pools.iter().map(row).collect();
    let head = ["NAME", "REPLICAS", "DOMAIN", "CLASS", "COPYSETS", "CAPACITY", "PROVISIONED"];
    table(&head, &rows)
}

pub fn pool_json(status: &proto::PoolStatus) -> Value {
    let pool = status.pool.clone().unwrap_or_default();
    json!({
        "name": pool.name,
        "id": pool.id,
        "replicas": pool.replicas,
        "failure_domain": domain_name(pool.failure_domain),
        "device_class": pool.device_class,
        "copysets": status.copysets,
        "logical_capacity": status.logical_capacity,
        "provisioned": status.provisioned,
        "used": status.used,
    })
}
