//! Snapshots, and volumes made from snapshots and from other volumes, beyond what csi-sanity asks.

use csi_proto::csi::v1::volume_capability::access_mode::Mode;
use csi_proto::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use csi_proto::csi::v1::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, GetSnapshotRequest, ListSnapshotsRequest, ListVolumesRequest, Snapshot,
    VolumeContentSource,
};
use curve_csi::handle::SnapshotHandle;
use curve_csi::volumes::VolumeError;
use curve_types::{ClusterId, VolumeId};
use tonic::{Code, Status};

use crate::doubles::{CREATED_UNIX_MS, Driver, MIB, block, create_request};

/// Makes a call to the MDS go wrong.
type Interruption = fn(&Driver);

fn unavailable() -> VolumeError {
    VolumeError::Unavailable("no leader answers".to_owned())
}

fn snapshot_request(source: &str, name: &str) -> CreateSnapshotRequest {
    let (source_volume_id, name) = (source.to_owned(), name.to_owned());
    CreateSnapshotRequest { source_volume_id, name, ..Default::default() }
}

async fn volume(driver: &mut Driver, name: &str, size: u64) -> String {
    driver.create(create_request(name, size, block(Mode::SingleNodeWriter))).await
}

async fn take(driver: &mut Driver, source: &str, name: &str) -> Snapshot {
    let made = driver.controller.create_snapshot(snapshot_request(source, name)).await;
    made.expect("taken").into_inner().snapshot.expect("snapshot")
}

/// A request for a volume with the data of `from`.
fn made_from(name: &str, size: u64, from: Type) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(from) }),
        ..create_request(name, size, block(Mode::SingleNodeWriter))
    }
}

fn snapshot(id: &str) -> Type {
    Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })
}

fn origin(id: &str) -> Type {
    Type::Volume(VolumeSource { volume_id: id.to_owned() })
}

async fn create(driver: &mut Driver, request: CreateVolumeRequest) -> Result<i64, Status> {
    let source = request.volume_content_source.clone();
    let made = driver.controller.create_volume(request).await?.into_inner();
    let volume = made.volume.expect("volume");
    assert_eq!(volume.content_source, source, "CSI wants the source back");
    Ok(volume.capacity_bytes)
}

async fn delete_snapshot(driver: &mut Driver, id: &str) -> Result<(), Status> {
    let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
    driver.controller.delete_snapshot(request).await.map(drop)
}

async fn delete_volume(driver: &mut Driver, id: &str) {
    let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
    driver.controller.delete_volume(request).await.expect("deleted");
}

async fn list(driver: &mut Driver, request: ListSnapshotsRequest) -> Vec<Snapshot> {
    let page = driver.controller.list_snapshots(request).await.expect("listed").into_inner();
    page.entries.into_iter().map(|entry| entry.snapshot.expect("snapshot")).collect()
}

