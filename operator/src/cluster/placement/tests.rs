use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::fixtures::{node, nodes, unready, validated_with};

fn chunkservers(count: u32) -> ValidatedSet {
    let mut set = validated_with(json!({})).node_sets.remove(0);
    set.count = count;
    set
}

fn names(bindings: &Bindings) -> Vec<&str> {
    bindings.values().map(String::as_str).collect()
}

#[test]
fn three_pods_go_to_three_nodes() {
    let placement = plan_placement(&chunkservers(3), &Bindings::new(), &nodes(3));
    assert_eq!(names(&placement.bindings), ["node1", "node2", "node3"]);
    assert_eq!(placement.shortage, None);
}

#[test]
fn bindings_made_before_never_change() {
    let bound = Bindings::from([(0, "node3".into()), (1, "gone".into())]);
    let placement = plan_placement(&chunkservers(3), &bound, &nodes(3));
    assert_eq!(names(&placement.bindings), ["node3", "gone", "node1"]);
}

#[test]
fn a_fourth_chunkserver_shares_a_node_once_three_are_used() {
    let placement = plan_placement(&chunkservers(4), &Bindings::new(), &nodes(3));
    assert_eq!(names(&placement.bindings), ["node1", "node2", "node3", "node1"]);
}

#[test]
fn two_nodes_for_three_replicas_are_not_enough() {
    let placement = plan_placement(&chunkservers(3), &Bindings::new(), &nodes(2));
    assert_eq!(names(&placement.bindings), ["node1", "node2"]);
    let text = placement.shortage.expect("a shortage");
    assert!(
        text.starts_with("2 of 3 pods of default are placed: 2 nodes can be used, 3"),
        "{text}"
    );
}

#[test]
fn a_node_that_is_not_ready_is_waited_for() {
    let mut nodes = nodes(3);
    nodes[1] = unready(nodes[1].clone());
    let placement = plan_placement(&chunkservers(3), &Bindings::new(), &nodes);
    assert_eq!(names(&placement.bindings), ["node1", "node3"]);
    let text = placement.shortage.expect("a shortage");
    assert!(text.contains("waiting for node2 (not ready; cordon to do without)"), "{text}");
}

#[test]
fn the_loss_of_a_node_does_not_stop_growth_onto_a_new_one() {
    let bound = Bindings::from([(0, "node1".into()), (1, "node2".into()), (2, "node3".into())]);
    let mut nodes = nodes(4);
    nodes[0] = unready(nodes[0].clone());
    let placement = plan_placement(&chunkservers(4), &bound, &nodes);
    assert_eq!(names(&placement.bindings), ["node1", "node2", "node3", "node4"]);
}

#[test]
fn an_mds_is_stranded_once_its_node_was_away_for_long_and_another_is_free() {
    let set = validated_with(json!({})).mds;
    let bound = Bindings::from([(0, "node1".into()), (1, "node2".into()), (2, "node3".into())]);
    let patience = Duration::from_secs(600);
    let find = |nodes: &[Node], second: i64| {
        stranded(&set, &bound, nodes, patience, crate::fixtures::at(second))
    };
    let mut four = nodes(4);
    four[1] = unready_since(four[1].clone(), 0);
    assert_eq!(find(&four, 599), None);
    assert_eq!(find(&four, 600), Some(1));
    assert_eq!(find(&four[..3], 600), None, "there is no free node");
    four.remove(1);
    assert_eq!(find(&four, 0), Some(1), "its node was deleted");
}

fn unready_since(node: Node, second: i64) -> Node {
    let mut node = unready(node);
    let conditions = node.status.as_mut().expect("status").conditions.as_mut();
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(crate::fixtures::at(second));
    conditions.expect("conditions")[0].last_transition_time = Some(time);
    node
}

