use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::fixtures::{at, engine, pod, stateful_set};

const LATER: i64 = 1000;

fn sets() -> Vec<StatefulSet> {
    vec![stateful_set("demo-mds", None), stateful_set("demo-default", Some("default"))]
}

fn pods(revision: &str) -> Vec<Pod> {
    let set = |name: &str| (0..3).map(|i| pod(name, i, revision)).collect::<Vec<_>>();
    [set("demo-mds"), set("demo-default")].concat()
}

/// The step while no node is away.
fn plan(sets: &[StatefulSet], pods: &[Pod], engine: &Engine, now: Timestamp) -> RolloutStep {
    plan_rollout(sets, pods, engine, &BTreeSet::new(), now)
}

/// The replicas of this chunkserver were all made anew elsewhere.
fn replaced(ordinal: usize) -> Engine {
    let mut status = engine();
    let device = &mut status.devices[ordinal];
    (device.up, device.out, device.replicas) = (false, true, 0);
    Ok(status)
}

fn set_updated(pod: &mut Pod) {
    pod.labels_mut().insert(REVISION_LABEL.into(), "new".into());
}

fn restart(pod: &str) -> RolloutStep {
    RolloutStep::Restart { pod: pod.into() }
}

fn reason(step: RolloutStep) -> String {
    match step {
        RolloutStep::Wait { reason } => reason,
        other => panic!("expected to wait, got {other:?}"),
    }
}

fn set_unready(pod: &mut Pod) {
    let conditions = pod.status.as_mut().expect("status").conditions.as_mut();
    conditions.expect("conditions")[0].status = "False".into();
}

#[test]
fn nothing_is_restarted_when_all_run_the_current_spec() {
    assert_eq!(plan(&sets(), &pods("new"), &Ok(engine()), at(LATER)), RolloutStep::Done);
}

#[test]
fn the_metadata_service_goes_first_and_its_leader_last() {
    let mut pods = pods("old");
    let mut order = Vec::new();
    while let RolloutStep::Restart { pod } = plan(&sets(), &pods, &Ok(engine()), at(LATER)) {
        let restarted = pods.iter_mut().find(|p| p.name_any() == pod).expect("a pod");
        set_updated(restarted);
        order.push(pod);
    }
    let expected = ["mds-1", "mds-2", "mds-0", "default-0", "default-1", "default-2"];
    assert_eq!(order, expected.map(|name| format!("demo-{name}")));
}

#[test]
fn the_next_pod_waits_for_whole_copysets() {
    let mut status = engine();
    (status.copysets_whole, status.copysets_degraded) = (5, 3);
    let step = plan(&sets(), &pods("old"), &Ok(status), at(LATER));
    assert_eq!(reason(step), "3 of 8 copysets are not whole");
}

#[test]
fn the_next_pod_waits_for_a_chunkserver_that_is_down() {
    let mut status = engine();
    status.devices[1].up = false;
    let step = plan(&sets(), &pods("old"), &Ok(status.clone()), at(LATER));
    assert_eq!(reason(step), "chunkserver demo-default-1 is down");
    // Once its replicas are all made anew, its pod holds nothing up.
    status.devices[1].out = true;
    status.devices[1].replicas = 0;
    let mut pods = pods("old");
    set_unready(&mut pods[4]);
    let step = plan(&sets(), &pods, &Ok(status), at(LATER));
    assert_eq!(step, restart("demo-mds-1"));
}

#[test]
fn the_next_pod_waits_until_the_last_one_has_settled() {
    let mut pods = pods("old");
    set_unready(&mut pods[3]);
    let step = plan(&sets(), &pods, &Ok(engine()), at(LATER));
    assert_eq!(reason(step), "demo-default-0 is not ready");
    let step = plan(&sets(), &self::pods("old"), &Ok(engine()), at(1));
    assert_eq!(reason(step), "demo-mds-0 has just become ready");
}

