use serde_json::{Value, json};

use super::*;
use crate::fixtures::{OWN_IMAGE, cluster_with, validated_with};

#[test]
fn the_short_form_gets_working_defaults() {
    let cluster = validated_with(json!({}));
    assert_eq!(cluster.image, OWN_IMAGE);
    assert_eq!(cluster.out_after, Duration::from_secs(600));
    assert_eq!(cluster.mds.count, 3);
    let expected =
        ValidatedStorage::HostPath { path: "/var/lib/curve".into(), size: ByteSize(1 << 30) };
    assert_eq!(cluster.mds.storage, expected);
    assert_eq!(cluster.chunkservers(), 3);
}

#[test]
fn metadata_follows_the_kind_of_the_first_device() {
    let cluster = validated_with(json!({"nodeSets": [{
        "name": "ssd", "count": 3,
        "device": {"volumeClaimTemplate": {"storageClassName": "local", "size": "100Gi"}},
    }]}));
    let expected = ValidatedStorage::Claim { class: Some("local".into()), size: ByteSize(1 << 30) };
    assert_eq!(cluster.mds.storage, expected);
}

#[test]
fn a_device_leaves_room_for_the_file_system_of_a_claim() {
    let claim = ValidatedStorage::Claim { class: None, size: ByteSize(100 << 30) };
    let device = claim.device_size().0;
    assert!(device <= (100 << 30) / 100 * 90 && device > (100 << 30) / 100 * 89);
    let path = ValidatedStorage::HostPath { path: "/a".into(), size: ByteSize(10 << 30) };
    assert_eq!(path.device_size(), ByteSize(10 << 30));
}

#[test]
fn image_parts_that_are_missing_are_the_operators_own() {
    let image = |image, own: &str| {
        let image = serde_json::from_value::<Image>(image).expect("an image");
        validate_image(Some(&image), own).map(|(reference, _)| reference)
    };
    let own = "host:5000/curve:1.0";
    assert_eq!(image(json!({}), own).as_deref(), Ok("host:5000/curve:1.0"));
    assert_eq!(image(json!({"tag": "2.0"}), own).as_deref(), Ok("host:5000/curve:2.0"));
    assert_eq!(image(json!({"repository": "a/b"}), own).as_deref(), Ok("a/b:1.0"));
    let both = json!({"repository": "a/b", "tag": "3"});
    assert_eq!(image(both, "curve@sha256:00").as_deref(), Ok("a/b:3"));
    assert_eq!(image(json!({"tag": "3"}), "curve@sha256:00").as_deref(), Ok("curve:3"));
    let error = image(json!({"repository": "a/b"}), "curve@sha256:00").expect_err("no tag");
    assert_eq!(error.field, "spec.image.tag");
}

#[test]
fn what_cannot_be_carried_out_is_refused_by_field() {
    let set = |change: serde_json::Value| {
        let mut set = json!({
            "name": "default", "count": 3, "device": {"hostPath": "/data", "size": "10Gi"},
        });
        for (key, value) in change.as_object().expect("an object") {
            set[key] = value.clone();
        }
        json!({"nodeSets": [set]})
    };
    let path = |path: &str| set(json!({"device": {"hostPath": path, "size": "10Gi"}}));
    let cases = [
        (json!({"nodeSets": []}), "spec.nodeSets"),
        (set(json!({"name": "mds"})), "spec.nodeSets[0].name"),
        (set(json!({"name": "a-b"})), "spec.nodeSets[0].name"),
        (set(json!({"count": 0})), "spec.nodeSets[0].count"),
        (path("relative"), "spec.nodeSets[0].device.hostPath"),
        (path("/data/../etc"), "spec.nodeSets[0].device.hostPath"),
        (path("/"), "spec.nodeSets[0].device.hostPath"),
        (path("/data//x"), "spec.nodeSets[0].device.hostPath"),
        (
            set(json!({"device": {"hostPath": "/d", "size": "lots"}})),
            "spec.nodeSets[0].device.size",
        ),
        (set(json!({"device": {"hostPath": "/d", "size": "1Mi"}})), "spec.nodeSets[0].device"),
        (set(json!({"device": {}})), "spec.nodeSets[0].device"),
        (
            set(json!({"logDevice": {"hostPath": "/data", "size": "1Gi"}})),
            "spec.nodeSets[0].logDevice.hostPath",
        ),
        (
            set(json!({"logDevice": {"volumeClaimTemplate": {"size": "1Gi"}}})),
            "spec.nodeSets[0].logDevice",
        ),
        (
            set(json!({"logDevice": {"hostPath": "/log", "size": "1Mi"}})),
            "spec.nodeSets[0].logDevice",
        ),
        (set(json!({"device": {"hostPath": "/d"}})), "spec.nodeSets[0].device"),
        (json!({"mds": {"replicas": 2}}), "spec.mds.replicas"),
        (json!({"recovery": {"outAfter": "soon"}}), "spec.recovery.outAfter"),
        (json!({"recovery": {"outAfter": ""}}), "spec.recovery.outAfter"),
        (json!({"scrub": {"schedule": "0 1 * * *", "window": "long"}}), "spec.scrub.window"),
        (json!({"deletionPolicy": "Destroy"}), "spec.destroyConfirmation"),
        (
            json!({"deletionPolicy": "Destroy", "destroyConfirmation": "other"}),
            "spec.destroyConfirmation",
        ),
    ];
    for (changes, field) in cases {
        let cluster = cluster_with(changes.clone());
        let error = validate(&cluster, OWN_IMAGE).expect_err(&changes.to_string());
        assert_eq!(error.field, field, "{changes}: {error}");
    }
}

