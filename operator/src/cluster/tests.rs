//! Whole reconciliations against an API server in memory and a metadata service of our choice.

use std::sync::Mutex;

use async_trait::async_trait;
use curve_wire::proto::ClusterStatus;
use serde_json::{Value, json};

use super::*;
use crate::cluster::build::AddressFamily;
use crate::context::Settings;
use crate::fixtures::{OWN_IMAGE, engine, nodes, short_form};
use crate::metrics::Metrics;
use crate::scenario::ApiServer;

const CLUSTER: &str = "/apis/curve.io/v1alpha1/namespaces/curve/curveclusters/demo";

/// A metadata service that answers what it is told, and remembers what it was asked to make.
#[derive(Default)]
struct Service {
    status: Mutex<Option<ClusterStatus>>,
    created: Mutex<Vec<CreatePool>>,
    /// Schedules of scrubs and windows in seconds.
    scrubs: Mutex<Vec<(String, u64)>>,
}

#[async_trait]
impl ClusterApi for Service {
    async fn status(&self, _: &Target) -> Result<ClusterStatus, ApiError> {
        let status = self.status.lock().expect("status").clone();
        status.ok_or_else(|| ApiError::Unreachable("refused".into()))
    }

    async fn create_pool(&self, _: &Target, pool: &CreatePool) -> Result<(), ApiError> {
        self.created.lock().expect("created").push(pool.clone());
        Ok(())
    }

    async fn set_scrub_schedule(
        &self,
        _: &Target,
        schedule: &str,
        window_secs: u64,
    ) -> Result<(), ApiError> {
        if schedule.starts_with("99") {
            return Err(ApiError::Refused(format!("schedule is {schedule:?}")));
        }
        self.scrubs.lock().expect("scrubs").push((schedule.to_owned(), window_secs));
        let mut status = self.status.lock().expect("status");
        let status = status.as_mut().expect("who is asked answers");
        (status.scrub_schedule, status.scrub_window_secs) = (schedule.to_owned(), window_secs);
        Ok(())
    }

    async fn delete_pool(&self, _: &Target, _: &str) -> Result<(), ApiError> {
        Ok(())
    }
}

struct Scene {
    server: ApiServer,
    service: Arc<Service>,
    context: Arc<Context>,
}

impl Scene {
    fn new(node_count: usize) -> Self {
        let server = ApiServer::default();
        server.put(CLUSTER, short_form());
        for node in nodes(node_count) {
            let value = serde_json::to_value(&node).expect("JSON");
            server.put(&format!("/api/v1/nodes/{}", node.name_any()), value);
        }
        let service = Arc::new(Service::default());
        let settings = Settings {
            namespace: "curve-system".into(),
            image: OWN_IMAGE.into(),
            family: AddressFamily::V4,
        };
        let (metrics, _) = Metrics::register();
        let context = Context::new(server.client(), settings, service.clone(), metrics);
        Self { server, service, context: Arc::new(context) }
    }

    async fn reconcile(&self) {
        let cluster = self.server.get(CLUSTER).expect("the cluster");
        let cluster = serde_json::from_value(cluster).expect("a CurveCluster");
        reconcile(Arc::new(cluster), self.context.clone()).await.expect("reconciles");
    }

    async fn fail_to_reconcile(&self) -> String {
        let cluster = self.server.get(CLUSTER).expect("the cluster");
        let cluster = serde_json::from_value(cluster).expect("a CurveCluster");
        let result = reconcile(Arc::new(cluster), self.context.clone()).await;
        curve_wire::with_causes(&result.expect_err("it fails"))
    }

    /// Changes what is stored at `path`.
    fn edit(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.server.get(path).expect("there");
        edit(&mut object);
        self.server.put(path, object);
    }

    fn condition(&self, kind: &str) -> (Value, String) {
        let conditions = self.status()["conditions"].clone();
        let mut conditions = conditions.as_array().expect("conditions").iter();
        let condition = conditions.find(|c| c["type"] == kind).expect("the condition");
        (condition["reason"].clone(), condition["message"].to_string())
    }

    fn status(&self) -> Value {
        self.server.get(CLUSTER).expect("the cluster")["status"].clone()
    }