#[test]
fn a_taint_on_a_node_with_data_that_is_no_longer_tolerated_is_named() {
    let mut set = chunkservers(2);
    let bound = Bindings::from([(0, "node1".into()), (1, "node2".into()), (2, "gone".into())]);
    let mut nodes = nodes(2);
    assert_eq!(misfits(&set, &bound, &nodes), None);
    let taint = json!({"key": "dedicated", "value": "db", "effect": "NoSchedule"});
    nodes[1].spec.as_mut().expect("spec").taints =
        Some(vec![serde_json::from_value(taint).expect("taint")]);
    let expected = "the placement of default rules out nodes with its data: default-1 on node2 \
                    (taint dedicated=db:NoSchedule)";
    assert_eq!(misfits(&set, &bound, &nodes).as_deref(), Some(expected));
    let tolerate = json!({"key": "dedicated", "operator": "Exists"});
    set.tolerations = vec![serde_json::from_value(tolerate).expect("toleration")];
    assert_eq!(misfits(&set, &bound, &nodes), None);
}

#[test]
fn zones_are_filled_evenly() {
    let nodes: Vec<Node> = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")]
        .map(|(n, z)| node(n, z))
        .into();
    let placement = plan_placement(&chunkservers(3), &Bindings::new(), &nodes);
    assert_eq!(names(&placement.bindings), ["a1", "b1", "c1"]);
}

#[test]
fn cordoned_tainted_and_unselected_nodes_are_not_used() {
    let mut nodes = nodes(4);
    nodes[0].spec.as_mut().expect("spec").unschedulable = Some(true);
    let taint = json!({"key": "dedicated", "value": "db", "effect": "NoSchedule"});
    nodes[1].spec.as_mut().expect("spec").taints =
        Some(vec![serde_json::from_value(taint).expect("taint")]);
    nodes[2].metadata.labels.as_mut().expect("labels").insert("disk".into(), "ssd".into());
    let mut set = chunkservers(1);
    assert_eq!(names(&plan_placement(&set, &Bindings::new(), &nodes).bindings), ["node3"]);
    let tolerate = json!({"key": "dedicated", "operator": "Equal", "value": "db"});
    set.tolerations = vec![serde_json::from_value(tolerate).expect("toleration")];
    assert_eq!(names(&plan_placement(&set, &Bindings::new(), &nodes).bindings), ["node2"]);
    set.node_selector = [("disk".into(), "ssd".into())].into();
    assert_eq!(names(&plan_placement(&set, &Bindings::new(), &nodes).bindings), ["node3"]);
    set.node_selector = [("disk".into(), "hdd".into())].into();
    let none = plan_placement(&set, &Bindings::new(), &nodes);
    assert!(none.bindings.is_empty() && none.shortage.is_some());
}

#[test]
fn two_members_of_the_metadata_service_never_share_a_node() {
    let mds = validated_with(json!({})).mds;
    let placement = plan_placement(&mds, &Bindings::new(), &nodes(2));
    assert_eq!(names(&placement.bindings), ["node1", "node2"]);
    assert!(placement.shortage.is_some());
}

proptest! {
    /// Whatever the nodes and earlier bindings: ordinals have no gap, old bindings stay, new ones
    /// go to ready nodes, and the load of ready nodes differs by at most one where all were free.
    #[test]
    fn placement_is_stable_and_even(
        count in 1u32..12,
        ready in prop::collection::vec(any::<bool>(), 0..8),
        bound in 0u32..12,
    ) {
        let mut nodes = nodes(ready.len());
        for (node, ready) in nodes.iter_mut().zip(&ready) {
            if !ready {
                *node = unready(node.clone());
            }
        }
        let old: Bindings = (0..bound.min(count)).map(|o| (o, format!("old{o}"))).collect();
        let placement = plan_placement(&chunkservers(count), &old, &nodes);
        let placed = placement.bindings.len() as u32;
        prop_assert!(placement.bindings.keys().copied().eq(0..placed));
        prop_assert_eq!(placement.shortage.is_some(), placed < count);
        for (ordinal, node) in &placement.bindings {
            match old.get(ordinal) {
                Some(before) => prop_assert_eq!(before, node),
                None => prop_assert!(
                    nodes.iter().any(|n| n.metadata.name.as_ref() == Some(node) && is_ready(n))
                ),
            }
        }
        let loads: Vec<usize> = nodes
            .iter()
            .filter(|node| is_ready(node))
            .map(|n| placement.bindings.values().filter(|b| Some(*b) == n.metadata.name.as_ref()).count())
            .collect();
        let (low, high) = (loads.iter().min().copied(), loads.iter().max().copied());
        prop_assert!(high.unwrap_or(0) - low.unwrap_or(0) <= 1);
    }
}
