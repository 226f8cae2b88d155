//! What the controller answers, beyond what csi-sanity asks.

use csi_proto::csi::v1::volume_capability::access_mode::Mode;
use csi_proto::csi::v1::{
    ControllerExpandVolumeRequest, ControllerModifyVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, GetCapacityRequest,
    ListVolumesRequest, Topology, TopologyRequirement, ValidateVolumeCapabilitiesRequest,
    VolumeContentSource,
};
use curve_types::VolumeLimits;
use tonic::Code;

use crate::doubles::{CLUSTER, Driver, MIB, NODE, VOLUMES_MAX, block, create_request, mount};

#[tokio::test]
async fn a_volume_is_made_once_for_a_name_and_keeps_its_properties() {
    let mut driver = Driver::start();
    let request = create_request("pvc-1", 64 * MIB, mount("ext4", Mode::SingleNodeWriter));
    let first = driver.controller.create_volume(request.clone()).await.expect("made").into_inner();
    let again = driver.controller.create_volume(request.clone()).await.expect("found").into_inner();
    assert_eq!(first, again);
    let volume = first.volume.expect("volume");
    assert_eq!(volume.volume_context["cluster"], CLUSTER);
    assert!(volume.volume_id.starts_with("1/"), "{}", volume.volume_id);

    let larger = create_request("pvc-1", 65 * MIB, mount("ext4", Mode::SingleNodeWriter));
    let error = driver.controller.create_volume(larger).await.expect_err("other size");
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains("64 MiB instead of 65 MiB"), "{}", error.message());
}

