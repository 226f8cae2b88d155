use k8s_openapi::api::core::v1::Pod;
use kube::api::ObjectMeta;
use serde_json::json;

use super::*;
use crate::cluster::build::build_volumes;
use crate::cluster::placement::Bindings;
use crate::fixtures::{cluster_with, nodes, pod, stateful_set, validated_with};

fn key() -> ClusterKey {
    ClusterKey { namespace: "curve".into(), name: "demo".into() }
}

fn destroying() -> CurveCluster {
    cluster_with(json!({"deletionPolicy": "Destroy", "destroyConfirmation": "demo"}))
}

fn observed(pods: Vec<Pod>, sets: Vec<StatefulSet>) -> Observed {
    let cluster = validated_with(json!({}));
    let bound =
        |count: u32| (0..count).map(|i| (i, format!("node{}", i + 1))).collect::<Bindings>();
    let secret = |name: &str| (name.to_owned(), Secret::default());
    let metadata = ObjectMeta { name: Some("curve-curve-demo-csi".into()), ..Default::default() };
    Observed {
        nodes: nodes(3),
        volumes: build_volumes(&cluster, &[bound(3), bound(3)], &Default::default()),
        pods,
        stateful_sets: sets,
        secrets: [secret("demo-ca"), secret("demo-mds-tls")].into(),
        connections: [secret("curve-curve-demo-csi")].into(),
        roles: vec![Role { metadata: metadata.clone(), ..Role::default() }],
        role_bindings: vec![RoleBinding { metadata, ..RoleBinding::default() }],
        ..Observed::default()
    }
}

fn claims(count: usize) -> Vec<PersistentVolumeClaim> {
    let claim = |i| {
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.name = Some(format!("device-demo-default-{i}"));
        claim
    };
    (0..count).map(claim).collect()
}

fn job(name: String, succeeded: i32, failed: i32) -> Job {
    serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "status": {"succeeded": succeeded, "failed": failed},
    }))
    .expect("a Job")
}

#[test]
fn retain_keeps_data_claims_and_keys() {
    let sets = vec![stateful_set("demo-mds", None)];
    let observed = observed(vec![pod("demo-mds", 0, "new")], sets);
    let leftovers = Leftovers { claims: claims(3), ..Leftovers::default() };
    let plan = plan_teardown(&cluster_with(json!({})), &key(), &observed, &leftovers);
    let expected = TeardownPlan {
        delete_stateful_sets: vec!["demo-mds".into()],
        delete_role_bindings: vec!["curve-curve-demo-csi".into()],
        delete_roles: vec!["curve-curve-demo-csi".into()],
        delete_connections: vec!["curve-curve-demo-csi".into()],
        ..TeardownPlan::default()
    };
    assert_eq!(plan, expected);
}

#[test]
fn destroy_waits_for_the_volumes_of_users() {
    let leftovers = Leftovers { users: vec!["pvc-1".into()], ..Leftovers::default() };
    let sets = vec![stateful_set("demo-mds", None)];
    let plan = plan_teardown(&destroying(), &key(), &observed(Vec::new(), sets), &leftovers);
    let waiting = plan.waiting_for.clone().expect("waits");
    assert!(
        waiting.starts_with("1 PersistentVolumes still lie on this cluster (pvc-1)"),
        "{waiting}"
    );
    let nothing = TeardownPlan { waiting_for: plan.waiting_for.clone(), ..TeardownPlan::default() };
    assert_eq!(plan, nothing);
}

#[test]
fn destroy_erases_only_after_every_process_has_stopped() {
    let observed = observed(vec![pod("demo-mds", 0, "new")], Vec::new());
    let plan = plan_teardown(&destroying(), &key(), &observed, &Leftovers::default());
    assert_eq!(plan.waiting_for.as_deref(), Some("1 pods are stopping"));
    assert!(plan.erase.is_empty() && plan.delete_volumes.is_empty());
}

#[test]
fn destroy_erases_each_node_once_and_then_forgets() {
    let observed = observed(Vec::new(), Vec::new());
    let mut leftovers = Leftovers { claims: claims(3), ..Leftovers::default() };
    let plan = plan_teardown(&destroying(), &key(), &observed, &leftovers);
    assert_eq!(plan.erase.len(), 3);
    assert_eq!(plan.delete_claims.len(), 3);
    assert!(plan.delete_volumes.is_empty() && plan.waiting_for.is_some());

    leftovers.claims.clear();
    let names: Vec<String> = plan.erase.iter().map(|target| target.job_name(&key())).collect();
    leftovers.jobs = names.iter().map(|name| job(name.clone(), 0, 1)).collect();
    let plan = plan_teardown(&destroying(), &key(), &observed, &leftovers);
    assert_eq!(plan.waiting_for.as_deref(), Some("data is being erased on node1, node2, node3"));
    assert!(plan.erase.is_empty());

    leftovers.jobs = names.iter().map(|name| job(name.clone(), 1, 0)).collect();
    let plan = plan_teardown(&destroying(), &key(), &observed, &leftovers);
    assert_eq!(plan.waiting_for, None);
    assert_eq!(plan.delete_volumes.len(), 6);
    assert_eq!(plan.delete_secrets, ["demo-ca", "demo-mds-tls"]);
    assert_eq!(plan.delete_jobs.len(), 3);
}

#[test]
fn a_node_that_cannot_be_erased_is_named() {
    let observed = observed(Vec::new(), Vec::new());
    let targets = erase_targets(&key(), &observed.volumes);
    let jobs = targets.iter().enumerate().map(|(i, target)| {
        let failed = if i == 0 { erase::ATTEMPTS + 1 } else { 0 };
        job(target.job_name(&key()), i32::from(i > 0), failed)
    });
    let leftovers = Leftovers { jobs: jobs.collect(), ..Leftovers::default() };
    let plan = plan_teardown(&destroying(), &key(), &observed, &leftovers);
    let waiting = plan.waiting_for.expect("waits");
    assert!(waiting.contains("could not erase on node1"), "{waiting}");
    assert!(plan.delete_volumes.is_empty());
}

#[test]
fn a_node_that_left_the_cluster_is_not_waited_for() {
    let mut observed = observed(Vec::new(), Vec::new());
    observed.nodes.clear();
    let plan = plan_teardown(&destroying(), &key(), &observed, &Leftovers::default());
    assert_eq!(plan.waiting_for, None);
    assert_eq!(plan.delete_volumes.len(), 6);
}

#[test]
fn only_directories_of_this_cluster_are_erased() {
    let mut observed = observed(Vec::new(), Vec::new());
    for (volume, path) in observed.volumes.iter_mut().zip([
        "/",
        "/etc",
        "/var/lib/curve/other-demo/x",
        "curve-demo/x",
    ]) {
        let source = volume.spec.as_mut().and_then(|spec| spec.host_path.as_mut());
        source.expect("a host path").path = path.into();
    }
    let targets = erase_targets(&key(), &observed.volumes[..4]);
    assert!(targets.is_empty(), "{targets:?}");
    let targets = erase_targets(&key(), &observed.volumes[4..]);
    assert!(targets.iter().all(|target| target.base == "/var/lib/curve"), "{targets:?}");
}