#[tokio::test]
async fn a_snapshot_is_taken_once_for_a_name_and_outlives_its_volume() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", 8 * MIB).await;
    let first = take(&mut driver, &id, "snapshot-1").await;
    assert!(first.ready_to_use);
    assert_eq!((first.size_bytes as u64, first.source_volume_id.as_str()), (8 * MIB, id.as_str()));
    let time = first.creation_time.expect("a time");
    assert_eq!(time.seconds as u64 * 1000 + time.nanos as u64 / 1_000_000, CREATED_UNIX_MS);
    assert_eq!(driver.mds.snapshot_names(), ["pvc-1@snapshot-1"]);
    driver.mds.unready("pvc-1@snapshot-1");
    assert_eq!(take(&mut driver, &id, "snapshot-1").await, first, "an unfinished one is finished");

    delete_volume(&mut driver, &id).await;
    assert_eq!(take(&mut driver, &id, "snapshot-1").await, first, "the answer got lost");
    let get = GetSnapshotRequest { snapshot_id: first.snapshot_id.clone(), ..Default::default() };
    let got = driver.controller.get_snapshot(get.clone()).await.expect("there").into_inner();
    assert_eq!(got.snapshot, Some(first.clone()));
    let of_gone = ListSnapshotsRequest { source_volume_id: id, ..Default::default() };
    assert_eq!(list(&mut driver, of_gone).await, std::slice::from_ref(&first));
    for _ in 0..2 {
        delete_snapshot(&mut driver, &first.snapshot_id).await.expect("deleted");
    }
    let error = driver.controller.get_snapshot(get).await.expect_err("gone");
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn a_bad_snapshot_request_is_refused_by_the_name_of_what_is_bad() {
    let mut driver = Driver::start();
    let (one, two) =
        (volume(&mut driver, "pvc-1", MIB).await, volume(&mut driver, "pvc-2", MIB).await);
    take(&mut driver, &one, "s").await;
    let gone = volume(&mut driver, "pvc-3", MIB).await;
    delete_volume(&mut driver, &gone).await;
    let with_parameter = CreateSnapshotRequest {
        parameters: [("pool".to_owned(), "fast".to_owned())].into(),
        ..snapshot_request(&one, "t")
    };
    let cases = [
        (snapshot_request(&one, ""), Code::InvalidArgument, "name"),
        (snapshot_request("", "t"), Code::InvalidArgument, "source_volume_id"),
        (snapshot_request("pvc-1", "t"), Code::NotFound, "pvc-1"),
        (snapshot_request(&gone, "t"), Code::NotFound, "take the snapshot"),
        (snapshot_request(&two, "s"), Code::AlreadyExists, "pvc-1@s"),
        (with_parameter, Code::InvalidArgument, "unknown parameter pool"),
    ];
    for (request, code, words) in cases {
        let error = driver.controller.create_snapshot(request).await.expect_err(words);
        assert_eq!(error.code(), code, "{}", error.message());
        assert!(error.message().contains(words), "{}", error.message());
    }
    assert_eq!(driver.mds.snapshot_names(), ["pvc-1@s"], "a refused request took one");
}

#[tokio::test]
async fn no_id_of_another_kind_deletes_or_lists_anything() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", MIB).await;
    let taken = take(&mut driver, &id, "s").await;
    // The volume's id where a snapshot's belongs, in either form, and the other way round.
    let disguised = id.rsplit_once('/').map(|(head, tail)| format!("{head}/snapshot/{tail}"));
    for id in [id.as_str(), disguised.as_deref().expect("a handle"), "nothing"] {
        delete_snapshot(&mut driver, id).await.expect("done: there is no such snapshot");
        let listed = ListSnapshotsRequest { snapshot_id: id.to_owned(), ..Default::default() };
        assert_eq!(list(&mut driver, listed).await, []);
    }
    delete_volume(&mut driver, &taken.snapshot_id).await;
    assert_eq!(
        list(&mut driver, ListSnapshotsRequest::default()).await,
        std::slice::from_ref(&taken)
    );
    let volumes = driver.controller.list_volumes(ListVolumesRequest::default()).await;
    assert_eq!(volumes.expect("listed").into_inner().entries.len(), 1);
    let other = volume(&mut driver, "pvc-2", MIB).await;
    let neither = ListSnapshotsRequest {
        snapshot_id: taken.snapshot_id,
        source_volume_id: other,
        ..Default::default()
    };
    assert_eq!(list(&mut driver, neither).await, []);
    let error = delete_snapshot(&mut driver, "").await.expect_err("missing");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn pages_of_snapshots_are_complete_while_snapshots_come_and_go() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", MIB).await;
    let mut ids = Vec::new();
    for index in 0..7 {
        ids.push(take(&mut driver, &id, &format!("s-{index}")).await.snapshot_id);
    }
    for source in [String::new(), id.clone()] {
        let page = |token: &str| ListSnapshotsRequest {
            max_entries: 3,
            starting_token: token.to_owned(),
            source_volume_id: source.clone(),
            ..Default::default()
        };
        let (mut token, mut all) = (String::new(), Vec::new());
        loop {
            let next = driver.controller.list_snapshots(page(&token)).await.expect("page");
            let next = next.into_inner();
            all.extend(next.entries.into_iter().map(|e| e.snapshot.expect("snapshot").snapshot_id));
            token = next.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(all, ids);
    }
    let garbage = ListSnapshotsRequest { starting_token: "x".to_owned(), ..Default::default() };
    let error = driver.controller.list_snapshots(garbage).await.expect_err("no token");
    assert_eq!(error.code(), Code::Aborted);
    assert!(error.message().contains("ListSnapshots"), "{}", error.message());
}