#[tokio::test]
async fn a_bad_request_is_refused_by_the_name_of_what_is_bad() {
    let mut driver = Driver::start();
    let good = create_request("pvc-1", MIB, mount("ext4", Mode::SingleNodeWriter));
    let with = |change: &dyn Fn(&mut CreateVolumeRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let parameter = |key: &str, value: &str| {
        let (key, value) = (key.to_owned(), value.to_owned());
        with(&move |request| {
            request.parameters.insert(key.clone(), value.clone());
        })
    };
    let elsewhere = Topology { segments: [("zone".to_owned(), "a".to_owned())].into() };
    let requirement = TopologyRequirement { requisite: vec![elsewhere], preferred: Vec::new() };
    let cases = [
        (parameter("replcas", "3"), Code::InvalidArgument, "replcas"),
        (parameter("cluster", "curve/dmeo"), Code::InvalidArgument, "known are curve/demo"),
        (parameter("pool", "fast"), Code::NotFound, "default"),
        (parameter("iops", "fast"), Code::InvalidArgument, "iops is \"fast\""),
        (parameter("bytesPerSecond", "1Ki"), Code::InvalidArgument, "bytesPerSecond is 1024"),
        (
            with(&|r| _ = r.mutable_parameters.insert("pool".into(), "fast".into())),
            Code::InvalidArgument,
            "pool cannot be changed",
        ),
        (with(&|r| r.parameters.clear()), Code::InvalidArgument, "cluster is missing"),
        (
            with(&|r| r.volume_content_source = Some(VolumeContentSource::default())),
            Code::InvalidArgument,
            "neither a snapshot nor a volume",
        ),
        (
            with(&|r| r.volume_capabilities = vec![mount("ext4", Mode::MultiNodeMultiWriter)]),
            Code::InvalidArgument,
            "one node at a time",
        ),
        (
            with(&|r| r.accessibility_requirements = Some(requirement.clone())),
            Code::ResourceExhausted,
            "node plugin",
        ),
        (
            with(&|r| r.capacity_range.as_mut().expect("set").required_bytes = 1 << 50),
            Code::OutOfRange,
            "at most",
        ),
        (
            with(&|r| r.capacity_range.as_mut().expect("set").required_bytes = 1 << 40),
            Code::ResourceExhausted,
            "is full",
        ),
    ];
    for (request, code, words) in cases {
        let error = driver.controller.create_volume(request).await.expect_err(words);
        assert_eq!(error.code(), code, "{}", error.message());
        assert!(error.message().contains(words), "{}", error.message());
    }
    let all = driver.controller.list_volumes(ListVolumesRequest::default()).await.expect("list");
    assert!(all.into_inner().entries.is_empty(), "a refused request made a volume");
}

#[tokio::test]
async fn an_exclusive_volume_is_published_to_one_node_and_the_refusal_names_it() {
    let mut driver = Driver::start();
    let id = driver.create(create_request("pvc-1", MIB, mount("", Mode::SingleNodeWriter))).await;
    let publish = |node: &str, capability| ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: node.to_owned(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    let exclusive = mount("", Mode::SingleNodeWriter);
    for _ in 0..2 {
        let request = publish(NODE, exclusive.clone());
        driver.controller.controller_publish_volume(request).await.expect("published");
    }
    let request = publish("node-2", exclusive.clone());
    let error = driver.controller.controller_publish_volume(request).await.expect_err("refused");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(NODE), "{}", error.message());

    let delete = DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
    let error = driver.controller.delete_volume(delete.clone()).await.expect_err("published");
    assert_eq!(error.code(), Code::FailedPrecondition);
    let unpublish =
        ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
    for _ in 0..2 {
        let request = unpublish.clone();
        driver.controller.controller_unpublish_volume(request).await.expect("unpublished");
    }
    let request = publish("node-2", exclusive);
    driver.controller.controller_publish_volume(request).await.expect("free now");
    driver.controller.controller_unpublish_volume(unpublish).await.expect("unpublished");
    for _ in 0..2 {
        driver.controller.delete_volume(delete.clone()).await.expect("deleted");
    }
}

#[tokio::test]
async fn a_raw_volume_may_be_shared_by_nodes() {
    let mut driver = Driver::start();
    let shared = block(Mode::MultiNodeMultiWriter);
    let id = driver.create(create_request("pvc-1", MIB, shared.clone())).await;
    for node in [NODE, "node-2"] {
        let request = ControllerPublishVolumeRequest {
            volume_id: id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(shared.clone()),
            ..Default::default()
        };
        driver.controller.controller_publish_volume(request).await.expect("published");
    }
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_keeps_no_other_volume_from_attaching() {
    let mut driver = Driver::start_beside_a_dead_cluster();
    let capability = block(Mode::SingleNodeWriter);
    for index in 0..VOLUMES_MAX {
        let name = format!("pvc-{index}");
        let id = driver.create(create_request(&name, MIB, capability.clone())).await;
        driver.publish(&id, &capability).await;
    }
    let id = driver.create(create_request("pvc-more", MIB, capability.clone())).await;
    let request = ControllerPublishVolumeRequest {
        volume_id: id,
        node_id: NODE.to_owned(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    let error = driver.controller.controller_publish_volume(request).await.expect_err("full");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains(CLUSTER), "{}", error.message());
}

#[tokio::test]
async fn no_list_and_no_sum_leaves_out_a_cluster_that_does_not_answer() {
    let mut driver = Driver::start_beside_a_dead_cluster();
    driver.create(create_request("pvc-1", MIB, block(Mode::SingleNodeWriter))).await;
    let list = driver.controller.list_volumes(ListVolumesRequest::default()).await;
    assert_eq!(list.expect_err("incomplete").code(), Code::Unavailable);
    let everywhere = driver.controller.get_capacity(GetCapacityRequest::default()).await;
    assert_eq!(everywhere.expect_err("incomplete").code(), Code::Unavailable);
    let parameters = [("cluster".to_owned(), CLUSTER.to_owned())].into();
    let request = GetCapacityRequest { parameters, ..Default::default() };
    driver.controller.get_capacity(request).await.expect("of the cluster that answers");
}

#[tokio::test]
async fn pages_are_complete_while_volumes_come_and_go() {
    let mut driver = Driver::start();
    for index in 0..7 {
        let name = format!("pvc-{index}");
        driver.create(create_request(&name, MIB, block(Mode::SingleNodeWriter))).await;
    }
    let page =
        |token: &str| ListVolumesRequest { max_entries: 3, starting_token: token.to_owned() };
    let first = driver.controller.list_volumes(page("")).await.expect("page").into_inner();
    assert_eq!(first.entries.len(), 3);
    // The volume that the token names goes away; a new one comes behind it.
    let last = first.entries[2].volume.as_ref().expect("volume").volume_id.clone();
    let delete = DeleteVolumeRequest { volume_id: last, ..Default::default() };
    driver.controller.delete_volume(delete).await.expect("deleted");
    driver.create(create_request("pvc-9", MIB, block(Mode::SingleNodeWriter))).await;
    let mut token = first.next_token;
    let mut rest = 0;
    while !token.is_empty() {
        let next = driver.controller.list_volumes(page(&token)).await.expect("page").into_inner();
        rest += next.entries.len();
        token = next.next_token;
    }
    assert_eq!(rest, 5);
}

#[tokio::test]
async fn capacity_is_what_the_pool_has_left_and_only_where_the_driver_is() {
    let mut driver = Driver::start();
    let ask = |zone: Option<&str>| GetCapacityRequest {
        parameters: [("cluster".to_owned(), CLUSTER.to_owned())].into(),
        accessible_topology: zone
            .map(|zone| Topology { segments: [("zone".to_owned(), zone.to_owned())].into() }),
        ..Default::default()
    };
    let before = driver.controller.get_capacity(ask(None)).await.expect("asked").into_inner();
    driver.create(create_request("pvc-1", 64 * MIB, block(Mode::SingleNodeWriter))).await;
    let after = driver.controller.get_capacity(ask(None)).await.expect("asked").into_inner();
    assert_eq!(before.available_capacity - after.available_capacity, 64 << 20);
    let other = driver.controller.get_capacity(ask(Some("a"))).await.expect("asked").into_inner();
    assert_eq!(other.available_capacity, 0);
}

#[tokio::test]
async fn expansion_answers_the_size_that_the_volume_has() {
    let mut driver = Driver::start();
    let id = driver.create(create_request("pvc-1", 8 * MIB, block(Mode::SingleNodeWriter))).await;
    let expand = |bytes: u64| ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(csi_proto::csi::v1::CapacityRange {
            required_bytes: bytes as i64,
            limit_bytes: 0,
        }),
        ..Default::default()
    };
    for (asked, size) in [(9 * MIB + 1, 10 * MIB), (9 * MIB + 1, 10 * MIB), (MIB, 10 * MIB)] {
        let answer = driver.controller.controller_expand_volume(expand(asked)).await;
        let answer = answer.expect("expanded").into_inner();
        assert_eq!(answer.capacity_bytes as u64, size);
        assert!(answer.node_expansion_required);
    }
}

fn map(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn limits_come_from_the_storage_class_and_above_it_the_attributes_class() {
    let mut driver = Driver::start();
    let mut request = create_request("pvc-1", MIB, block(Mode::SingleNodeWriter));
    request.parameters.extend(map(&[("iops", "1000"), ("writeIops", "100")]));
    request.mutable_parameters = map(&[("writeIops", "50"), ("bytesPerSecond", "200Mi")]);
    let id = driver.create(request.clone()).await;
    let expected = VolumeLimits {
        iops: 1000,
        write_iops: 50,
        bytes_per_second: 200 << 20,
        ..Default::default()
    };
    assert_eq!(driver.agent.limits(), expected);
    assert_eq!(driver.create(request.clone()).await, id, "the same volume");
    request.mutable_parameters = map(&[("writeIops", "60")]);
    let error = driver.controller.create_volume(request).await.expect_err("other limits");
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains("instead of iops 1000, write_iops 60"), "{}", error.message());
}

#[tokio::test]
async fn an_attributes_class_changes_what_it_names_and_nothing_else() {
    let mut driver = Driver::start();
    let mut request = create_request("pvc-1", MIB, block(Mode::SingleNodeWriter));
    request.parameters.extend(map(&[("iops", "1000"), ("writeIops", "100")]));
    let id = driver.create(request).await;
    let modify = |volume_id: &str, pairs: &[(&str, &str)]| ControllerModifyVolumeRequest {
        volume_id: volume_id.to_owned(),
        mutable_parameters: map(pairs),
        ..Default::default()
    };
    let gold = [("writeIops", "unlimited"), ("burstSeconds", "30")];
    for _ in 0..2 {
        let done = driver.controller.controller_modify_volume(modify(&id, &gold)).await;
        done.expect("modified");
        let expected = VolumeLimits { iops: 1000, burst_seconds: 30, ..Default::default() };
        assert_eq!(driver.agent.limits(), expected);
    }
    let before = driver.agent.limits();
    let cases = [
        (modify("", &gold), Code::InvalidArgument, "volume_id"),
        (modify("nothing", &gold), Code::NotFound, "volume"),
        (modify(&id, &[("iops", "5"), ("wriopts", "5")]), Code::InvalidArgument, "wriopts cannot"),
        (modify(&id, &[("iops", "5"), ("readIops", "x")]), Code::InvalidArgument, "readIops is"),
    ];
    for (request, code, words) in cases {
        let error = driver.controller.controller_modify_volume(request).await.expect_err(words);
        assert_eq!(error.code(), code, "{}", error.message());
        assert!(error.message().contains(words), "{}", error.message());
    }
    assert_eq!(driver.agent.limits(), before, "a refused request changes nothing");

    let validate = |pairs: &[(&str, &str)]| ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![block(Mode::SingleNodeWriter)],
        mutable_parameters: map(pairs),
        ..Default::default()
    };
    let answer = driver.controller.validate_volume_capabilities(validate(&gold)).await;
    let confirmed = answer.expect("asked").into_inner().confirmed.expect("confirmed");
    assert_eq!(confirmed.mutable_parameters, map(&gold));
    let answer = driver.controller.validate_volume_capabilities(validate(&[("x", "1")])).await;
    assert!(answer.expect("asked").into_inner().confirmed.is_none());
}