    /// What the StatefulSet controller and the kubelets would do.
    fn start_pods(&self) {
        for ordinal in 0..3 {
            let key = ClusterKey { namespace: "curve".into(), name: "demo".into() };
            let mut labels = key.labels();
            labels.insert(LABEL_COMPONENT.into(), "mds".into());
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": format!("demo-mds-{ordinal}"), "namespace": "curve", "labels": labels,
                },
                "status": {"podIP": format!("10.0.0.{ordinal}")},
            });
            self.server.put(&format!("/api/v1/namespaces/curve/pods/demo-mds-{ordinal}"), pod);
        }
        for path in self.server.paths("/statefulsets/") {
            let mut set = self.server.get(&path).expect("a set");
            set["metadata"]["generation"] = json!(1);
            set["status"] = json!({"observedGeneration": 1, "replicas": 3});
            self.server.put(&path, set);
        }
    }

    fn serve(&self, status: ClusterStatus) {
        *self.service.status.lock().expect("status") = Some(status);
    }
}

#[tokio::test]
async fn everything_that_is_wanted_is_applied() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    let cluster: CurveCluster =
        serde_json::from_value(scene.server.get(CLUSTER).expect("there")).expect("a CurveCluster");
    let validated = validate::validate(&cluster, OWN_IMAGE).expect("valid");
    let mut wanted = vec![
        "/secrets/demo-ca".to_owned(),
        "/secrets/demo-mds-tls".into(),
        "/secrets/demo-chunkserver-tls".into(),
        "/secrets/demo-admin".into(),
        "/serviceaccounts/demo-mds".into(),
        "/serviceaccounts/demo-chunkserver".into(),
        "/poddisruptionbudgets/demo-mds".into(),
        "/poddisruptionbudgets/demo-chunkserver".into(),
    ];
    for set in validated.sets() {
        let name = validated.set_name(set);
        wanted.extend([format!("/services/{name}"), format!("/statefulsets/{name}")]);
        wanted.extend((0..set.count).map(|ordinal| {
            format!("/persistentvolumes/{}", validated.volume_name(set, Kept::Data, ordinal))
        }));
    }
    for path in wanted {
        assert_eq!(scene.server.paths(&path).len(), 1, "{path}");
    }
    let finalizers = &scene.server.get(CLUSTER).expect("there")["metadata"]["finalizers"];
    assert_eq!(*finalizers, json!([FINALIZER]));
    assert_eq!(scene.status()["phase"], "Progressing");
}

#[tokio::test]
async fn a_cluster_whose_service_answers_gets_a_pool_connections_and_becomes_ready() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    scene.start_pods();
    let mut without_pool = engine();
    without_pool.pools.clear();
    scene.serve(without_pool);
    scene.reconcile().await;
    let created = scene.service.created.lock().expect("created").clone();
    assert_eq!(created.len(), 1);
    assert_eq!((created[0].name.as_str(), created[0].replicas), ("default", 3));

    scene.serve(engine());
    scene.start_pods();
    scene.reconcile().await;
    assert_eq!(scene.status()["phase"], "Ready");
    for name in ["csi", "node-node1", "node-node2", "node-node3"] {
        let path = format!("/api/v1/namespaces/curve-system/secrets/curve-curve-demo-{name}");
        let secret = scene.server.get(&path).expect(name);
        for key in ["ca.crt", "tls.crt", "tls.key", "client.toml", "cluster-uuid"] {
            assert!(secret["data"][key].is_string(), "{name} {key}");
        }
    }
    let created = scene.service.created.lock().expect("created").len();
    assert_eq!(created, 1);
}

#[tokio::test]
async fn each_account_may_read_its_own_connections_and_no_other_secret() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    assert_eq!(scene.server.paths("/roles/"), [] as [&str; 0], "nothing to read yet");
    scene.start_pods();
    scene.serve(engine());
    scene.reconcile().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/curve-system";
    let nodes = ["node1", "node2", "node3"].map(|node| format!("curve-curve-demo-node-{node}"));
    for (name, account, secrets) in [
        ("curve-curve-demo-csi", "curve-csi-controller", json!(["curve-curve-demo-csi"])),
        ("curve-curve-demo-node", "curve-agent", json!(nodes)),
    ] {
        let role = scene.server.get(&format!("{rbac}/roles/{name}")).expect(name);
        let rules = json!([{
            "apiGroups": [""], "resources": ["secrets"], "resourceNames": secrets, "verbs": ["get"],
        }]);
        assert_eq!(role["rules"], rules);
        let binding = scene.server.get(&format!("{rbac}/rolebindings/{name}")).expect(name);
        assert_eq!(binding["roleRef"]["name"], *name);
        assert_eq!(binding["subjects"].as_array().map(Vec::len), Some(1));
        assert_eq!(binding["subjects"][0]["name"], *account);
    }
    assert_eq!(scene.server.paths("/roles/").len(), 2);

    scene.server.remove("/api/v1/nodes/node3");
    scene.reconcile().await;
    let role = scene.server.get(&format!("{rbac}/roles/curve-curve-demo-node")).expect("there");
    assert_eq!(role["rules"][0]["resourceNames"], json!(nodes[..2]), "the node has left");
}

