//! Certificates of the metrics ports of what the chart installs: operator, CSI driver, agents.
//! They belong to no cluster, so they have an authority of their own.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use curve_wire::pki::{Identity, Role};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};

use crate::cluster::credentials::{ensure_authority, keep_or_issue, tls_data};
use crate::cluster::names::FIELD_MANAGER;

const AUTHORITY: &str = "curve-system-ca";
/// Mounted by the pods of the chart; a scraper may use it as its client certificate.
const METRICS: &str = "curve-system-metrics-tls";

/// The identity of all metrics ports of the chart, made at the first start.
pub async fn ensure_metrics_identity(client: &Client, namespace: &str) -> Result<Identity> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let there = api.get_opt(AUTHORITY).await.with_context(|| format!("read {AUTHORITY}"))?;
    let labels = BTreeMap::from([
        ("app.kubernetes.io/name".into(), "curve".into()),
        ("app.kubernetes.io/managed-by".into(), "curve-operator".into()),
    ]);
    let authority =
        ensure_authority(client, namespace, AUTHORITY, there.as_ref(), labels.clone()).await?;
    let there = api.get_opt(METRICS).await.with_context(|| format!("read {METRICS}"))?;
    let identity = keep_or_issue(&authority, there.as_ref(), Role::Metrics, "curve-system")?;
    let wanted = Secret {
        metadata: ObjectMeta {
            name: Some(METRICS.into()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".into()),
        data: Some(tls_data(&identity)),
        ..Secret::default()
    };
    if there.is_some_and(|there| there.data == wanted.data) {
        return Ok(identity);
    }
    let manager = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&wanted);
    api.patch(METRICS, &manager, &patch).await.with_context(|| format!("write {METRICS}"))?;
    Ok(identity)
}
