use serde_json::json;

use super::*;
use crate::fixtures::{at, engine, pod, stateful_set, validated_with};

struct Scene {
    old: CurveClusterStatus,
    engine: Engine,
    shortages: Vec<String>,
    rollout: RolloutStep,
    second: i64,
}

impl Scene {
    fn whole() -> Self {
        Self {
            old: CurveClusterStatus::default(),
            engine: Ok(engine()),
            shortages: Vec::new(),
            rollout: RolloutStep::Done,
            second: 100,
        }
    }

    fn see(&self) -> Look<'_> {
        let now = at(self.second);
        Look { generation: Some(4), old: &self.old, engine: &self.engine, now }
    }

    /// The status, and the events of its change from the one before, which it replaces.
    fn look(&mut self) -> (CurveClusterStatus, Vec<Notice>) {
        let mut set = stateful_set("demo-default", Some("default"));
        set.status.as_mut().expect("status").ready_replicas = Some(3);
        let pods: Vec<Pod> = (0..3).map(|i| pod("demo-default", i, "new")).collect();
        let inputs = StatusInputs {
            look: self.see(),
            stateful_sets: &[set],
            pods: &pods,
            shortages: &self.shortages,
            misfits: &[],
            scrub_refused: None,
            rollout: &self.rollout,
        };
        let status = summarize(&validated_with(json!({})), &inputs);
        let events = plan_events(&self.old, &status);
        self.old = status.clone();
        (status, events)
    }
}

fn condition(status: &CurveClusterStatus, kind: &str) -> (String, String, String) {
    let condition = reasons(&status.conditions)[kind].clone();
    (condition.status, condition.reason, condition.message)
}

fn event_reasons(events: &[Notice]) -> Vec<&str> {
    events.iter().map(|event| event.reason).collect()
}

#[test]
fn a_whole_cluster_is_ready_with_the_columns_of_the_table() {
    let (status, events) = Scene::whole().look();
    let columns = [&status.phase, &status.health, &status.disks, &status.capacity, &status.used];
    assert_eq!(columns, ["Ready", "OK", "3/3", "30Gi", "2%"]);
    assert_eq!(status.version, "0.1.0");
    assert_eq!(status.cluster_id, "07070707-0707-0707-0707-070707070707");
    assert_eq!(status.observed_generation, Some(4));
    let set = NodeSetStatus { name: "default".into(), count: 3, ready: 3, updated: 3 };
    assert_eq!(status.node_sets, [set]);
    assert_eq!(condition(&status, "Available").0, "True");
    assert_eq!(condition(&status, "Progressing").0, "False");
    let degraded = condition(&status, "Degraded");
    assert_eq!(degraded.0, "False");
    assert_eq!(degraded.2, "8 copysets are whole, 3 chunkservers are up");
    assert_eq!(event_reasons(&events), ["Ready"]);
    for condition in &status.conditions {
        assert_eq!(condition.observed_generation, Some(4));
    }
}

#[test]
fn loss_and_repair_are_told_with_numbers_and_once() {
    let mut scene = Scene::whole();
    scene.look();
    let mut lost = engine();
    lost.health = Health::Warn.into();
    lost.devices[1].up = false;
    lost.devices[1].silent_ms = 10_000;
    (lost.copysets_whole, lost.copysets_degraded) = (0, 8);
    scene.engine = Ok(lost.clone());
    let (status, events) = scene.look();
    assert_eq!((status.phase.as_str(), status.health.as_str()), ("Ready", "Warn"));
    assert_eq!(status.disks, "2/3");
    let (degraded, reason, message) = condition(&status, "Degraded");
    assert_eq!((degraded.as_str(), reason.as_str()), ("True", "ChunkserversDown"));
    assert!(
        message.starts_with("chunkserver demo-default-1 is down since 22:14:50 UTC"),
        "{message}"
    );
    assert!(message.contains("8 of 8 copysets have fewer replicas"), "{message}");
    assert_eq!(event_reasons(&events), ["ChunkserverDown", "CopysetsDegraded"]);
    scene.second += 10;
    assert_eq!(event_reasons(&scene.look().1), [] as [&str; 0]);

    // Rebuilt elsewhere while the chunkserver stays away.
    lost.devices[1].out = true;
    lost.devices[1].replicas = 0;
    (lost.copysets_whole, lost.copysets_degraded) = (8, 0);
    lost.health = Health::Ok.into();
    scene.engine = Ok(lost);
    let (status, events) = scene.look();
    assert_eq!(condition(&status, "Degraded").0, "False");
    assert_eq!(event_reasons(&events), ["CopysetsWhole"]);
    assert!(events[0].message.contains("what demo-default-1 held was rebuilt"), "{events:?}");

    scene.engine = Ok(engine());
    let (status, events) = scene.look();
    assert_eq!(event_reasons(&events), ["ChunkserverUp"]);
    assert!(status.down.is_empty());
}