#[tokio::test]
async fn keys_and_certificates_stay_from_one_look_to_the_next() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    scene.start_pods();
    scene.serve(engine());
    scene.reconcile().await;
    let secrets = |scene: &Scene| -> Vec<Value> {
        let paths = scene.server.paths("/secrets/");
        paths.iter().map(|path| scene.server.get(path).expect("there")["data"].clone()).collect()
    };
    let before = secrets(&scene);
    scene.server.take_writes();
    scene.start_pods();
    scene.reconcile().await;
    assert_eq!(secrets(&scene), before);
    let writes = scene.server.take_writes();
    assert!(writes.iter().all(|write| !write.contains("/curve-system/secrets/")), "{writes:?}");
    assert!(writes.iter().all(|write| !write.ends_with("/status")), "{writes:?}");
}

#[tokio::test]
async fn scrubs_run_when_the_spec_says_and_a_refusal_is_shown() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    scene.start_pods();
    scene.serve(engine());
    scene.reconcile().await;
    let set = || scene.service.scrubs.lock().expect("scrubs").clone();
    assert!(set().is_empty(), "what the command said stays");
    scene.edit(CLUSTER, |cluster| cluster["spec"]["scrub"] = json!({"schedule": "0 1 * * *"}));
    scene.reconcile().await;
    scene.reconcile().await;
    assert_eq!(set(), [("0 1 * * *".to_owned(), 5 * 3600)]);
    scene.edit(CLUSTER, |cluster| cluster["spec"]["scrub"]["window"] = json!("30m"));
    scene.reconcile().await;
    assert_eq!(set()[1..], [("0 1 * * *".to_owned(), 1800)]);
    scene.edit(CLUSTER, |cluster| cluster["spec"]["scrub"]["schedule"] = json!("99 1 * * *"));
    scene.reconcile().await;
    let (reason, message) = scene.condition("Progressing");
    assert_eq!(reason, "ScrubRefused");
    assert!(message.contains("spec.scrub: schedule is"), "{message}");
    assert_eq!(set().len(), 2);
}

#[tokio::test]
async fn a_pool_that_somebody_made_replaces_the_default_one() {
    let scene = Scene::new(3);
    let pool = json!({
        "apiVersion": "curve.io/v1alpha1", "kind": "CurvePool",
        "metadata": {"name": "fast", "namespace": "curve"}, "spec": {"cluster": "demo"},
    });
    scene.server.put("/apis/curve.io/v1alpha1/namespaces/curve/curvepools/fast", pool);
    scene.reconcile().await;
    scene.start_pods();
    let mut without_pool = engine();
    without_pool.pools.clear();
    scene.serve(without_pool);
    scene.reconcile().await;
    assert!(scene.service.created.lock().expect("created").is_empty());
}

#[tokio::test]
async fn too_few_nodes_are_told_and_the_rest_is_still_made() {
    let scene = Scene::new(2);
    scene.reconcile().await;
    let status = scene.status();
    assert_eq!(status["phase"], "Pending");
    let conditions = status["conditions"].as_array().expect("conditions");
    let progressing = conditions.iter().find(|c| c["type"] == "Progressing").expect("there");
    assert_eq!(progressing["reason"], "NotEnoughNodes");
    let set = scene.server.paths("/statefulsets/demo-mds");
    assert_eq!(scene.server.get(&set[0]).expect("there")["spec"]["replicas"], 2);
    assert_eq!(scene.server.paths("/events").len(), 1);
}