#[test]
fn nothing_healthy_is_restarted_while_the_metadata_service_is_silent() {
    let step = plan(&sets(), &pods("old"), &Err("timeout".into()), at(LATER));
    assert_eq!(reason(step), "the metadata service does not answer: timeout");
}

#[test]
fn a_pod_that_cannot_start_is_replaced_at_once() {
    let mut pods = pods("old");
    set_unready(&mut pods[5]);
    let waiting = json!([{
        "name": "chunkserver", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff"}},
    }]);
    pods[5].status.as_mut().expect("status").container_statuses =
        serde_json::from_value(waiting).expect("statuses");
    let step = plan(&sets(), &pods, &Err("timeout".into()), at(LATER));
    assert_eq!(step, restart("demo-default-2"));
}

#[test]
fn an_older_template_is_not_judged_by() {
    let mut sets = sets();
    sets[0].status.as_mut().expect("status").observed_generation = Some(1);
    let step = plan(&sets, &pods("old"), &Ok(engine()), at(LATER));
    assert_eq!(step, RolloutStep::Settling);
}

#[test]
fn an_updated_chunkserver_that_does_not_start_stops_the_rollout_also_once_it_was_replaced() {
    let mut pods = pods("old");
    pods[..4].iter_mut().for_each(set_updated);
    set_unready(&mut pods[3]);
    let expected = "demo-default-0 has the current spec and is not ready";
    let mut down = engine();
    down.devices[0].up = false;
    (down.copysets_whole, down.copysets_degraded) = (0, 8);
    for engine in [Ok(down), replaced(0), Err("timeout".into())] {
        assert_eq!(reason(plan(&sets(), &pods, &engine, at(LATER))), expected);
    }
    // Nor does the next one go when the pod cannot even be made.
    pods.remove(3);
    let mut sets = sets();
    let spec = json!({"replicas": 3, "selector": {}, "template": {}});
    sets[1].spec = Some(serde_json::from_value(spec).expect("a spec"));
    assert_eq!(reason(plan(&sets, &pods, &replaced(0), at(LATER))), expected);
}

#[test]
fn a_pod_whose_node_is_away_holds_nothing_up_once_it_was_replaced() {
    let mut pods = pods("old");
    pods[..4].iter_mut().for_each(set_updated);
    set_unready(&mut pods[3]);
    let homeless = BTreeSet::from(["demo-default-0".to_owned()]);
    let plan = |pods: &[Pod]| plan_rollout(&sets(), pods, &replaced(0), &homeless, at(LATER));
    assert_eq!(plan(&pods), restart("demo-default-1"));
    // The same when the node went before the update: its pod stops only when the node is back.
    pods[3] = pod("demo-default", 0, "old");
    set_unready(&mut pods[3]);
    assert_eq!(plan(&pods), restart("demo-default-0"));
    pods[3].metadata.deletion_timestamp = Some(Time(at(1)));
    assert_eq!(plan(&pods), restart("demo-default-1"));
    pods[4..].iter_mut().for_each(set_updated);
    assert_eq!(reason(plan(&pods)), "demo-default-0 is stopping");
}

#[test]
fn a_disk_that_was_dead_before_the_spec_changed_does_not_stop_the_rollout() {
    let mut pods = pods("old");
    pods[..4].iter_mut().for_each(set_updated);
    set_unready(&mut pods[3]);
    pods[3].metadata.creation_timestamp = Some(Time(at(LATER - 60)));
    let silent = |seconds: u64| {
        let mut engine = replaced(0);
        engine.as_mut().expect("answers").devices[0].silent_ms = seconds * 1000;
        engine
    };
    let step = plan(&sets(), &pods, &silent(70), at(LATER));
    assert_eq!(reason(step), "demo-default-0 has the current spec and is not ready");
    let step = plan(&sets(), &pods, &silent(3600), at(LATER));
    assert_eq!(step, restart("demo-default-1"));
}