#[tokio::test]
async fn no_list_of_snapshots_leaves_out_a_cluster_that_does_not_answer() {
    let mut driver = Driver::start_beside_a_dead_cluster();
    let id = volume(&mut driver, "pvc-1", MIB).await;
    take(&mut driver, &id, "s").await;
    let all = driver.controller.list_snapshots(ListSnapshotsRequest::default()).await;
    assert_eq!(all.expect_err("incomplete").code(), Code::Unavailable);
    let of_one = ListSnapshotsRequest { source_volume_id: id, ..Default::default() };
    assert_eq!(list(&mut driver, of_one).await.len(), 1);
}

#[tokio::test]
async fn a_volume_made_from_a_snapshot_is_as_large_or_larger() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", 8 * MIB).await;
    let taken = take(&mut driver, &id, "s").await.snapshot_id;
    for (name, asked, size) in [("a", MIB, 8), ("b", 8 * MIB, 8), ("c", 9 * MIB + 1, 10)] {
        for _ in 0..2 {
            let made = create(&mut driver, made_from(name, asked, snapshot(&taken))).await;
            assert_eq!(made.expect("made") as u64, size * MIB, "{name}");
        }
    }
    let no_size =
        CreateVolumeRequest { capacity_range: None, ..made_from("d", 0, snapshot(&taken)) };
    assert_eq!(create(&mut driver, no_size).await.expect("made") as u64, 8 * MIB);
    let small = CapacityRange { required_bytes: 0, limit_bytes: 4 << 20 };
    let too_small =
        CreateVolumeRequest { capacity_range: Some(small), ..made_from("e", 0, snapshot(&taken)) };
    let error = create(&mut driver, too_small.clone()).await.expect_err("too small");
    assert_eq!(error.code(), Code::OutOfRange);
    let clone_too_small = CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(origin(&id)) }),
        ..too_small
    };
    let error = create(&mut driver, clone_too_small).await.expect_err("too small");
    assert_eq!(error.code(), Code::OutOfRange);
    // The snapshot may go before a lost answer is asked for again.
    delete_snapshot(&mut driver, &taken).await.expect("deleted");
    create(&mut driver, made_from("a", MIB, snapshot(&taken))).await.expect("found");
    let error = create(&mut driver, made_from("f", MIB, snapshot(&taken))).await;
    assert_eq!(error.expect_err("no source").code(), Code::NotFound);
    assert!(driver.mds.snapshot_names().is_empty());
}

#[tokio::test]
async fn a_source_that_cannot_be_is_refused_by_name() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", 8 * MIB).await;
    let one = take(&mut driver, &id, "s").await.snapshot_id;
    let two = take(&mut driver, &id, "t").await.snapshot_id;
    create(&mut driver, made_from("from-s", MIB, snapshot(&one))).await.expect("made");
    create(&mut driver, made_from("from-pvc-1", MIB, origin(&id))).await.expect("made");
    let elsewhere = SnapshotHandle { cluster: ClusterId::random(), snapshot: VolumeId::random() };
    let in_pool = |mut request: CreateVolumeRequest| {
        request.parameters.insert("pool".to_owned(), "fast".to_owned());
        request
    };
    let empty = create_request("from-s", 8 * MIB, block(Mode::SingleNodeWriter));
    let cases = [
        (made_from("x", MIB, snapshot("nothing")), Code::NotFound, "nothing"),
        (made_from("x", MIB, snapshot(&id)), Code::NotFound, "snapshot handle"),
        (made_from("x", MIB, origin(&one)), Code::NotFound, "volume handle"),
        (made_from("x", MIB, snapshot("")), Code::InvalidArgument, "snapshot_id"),
        (in_pool(made_from("x", MIB, snapshot(&one))), Code::InvalidArgument, "pool default"),
        (in_pool(made_from("x", MIB, origin(&id))), Code::InvalidArgument, "pool default"),
        (made_from("from-s", MIB, snapshot(&two)), Code::AlreadyExists, "that snapshot"),
        (made_from("from-s", MIB, origin(&id)), Code::AlreadyExists, "that volume"),
        (made_from("from-s", 16 * MIB, snapshot(&one)), Code::AlreadyExists, "8 MiB"),
        (made_from("pvc-1", MIB, snapshot(&one)), Code::AlreadyExists, "snapshot"),
        (made_from("pvc-1", MIB, origin(&id)), Code::AlreadyExists, "made empty"),
        (made_from("from-pvc-1", MIB, snapshot(&one)), Code::AlreadyExists, "that snapshot"),
        (
            made_from("x", MIB, snapshot(&elsewhere.to_string())),
            Code::InvalidArgument,
            "data stays in its cluster",
        ),
        (empty, Code::AlreadyExists, "instead of empty"),
    ];
    for (request, code, words) in cases {
        let error = create(&mut driver, request).await.expect_err(words);
        assert_eq!(error.code(), code, "{}", error.message());
        assert!(error.message().contains(words), "{words}: {}", error.message());
    }
    let mut left = driver.mds.snapshot_names();
    left.sort();
    assert_eq!(left, ["pvc-1@s", "pvc-1@t"], "a refused request left a snapshot");
}