#[tokio::test]
async fn an_mds_whose_node_is_gone_starts_anew_on_a_free_one() {
    let scene = Scene::new(4);
    scene.reconcile().await;
    scene.start_pods();
    scene.serve(engine());
    scene.reconcile().await;
    let volume = "/api/v1/persistentvolumes/curve.curve.demo-mds-1";
    let node_of = |scene: &Scene| {
        scene.server.get(volume).map(|v| v["metadata"]["annotations"]["curve.io/node"].clone())
    };
    let lost = node_of(&scene).expect("bound").as_str().expect("a node").to_owned();

    let path = format!("/api/v1/nodes/{lost}");
    let mut node = scene.server.get(&path).expect("there");
    node["status"]["conditions"][0]["status"] = json!("Unknown");
    node["status"]["conditions"][0]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
    scene.server.put(&path, node);
    let mut two_of_three = engine();
    two_of_three.mds[1].up = false;
    two_of_three.mds[2].up = false;
    scene.serve(two_of_three.clone());
    scene.reconcile().await;
    assert!(node_of(&scene).is_some(), "with another MDS down, this one is needed");

    two_of_three.mds[2].up = true;
    scene.serve(two_of_three);
    scene.reconcile().await;
    assert_eq!(node_of(&scene), None);
    assert_eq!(scene.server.paths("/pods/demo-mds-1"), [] as [&str; 0]);
    assert_eq!(scene.server.paths("/pods/demo-mds-").len(), 2);
    scene.reconcile().await;
    let now = node_of(&scene).expect("bound anew");
    assert!(now != json!(lost) && now.is_string(), "{now}");
    // Chunkservers stay: their data was rebuilt elsewhere, or comes back with the node.
    assert_eq!(scene.server.paths("/persistentvolumes/").len(), 6);
}

#[tokio::test]
async fn the_name_of_another_clusters_connection_is_not_taken_over() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    scene.start_pods();
    scene.serve(engine());
    let foreign = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "curve-curve-demo-csi", "namespace": "curve-system", "labels": {
            "curve.io/cluster": "mo", "curve.io/cluster-namespace": "curve-de",
        }},
    });
    let path = "/api/v1/namespaces/curve-system/secrets/curve-curve-demo-csi";
    scene.server.put(path, foreign.clone());
    let cluster = serde_json::from_value(scene.server.get(CLUSTER).expect("there")).expect("one");
    let error = reconcile(Arc::new(cluster), scene.context.clone()).await.expect_err("foreign");
    assert!(error.to_string().contains("belongs to another cluster (curve-de/mo)"), "{error}");
    assert_eq!(scene.server.get(path), Some(foreign));
    let conditions = scene.status()["conditions"].clone();
    assert!(conditions.to_string().contains("ReconcileError"), "{conditions}");
}

#[tokio::test]
async fn deletion_with_retain_stops_processes_and_keeps_data_and_keys() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    scene.start_pods();
    scene.serve(engine());
    scene.reconcile().await;
    let mut cluster = scene.server.get(CLUSTER).expect("there");
    cluster["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    scene.server.put(CLUSTER, cluster);
    scene.reconcile().await;
    assert_eq!(scene.server.paths("/statefulsets/"), [] as [&str; 0]);
    for kind in ["secrets", "roles", "rolebindings"] {
        let left = scene.server.paths(&format!("/curve-system/{kind}/"));
        assert_eq!(left, [] as [&str; 0]);
    }
    assert_eq!(scene.server.paths("/persistentvolumes/").len(), 6);
    assert_eq!(scene.server.paths("/secrets/demo-ca").len(), 1);
    assert_eq!(scene.server.paths("/secrets/demo-mds-tls").len(), 1);
    assert_eq!(scene.server.get(CLUSTER).expect("there")["metadata"]["finalizers"], json!([]));
}

#[tokio::test]
async fn a_released_volume_is_freed_for_the_cluster_that_comes_back() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    let path = "/api/v1/persistentvolumes/curve.curve.demo-default-0";
    let mut volume = scene.server.get(path).expect("there");
    volume["spec"]["claimRef"]["uid"] = json!("gone");
    volume["status"] = json!({"phase": "Released"});
    scene.server.put(path, volume);
    scene.reconcile().await;
    assert_eq!(scene.server.get(path).expect("there")["spec"]["claimRef"]["uid"], Value::Null);
}

