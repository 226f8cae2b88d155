//! Runs the operator: waits for the lease, starts the controllers, serves metrics.

mod mds;
mod system;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use kube_lease_manager::LeaseManagerBuilder;
use tokio::sync::watch;

use crate::context::{Context, Settings};
use crate::crd::{CurveCluster, CurvePool};
use crate::metrics::{Controller as Kind, Metrics};
use crate::{cluster, pool};

/// Lease that one replica holds.
const LEASE: &str = "curve-operator";
/// A replica that dies without giving the lease back is replaced after this time.
const LEASE_SECONDS: u64 = 15;
/// It renews this long before the end, which also is the clock skew between nodes that is borne.
const LEASE_GRACE_SECONDS: u64 = 5;
/// Clusters that are reconciled at a time; a slow one must not hold up the others.
const CONCURRENCY: u16 = 4;
/// Changes of one object within this time are looked at together.
const DEBOUNCE: std::time::Duration = std::time::Duration::from_millis(500);
/// Wait before a failed reconciliation is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs until SIGTERM, or fails when the lease is lost.
pub async fn run(client: Client, settings: Settings, listen_metrics: SocketAddr) -> Result<()> {
    let (metrics, registry) = Metrics::register();
    let listener = curve_wire::net::bind(listen_metrics)
        .await
        .with_context(|| format!("listen on {listen_metrics}"))?;
    let identity = system::ensure_metrics_identity(&client, &settings.namespace)
        .await
        .context("prepare the certificates of the metrics ports")?;
    let serving = curve_wire::telemetry::serve_metrics(listener, &identity, registry);
    let api = Arc::new(mds::MdsConnections::default());
    let namespace = settings.namespace.clone();
    let context = Arc::new(Context::new(client.clone(), settings, api, metrics.clone()));
    tokio::select! {
        served = serving => served.context("serve metrics"),
        led = lead(client, &namespace, context, metrics) => led,
    }
}

/// Holds the lease while the controllers run.
async fn lead(
    client: Client,
    namespace: &str,
    context: Arc<Context>,
    metrics: Metrics,
) -> Result<()> {
    let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
        .with_namespace(namespace)
        .with_identity(identity())
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_GRACE_SECONDS)
        .build()
        .await
        .context("prepare the leader lease")?;
    let (mut leading, holder) = manager.watch().await;
    let result = tokio::select! {
        () = terminated() => Ok(()),
        result = work_while_leading(&mut leading, client, context, &metrics) => result,
    };
    metrics.set_leading(false);
    // Closing the channel makes the holder give the lease back, so that the other replica need
    // not wait for it to run out.
    drop(leading);
    holder
        .await
        .context("stop renewing the leader lease")?
        .context("give the leader lease back")?;
    result
}

async fn work_while_leading(
    leading: &mut watch::Receiver<bool>,
    client: Client,
    context: Arc<Context>,
    metrics: &Metrics,
) -> Result<()> {
    tracing::info!("waiting for the leader lease");
    leading.wait_for(|leading| *leading).await.context("wait for the leader lease")?;
    tracing::info!("leading");
    metrics.set_leading(true);
    tokio::select! {
        // Work in progress cannot be taken back: the process ends, and starts over as a follower.
        lost = leading.wait_for(|leading| !*leading) => {
            lost.context("watch the leader lease")?;
            bail!("the leader lease was lost")
        }
        () = run_clusters(client.clone(), context.clone()) => bail!("the cluster controller ended"),
        () = run_pools(client, context) => bail!("the pool controller ended"),
    }
}

fn identity() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| format!("curve-operator-{}", std::process::id()))
}

/// Completes on SIGTERM or SIGINT.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).expect("signal handlers can be installed");
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn run_clusters(client: Client, context: Arc<Context>) {
    let clusters: Api<CurveCluster> = Api::all(client.clone());
    let ours = || watcher::Config::default().labels("app.kubernetes.io/managed-by=curve-operator");
    let controller = Controller::new(clusters, watcher::Config::default())
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE));
    let (store, pool_store) = (controller.store(), controller.store());
    controller
        .owns(Api::<StatefulSet>::all(client.clone()), ours())
        .owns(Api::<Service>::all(client.clone()), ours())
        .owns(Api::<PodDisruptionBudget>::all(client.clone()), ours())
        // A node that joins may be what a cluster waits for, and needs a connection of its own.
        .watches(Api::<Node>::all(client.clone()), watcher::Config::default(), move |_| {
            all_of(&store)
        })
        // The first pool that somebody makes decides whether a default one is wanted.
        .watches(Api::<CurvePool>::all(client), watcher::Config::default(), move |pool| {
            let cluster = pool::cluster_of(&pool);
            all_of(&pool_store).into_iter().filter(move |reference| {
                reference.name == cluster.name
                    && reference.namespace.as_deref() == Some(cluster.namespace.as_str())
            })
        })
        .run(reconcile_cluster, retry, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

fn all_of(store: &Store<CurveCluster>) -> Vec<ObjectRef<CurveCluster>> {
    store.state().iter().map(|cluster| ObjectRef::from_obj(cluster.as_ref())).collect()
}

async fn run_pools(client: Client, context: Arc<Context>) {
    Controller::new(Api::<CurvePool>::all(client), watcher::Config::default())
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
        .run(reconcile_pool, retry, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn reconcile_cluster(
    cluster: Arc<CurveCluster>,
    context: Arc<Context>,
) -> Result<Action, cluster::ReconcileError> {
    let name = format!("{}/{}", cluster.namespace().unwrap_or_default(), cluster.name_any());
    let work = cluster::reconcile(cluster, context.clone());
    observe(Kind::Cluster, &name, &context, work).await
}

async fn reconcile_pool(
    pool: Arc<CurvePool>,
    context: Arc<Context>,
) -> Result<Action, pool::PoolError> {
    let name = format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any());
    let work = pool::reconcile(pool, context.clone());
    observe(Kind::Pool, &name, &context, work).await
}

async fn observe<E: std::error::Error>(
    kind: Kind,
    name: &str,
    context: &Context,
    work: impl Future<Output = Result<Action, E>>,
) -> Result<Action, E> {
    let begun = Instant::now();
    let result = work.await;
    context.metrics.observe(kind, begun.elapsed(), result.is_err());
    if let Err(error) = &result {
        tracing::warn!(
            ?kind,
            name,
            error = curve_wire::with_causes(error),
            "reconciliation failed"
        );
    }
    result
}

fn retry<K, E>(_: Arc<K>, _: &E, _: Arc<Context>) -> Action {
    Action::requeue(RETRY)
}