#[tokio::test]
async fn a_clone_that_was_interrupted_anywhere_goes_on_and_leaves_nothing_behind() {
    let interruptions: [(&str, Interruption); 6] = [
        ("before the snapshot", |driver| driver.mds.fail("create_snapshots", unavailable())),
        ("after the snapshot", |driver| driver.mds.lose_answer("create_snapshots")),
        ("before the volume", |driver| driver.mds.fail("create", unavailable())),
        ("after the volume", |driver| driver.mds.lose_answer("create")),
        ("before the end", |driver| driver.mds.fail("delete", unavailable())),
        ("after the end", |driver| driver.mds.lose_answer("delete")),
    ];
    for (when, interrupt) in interruptions {
        let mut driver = Driver::start();
        let id = volume(&mut driver, "pvc-1", 8 * MIB).await;
        let request = made_from("pvc-2", MIB, origin(&id));
        interrupt(&driver);
        let error = create(&mut driver, request.clone()).await.expect_err(when);
        assert_eq!(error.code(), Code::Unavailable, "{when}: {}", error.message());
        for _ in 0..2 {
            create(&mut driver, request.clone()).await.expect(when);
            assert!(driver.mds.snapshot_names().is_empty(), "{when}");
        }
        // Also if its origin has gone in the meantime.
        delete_volume(&mut driver, &id).await;
        create(&mut driver, request).await.expect(when);
    }
}

#[tokio::test]
async fn a_clone_is_not_answered_while_its_snapshot_is_still_needed() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", 8 * MIB).await;
    driver.mds.fail("delete", VolumeError::Refused("volume pvc-2 is being made".to_owned()));
    let request = made_from("pvc-2", MIB, origin(&id));
    let error = create(&mut driver, request.clone()).await.expect_err("not over");
    // No code that makes the provisioner forget a volume that exists.
    assert_eq!(error.code(), Code::Aborted, "{}", error.message());
    assert_eq!(driver.mds.snapshot_names(), ["pvc-1@csi-clone-pvc-2"]);
    create(&mut driver, request).await.expect("made");
    assert!(driver.mds.snapshot_names().is_empty());
}

#[tokio::test]
async fn a_clone_that_cannot_be_made_leaves_no_snapshot() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", 8 * MIB).await;
    let error = create(&mut driver, made_from("pvc-2", 1 << 40, origin(&id))).await;
    assert_eq!(error.expect_err("no room").code(), Code::ResourceExhausted);
    assert!(driver.mds.snapshot_names().is_empty());
}

#[tokio::test]
async fn a_volume_is_not_made_from_a_snapshot_that_is_not_ready() {
    let mut driver = Driver::start();
    let id = volume(&mut driver, "pvc-1", 8 * MIB).await;
    let taken = take(&mut driver, &id, "s").await.snapshot_id;
    driver.mds.unready("pvc-1@s");
    let error = create(&mut driver, made_from("pvc-2", MIB, snapshot(&taken))).await;
    assert_eq!(error.expect_err("not ready").code(), Code::Aborted);
}