#[tokio::test]
async fn what_somebody_else_made_under_a_name_of_ours_is_neither_changed_nor_deleted() {
    for (version, kind, path) in [
        ("v1", "Secret", "/api/v1/namespaces/curve/secrets/demo-ca"),
        ("v1", "Secret", "/api/v1/namespaces/curve/secrets/demo-mds-tls"),
        ("v1", "Secret", "/api/v1/namespaces/curve/secrets/demo-chunkserver-tls"),
        ("v1", "Secret", "/api/v1/namespaces/curve/secrets/demo-admin"),
        ("v1", "Service", "/api/v1/namespaces/curve/services/demo-default"),
        ("v1", "ServiceAccount", "/api/v1/namespaces/curve/serviceaccounts/demo-mds"),
        ("v1", "PersistentVolume", "/api/v1/persistentvolumes/curve.curve.demo-mds-0"),
        ("apps/v1", "StatefulSet", "/apis/apps/v1/namespaces/curve/statefulsets/demo-mds"),
    ] {
        let scene = Scene::new(3);
        let name = path.rsplit('/').next();
        let foreign = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
        scene.server.put(path, foreign.clone());
        let error = scene.fail_to_reconcile().await;
        assert!(error.contains("belongs to no cluster"), "{path}: {error}");
        assert_eq!(scene.condition("Progressing").0, "ReconcileError");
        let writes = scene.server.take_writes();
        let harmless = |write: &String| write.starts_with("POST ") || write.contains(CLUSTER);
        assert!(writes.iter().all(harmless), "{path}: {writes:?}");

        scene.edit(CLUSTER, |cluster| {
            cluster["spec"]["deletionPolicy"] = json!("Destroy");
            cluster["spec"]["destroyConfirmation"] = json!("demo");
            cluster["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
        scene.reconcile().await;
        assert_eq!(scene.server.get(path), Some(foreign), "{path}");
        assert_eq!(scene.server.get(CLUSTER).expect("there")["metadata"]["finalizers"], json!([]));
    }
}

#[tokio::test]
async fn the_health_is_told_also_while_the_cluster_cannot_be_reconciled() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    scene.start_pods();
    scene.serve(engine());
    scene.reconcile().await;
    assert_eq!(scene.status()["health"], "OK");

    let foreign = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
    let path = "/api/v1/namespaces/curve-system/secrets/curve-curve-demo-csi";
    scene.server.put(path, foreign);
    let mut lost = engine();
    lost.health = curve_wire::proto::Health::Warn.into();
    lost.devices[1].up = false;
    (lost.copysets_whole, lost.copysets_degraded) = (0, 8);
    scene.serve(lost);
    scene.fail_to_reconcile().await;
    assert_eq!(
        (&scene.status()["health"], &scene.status()["disks"]),
        (&json!("Warn"), &json!("2/3"))
    );
    assert_eq!(scene.condition("Progressing").0, "ReconcileError");
    assert_eq!(scene.condition("Degraded").0, "ChunkserversDown");

    scene.serve(engine());
    scene.edit(CLUSTER, |cluster| cluster["spec"]["nodeSets"][0]["count"] = json!(0));
    scene.reconcile().await;
    assert_eq!(
        (&scene.status()["phase"], &scene.status()["health"]),
        (&json!("Failed"), &json!("OK"))
    );
    assert_eq!(scene.condition("Progressing").0, "InvalidSpec");
    assert_eq!(scene.condition("Degraded").0, "Healthy");
}

#[tokio::test]
async fn a_placement_that_rules_out_a_node_with_data_is_not_applied() {
    let scene = Scene::new(3);
    scene.reconcile().await;
    scene.start_pods();
    scene.serve(engine());
    let label = |node: &str, value: &str| {
        scene.edit(&format!("/api/v1/nodes/{node}"), |node| {
            node["metadata"]["labels"]["disk"] = json!(value);
        });
    };
    let selector = || {
        let path = scene.server.paths("/statefulsets/demo-default").remove(0);
        scene.server.get(&path).expect("a set")["spec"]["template"]["spec"]["nodeSelector"].clone()
    };
    label("node1", "ssd");
    label("node2", "ssd");
    scene.edit(CLUSTER, |cluster| {
        let placement = json!({"nodeSelector": {"disk": "ssd"}});
        cluster["spec"]["nodeSets"][0]["placement"] = placement;
    });
    scene.reconcile().await;
    assert_eq!(selector(), Value::Null);
    let (reason, message) = scene.condition("Progressing");
    assert_eq!(reason, "PlacementMisfit");
    assert!(message.contains("default-2 on node3 (no label disk=ssd)"), "{message}");

    label("node3", "ssd");
    scene.reconcile().await;
    assert_eq!(selector(), json!({"disk": "ssd"}));
    assert_eq!(scene.condition("Progressing").0, "UpToDate");
    // A node that changes later is not a change of the placement.
    label("node3", "hdd");
    scene.reconcile().await;
    assert_eq!(scene.condition("Progressing").0, "UpToDate");
}
