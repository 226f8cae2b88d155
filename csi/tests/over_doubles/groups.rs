//! Snapshots of several volumes at once.

use csi_proto::csi::v1::volume_capability::access_mode::Mode;
use csi_proto::csi::v1::{
    CreateSnapshotRequest, CreateVolumeGroupSnapshotRequest, DeleteSnapshotRequest,
    DeleteVolumeGroupSnapshotRequest, DeleteVolumeRequest, GetVolumeGroupSnapshotRequest,
    GroupControllerGetCapabilitiesRequest, ListSnapshotsRequest, VolumeGroupSnapshot,
};
use tonic::{Code, Status};

use crate::doubles::{Driver, MIB, block, create_request};

fn request(name: &str, sources: &[&str]) -> CreateVolumeGroupSnapshotRequest {
    CreateVolumeGroupSnapshotRequest {
        name: name.to_owned(),
        source_volume_ids: sources.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    }
}

async fn take(
    driver: &mut Driver,
    request: CreateVolumeGroupSnapshotRequest,
) -> Result<VolumeGroupSnapshot, Status> {
    let taken = driver.groups.create_volume_group_snapshot(request).await?.into_inner();
    Ok(taken.group_snapshot.expect("group"))
}

async fn get(
    driver: &mut Driver,
    group: &str,
    snapshots: &[String],
) -> Result<VolumeGroupSnapshot, Status> {
    let request = GetVolumeGroupSnapshotRequest {
        group_snapshot_id: group.to_owned(),
        snapshot_ids: snapshots.to_vec(),
        ..Default::default()
    };
    let found = driver.groups.get_volume_group_snapshot(request).await?.into_inner();
    Ok(found.group_snapshot.expect("group"))
}

async fn delete(driver: &mut Driver, group: &str, snapshots: &[String]) -> Result<(), Status> {
    let request = DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group.to_owned(),
        snapshot_ids: snapshots.to_vec(),
        ..Default::default()
    };
    driver.groups.delete_volume_group_snapshot(request).await.map(drop)
}

fn ids(group: &VolumeGroupSnapshot) -> Vec<String> {
    let mut ids: Vec<String> = group.snapshots.iter().map(|s| s.snapshot_id.clone()).collect();
    ids.sort();
    ids
}

async fn three_volumes(driver: &mut Driver) -> [String; 3] {
    let mut made = Vec::new();
    for name in ["pvc-1", "pvc-2", "pvc-3"] {
        made.push(driver.create(create_request(name, MIB, block(Mode::SingleNodeWriter))).await);
    }
    made.try_into().expect("three")
}

#[tokio::test]
async fn a_group_is_taken_found_and_deleted_whole() {
    let mut driver = Driver::start();
    let capabilities = GroupControllerGetCapabilitiesRequest {};
    let told = driver.groups.group_controller_get_capabilities(capabilities).await.expect("told");
    assert_eq!(told.into_inner().capabilities.len(), 1);
    let [one, two, three] = three_volumes(&mut driver).await;
    let group = take(&mut driver, request("g", &[&one, &two])).await.expect("taken");
    assert!(group.ready_to_use && group.snapshots.len() == 2, "{group:?}");
    assert!(group.snapshots.iter().all(|s| s.group_snapshot_id == group.group_snapshot_id));
    let members = ids(&group);
    let again = take(&mut driver, request("g", &[&two, &one])).await.expect("found");
    assert_eq!(ids(&again), members);
    let found = get(&mut driver, &group.group_snapshot_id, &members).await.expect("found");
    assert_eq!(ids(&found), members);
    let listed = driver.controller.list_snapshots(ListSnapshotsRequest::default()).await;
    let listed = listed.expect("listed").into_inner().entries;
    let of = |e: csi_proto::csi::v1::list_snapshots_response::Entry| e.snapshot.expect("snapshot");
    assert!(listed.into_iter().map(of).all(|s| s.group_snapshot_id == group.group_snapshot_id));

    for sources in [&[&*one][..], &[&one, &two, &three], &[&one, &three]] {
        let error = take(&mut driver, request("g", sources)).await.expect_err("other volumes");
        assert_eq!(error.code(), Code::AlreadyExists);
    }
    let part = DeleteSnapshotRequest { snapshot_id: members[0].clone(), ..Default::default() };
    let error = driver.controller.delete_snapshot(part).await.expect_err("part of a group");
    assert_eq!(error.code(), Code::InvalidArgument);

    for _ in 0..2 {
        delete(&mut driver, &group.group_snapshot_id, &members).await.expect("deleted");
    }
    assert!(driver.mds.snapshot_names().is_empty());
    let error = get(&mut driver, &group.group_snapshot_id, &members).await.expect_err("gone");
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn a_list_that_is_not_the_groups_is_refused() {
    let mut driver = Driver::start();
    let [one, two, three] = three_volumes(&mut driver).await;
    let group = take(&mut driver, request("g", &[&one, &two])).await.expect("taken");
    let members = ids(&group);
    let other = CreateSnapshotRequest {
        name: "s".to_owned(),
        source_volume_id: three.clone(),
        ..Default::default()
    };
    let other = driver.controller.create_snapshot(other).await.expect("taken").into_inner();
    let other = other.snapshot.expect("snapshot").snapshot_id;
    let with = |more: &str| [&members[..], &[more.to_owned()]].concat();
    for listed in [members[..1].to_vec(), with(&other), with("nothing")] {
        let error = get(&mut driver, &group.group_snapshot_id, &listed).await;
        assert_eq!(error.expect_err("mismatch").code(), Code::InvalidArgument, "{listed:?}");
        let error = delete(&mut driver, &group.group_snapshot_id, &listed).await;
        assert_eq!(error.expect_err("mismatch").code(), Code::InvalidArgument, "{listed:?}");
    }
    assert_eq!(driver.mds.snapshot_names().len(), 3);
    // What an interrupted deletion has deleted is still listed when it is repeated.
    driver.mds.lose_answer("delete");
    let error = delete(&mut driver, &group.group_snapshot_id, &members).await;
    assert_eq!(error.expect_err("interrupted").code(), Code::Unavailable);
    assert_eq!(driver.mds.snapshot_names().len(), 2);
    delete(&mut driver, &group.group_snapshot_id, &members).await.expect("deleted");
    assert_eq!(driver.mds.snapshot_names(), ["pvc-3@s"]);
}

#[tokio::test]
async fn a_group_with_a_volume_that_is_gone_is_not_taken_in_part() {
    let mut driver = Driver::start();
    let [one, two, three] = three_volumes(&mut driver).await;
    let gone = DeleteVolumeRequest { volume_id: three.clone(), ..Default::default() };
    driver.controller.delete_volume(gone).await.expect("deleted");
    let error = take(&mut driver, request("g", &[&one, &two, &three])).await;
    assert_eq!(error.expect_err("incomplete").code(), Code::NotFound);
    assert!(driver.mds.snapshot_names().is_empty());
}
