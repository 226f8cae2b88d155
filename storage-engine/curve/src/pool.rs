//! `curve pool`.

use anyhow::{Result, bail};
use clap::Subcommand;
use curve_client::CreatePool;
use curve_types::{ByteSize, REPLICAS_MIN};
use curve_wire::proto;
use serde_json::{Value, json};

use crate::cluster::ClusterArgs;
use crate::lifetime;
use crate::output::{self, OutputArgs, table};
use crate::status::health_name;

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
        /// What the volumes may have in all, in percent of what the pool can store: 100 (no
        /// overcommit, the default) to 2000.
        #[arg(long, value_name = "PERCENT")]
        overcommit_percent: Option<u32>,
    },
    /// Change what the volumes of a pool may have in all.
    ///
    /// Volumes that are there stay as they are: below what they have, none is made or grown.
    #[command(after_help = "Example:
  curve pool set-overcommit fast 200")]
    SetOvercommit {
        name: String,
        /// In percent of what the pool can store: 100 (no overcommit) to 2000.
        percent: u32,
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
            Verb::Create { name, replicas, failure_domain, device_class, overcommit_percent } => {
                let failure_domain = failure_domain.into();
                let pool =
                    CreatePool { name, replicas, failure_domain, device_class, overcommit_percent };
                mds.create_pool(pool).await?;
            }
            Verb::SetOvercommit { name, percent } => {
                let pool = with_overcommit(&mds.list_pools().await?, &name, percent)?;
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

/// The pool of that name with another overcommit.
fn with_overcommit(pools: &[proto::PoolStatus], name: &str, percent: u32) -> Result<CreatePool> {
    let known = || pools.iter().filter_map(|status| status.pool.as_ref());
    let Some(pool) = known().find(|pool| pool.name == name) else {
        let known: Vec<&str> = known().map(|pool| pool.name.as_str()).collect();
        bail!("pool is {name:?}: expected one of {}", known.join(", "));
    };
    Ok(CreatePool {
        name: pool.name.clone(),
        replicas: pool.replicas,
        failure_domain: pool.failure_domain(),
        device_class: pool.device_class.clone(),
        overcommit_percent: Some(percent),
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
            ByteSize(status.used).to_string(),
            ByteSize(status.provisioned).to_string(),
            format!("{} %", pool.overcommit_percent),
        ]
    };
    let rows: Vec<_> = pools.iter().map(row).collect();
    let head = [
        "NAME",
        "REPLICAS",
        "DOMAIN",
        "CLASS",
        "COPYSETS",
        "CAPACITY",
        "USED",
        "PROVISIONED",
        "OVERCOMMIT",
    ];
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
        "overcommit_percent": pool.overcommit_percent,
        "logical_capacity": status.logical_capacity,
        "provisioned": status.provisioned,
        "provisioned_limit": status.provisioned_limit,
        "used": status.used,
        "fill": health_name(status.fill),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools() -> Vec<proto::PoolStatus> {
        let pool = proto::Pool {
            name: "fast".into(),
            replicas: 5,
            failure_domain: proto::FailureDomain::Zone.into(),
            device_class: "nvme".into(),
            overcommit_percent: 200,
            ..Default::default()
        };
        vec![proto::PoolStatus {
            pool: Some(pool),
            logical_capacity: 10 << 30,
            provisioned: 15 << 30,
            provisioned_limit: 20 << 30,
            used: 8 << 30,
            fill: proto::Health::Warn.into(),
            ..Default::default()
        }]
    }

    #[test]
    fn the_table_shows_what_is_stored_beside_what_was_promised() {
        let text = pool_table(&pools());
        let row: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(row[5..].join(" "), "10 GiB 8 GiB 15 GiB 200 %", "{text}");
        let json = pool_json(&pools()[0]);
        assert_eq!((&json["overcommit_percent"], &json["fill"]), (&json!(200), &json!("warn")));
    }

    #[test]
    fn a_new_overcommit_leaves_the_rest_of_the_pool_as_it_is() {
        let expected = CreatePool {
            name: "fast".into(),
            replicas: 5,
            failure_domain: proto::FailureDomain::Zone,
            device_class: "nvme".into(),
            overcommit_percent: Some(300),
        };
        assert_eq!(with_overcommit(&pools(), "fast", 300).expect("known"), expected);
        let error = with_overcommit(&pools(), "fats", 300).expect_err("unknown").to_string();
        assert_eq!(error, "pool is \"fats\": expected one of fast");
    }
}