#[test]
fn two_node_sets_cannot_share_a_name() {
    let device = json!({"hostPath": "/d", "size": "1Gi"});
    let set = json!({"name": "a", "count": 1, "device": device});
    let cluster = cluster_with(json!({"nodeSets": [set.clone(), set]}));
    let error = validate(&cluster, OWN_IMAGE).expect_err("twice");
    assert_eq!(error.field, "spec.nodeSets[1].name");
}

#[test]
fn destroy_with_the_right_word_is_accepted() {
    let cluster = cluster_with(json!({"deletionPolicy": "Destroy", "destroyConfirmation": "demo"}));
    assert!(validate(&cluster, OWN_IMAGE).is_ok());
}

#[test]
fn a_cluster_made_again_must_take_all_its_data_back() {
    let cluster = validated_with(json!({}));
    let path = |pod: &str| Some(format!("/var/lib/curve/curve-demo/{pod}"));
    let volume = |pod: &str, path| (format!("curve.curve.{pod}"), path);
    let check = |volumes: Vec<(String, Option<String>)>| {
        validate_inheritance(&cluster, &volumes.into_iter().collect())
    };
    let same = ["demo-mds-0", "demo-default-2"].map(|pod| volume(pod, path(pod)));
    assert_eq!(check(same.to_vec()), Ok(()));
    let fewer = check(vec![volume("demo-default-3", path("demo-default-3"))]);
    assert!(fewer.expect_err("one too many").problem.contains("raise count"));
    let moved =
        check(vec![volume("demo-default-0", Some("/old/curve-demo/demo-default-0".into()))]);
    assert!(moved.expect_err("elsewhere").problem.contains("is at /old/curve-demo/demo-default-0"));
}

#[test]
fn a_cluster_made_again_must_keep_its_logs_where_they_are() {
    let set = |log: Value| {
        let device = json!({"hostPath": "/data", "size": "10Gi"});
        let mut set = json!({"name": "a", "count": 2, "device": device});
        set.as_object_mut().expect("an object").extend(log.as_object().expect("too").clone());
        validated_with(json!({"nodeSets": [set]}))
    };
    let with_log = set(json!({"logDevice": {"hostPath": "/log", "size": "1Gi"}}));
    let without = set(json!({}));
    let data = ("curve.curve.demo-a-0".to_owned(), Some("/data/curve-demo/demo-a-0".to_owned()));
    let log = ("curve.curve.demo-a-0.log".to_owned(), Some("/log/curve-demo/demo-a-0".to_owned()));
    let check = |cluster, volumes: &[&(String, Option<String>)]| {
        validate_inheritance(cluster, &volumes.iter().copied().cloned().collect())
    };
    assert_eq!(check(&with_log, &[&data, &log]), Ok(()));
    // Its data was not made yet.
    assert_eq!(check(&with_log, &[&log]), Ok(()));
    let added = check(&with_log, &[&data]).expect_err("no log");
    assert!(added.problem.contains("made without logDevice"), "{added}");
    let left_out = check(&without, &[&data, &log]).expect_err("a log");
    assert!(left_out.problem.contains("write the logDevice"), "{left_out}");
}