#[test]
fn a_device_that_came_back_blank_under_another_id_counts_as_up() {
    let mut scene = Scene::whole();
    let mut status = engine();
    let mut old = status.devices[1].clone();
    (old.up, old.device_id) = (false, vec![99; 16].into());
    status.devices.push(old);
    scene.engine = Ok(status);
    let (status, _) = scene.look();
    assert_eq!(status.disks, "3/3");
    assert!(status.down.is_empty());
}

#[test]
fn a_silent_metadata_service_keeps_what_was_known() {
    let mut scene = Scene::whole();
    scene.look();
    scene.engine = Err("connection refused".into());
    let (status, events) = scene.look();
    assert_eq!((status.phase.as_str(), status.health.as_str()), ("Progressing", "Unknown"));
    assert_eq!(status.capacity, "30Gi");
    assert!(!status.cluster_id.is_empty());
    let (available, reason, message) = condition(&status, "Available");
    assert_eq!((available.as_str(), reason.as_str()), ("False", "MdsUnreachable"));
    assert!(message.ends_with("connection refused"), "{message}");
    assert_eq!(condition(&status, "Degraded").0, "Unknown");
    assert_eq!(event_reasons(&events), ["MdsUnreachable"]);
}

#[test]
fn a_cluster_without_places_is_pending_and_says_how_many() {
    let mut scene = Scene::whole();
    scene.engine = Err("no mds pod has an address yet".into());
    scene.shortages = vec!["2 of 3 pods of mds are placed".into()];
    let (status, events) = scene.look();
    assert_eq!(status.phase, "Pending");
    let (progressing, reason, message) = condition(&status, "Progressing");
    assert_eq!((progressing.as_str(), reason.as_str()), ("True", "NotEnoughNodes"));
    assert_eq!(message, "2 of 3 pods of mds are placed");
    assert_eq!(event_reasons(&events), ["NotEnoughNodes"]);
}

#[test]
fn chunkservers_that_are_still_to_join_are_named() {
    let mut scene = Scene::whole();
    let mut status = engine();
    status.devices.truncate(2);
    (status.copysets_whole, status.pools) = (0, Vec::new());
    scene.engine = Ok(status);
    let (status, _) = scene.look();
    assert_eq!((status.phase.as_str(), status.disks.as_str()), ("Progressing", "2/3"));
    let (_, reason, message) = condition(&status, "Progressing");
    assert_eq!(reason, "Creating");
    assert_eq!(message, "1 of 3 chunkservers are still to join: demo-default-2");
    assert_eq!(condition(&status, "Available").1, "NoPoolYet");
}

#[test]
fn copysets_without_quorum_make_the_cluster_unavailable() {
    let mut scene = Scene::whole();
    scene.look();
    let mut lost = engine();
    lost.health = Health::Error.into();
    (lost.copysets_whole, lost.copysets_unavailable) = (6, 2);
    scene.engine = Ok(lost);
    let (status, events) = scene.look();
    assert_eq!(condition(&status, "Available").2, "2 of 8 copysets have no quorum");
    assert_eq!(status.health, "Error");
    assert_eq!(event_reasons(&events), ["CopysetsDegraded", "CopysetsUnavailable"]);
}

#[test]
fn a_pool_that_fills_up_is_told_once_and_again_when_it_is_nearly_full() {
    let mut scene = Scene::whole();
    scene.look();
    let mut filling = |health: Health, sentence: &str| {
        let mut engine = engine();
        engine.health = health.into();
        engine.pools[0].fill = health.into();
        engine.messages = vec![sentence.to_owned()];
        scene.engine = Ok(engine);
        scene.look()
    };
    let sentence = "pool \"default\" is filling up: 8 GiB of 10 GiB are used";
    let (status, events) = filling(Health::Warn, sentence);
    let (degraded, reason, message) = condition(&status, "Degraded");
    assert_eq!((degraded.as_str(), reason.as_str()), ("True", "PoolFillingUp"));
    assert_eq!((message.as_str(), events[0].message.as_str()), (sentence, sentence));
    assert_eq!(event_reasons(&events), ["PoolFillingUp"]);
    let (_, events) = filling(Health::Warn, "pool \"default\" is filling up: 8.1 GiB of 10 GiB");
    assert_eq!(event_reasons(&events), [] as [&str; 0]);
    let (status, events) = filling(Health::Error, "pool \"default\" is nearly full");
    assert_eq!(condition(&status, "Available").0, "True");
    assert_eq!(event_reasons(&events), ["PoolNearlyFull"]);
}

#[test]
fn a_refused_spec_fails_without_touching_what_is_known() {
    let mut scene = Scene::whole();
    let (old, _) = scene.look();
    let invalid = Invalid { field: "spec.x".into(), problem: "is odd".into() };
    let status = refuse(&scene.see(), &invalid);
    assert_eq!(status.phase, "Failed");
    assert_eq!(status.capacity, "30Gi");
    assert_eq!(condition(&status, "Progressing").2, "spec.x: is odd");
    assert_eq!(event_reasons(&plan_events(&old, &status)), ["InvalidSpec"]);
}

#[test]
fn a_failure_to_reconcile_hides_no_failure_of_the_cluster() {
    let mut scene = Scene::whole();
    let (old, _) = scene.look();
    let status = interrupted(&scene.see(), "apply Secret x");
    assert_eq!((status.phase.as_str(), status.disks.as_str()), ("Ready", "3/3"));
    assert_eq!(event_reasons(&plan_events(&old, &status)), ["ReconcileError"]);

    let mut lost = engine();
    lost.health = Health::Error.into();
    lost.devices[1].up = false;
    (lost.copysets_whole, lost.copysets_degraded, lost.copysets_unavailable) = (0, 6, 2);
    scene.engine = Ok(lost);
    let invalid = Invalid { field: "spec.x".into(), problem: "is odd".into() };
    let (refused, interrupted) =
        (refuse(&scene.see(), &invalid), interrupted(&scene.see(), "apply Secret x"));
    assert_eq!(condition(&interrupted, "Progressing").2, "apply Secret x");
    assert_eq!((refused.phase.as_str(), interrupted.phase.as_str()), ("Failed", "Progressing"));
    for status in [refused, interrupted] {
        assert_eq!((status.health.as_str(), status.disks.as_str()), ("Error", "2/3"));
        assert_eq!(condition(&status, "Available").1, "CopysetsUnavailable");
        let (_, reason, message) = condition(&status, "Degraded");
        assert_eq!(reason, "CopysetsUnavailable");
        assert!(message.contains("after recovery.outAfter without it"), "{message}");
        let events = plan_events(&old, &status);
        assert!(event_reasons(&events).starts_with(&["ChunkserverDown", "CopysetsDegraded"]));
        assert!(event_reasons(&events).contains(&"CopysetsUnavailable"), "{events:?}");
    }

    scene.engine = Err("connection refused".into());
    let status = super::interrupted(&scene.see(), "apply Secret x");
    assert_eq!((status.phase.as_str(), status.health.as_str()), ("Progressing", "Unknown"));
    assert_eq!(condition(&status, "Available").1, "MdsUnreachable");
}

#[test]
fn a_second_look_at_the_same_cluster_changes_nothing() {
    let mut scene = Scene::whole();
    let (first, _) = scene.look();
    scene.second += 60;
    let (second, events) = scene.look();
    assert_eq!(first, second);
    assert!(events.is_empty());
}
