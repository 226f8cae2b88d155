//! Snapshots, clones and rollback, with chunkservers that say what they are told to say.

use super::*;

/// What a command about a snapshot is called, and of which volume and snapshot it is.
fn about(command: &Command) -> Option<(&'static str, VolumeId, VolumeId)> {
    match command {
        Command::Snapshot { volume, snapshot } => Some(("snapshot", *volume, *snapshot)),
        Command::Thaw { volume, snapshot } => Some(("thaw", *volume, *snapshot)),
        Command::Restore { volume, snapshot, .. } => Some(("restore", *volume, *snapshot)),
        Command::DeleteVolume { volume } => Some(("delete", *volume, *volume)),
        _ => None,
    }
}

/// Copysets that carried out such a command, each once.
fn carried_out(servers: &[FakeChunkserver], wanted: (&'static str, VolumeId, VolumeId)) -> usize {
    let mut copysets = std::collections::BTreeSet::new();
    for server in servers {
        for (copyset, commands) in server.told.commands.lock().expect("lock").iter() {
            if commands.iter().any(|command| about(command) == Some(wanted)) {
                copysets.insert(*copyset);
            }
        }
    }
    copysets.len()
}

fn refuse(servers: &[FakeChunkserver], refuse: Option<crate::testing::Refusing>) {
    for server in servers {
        *server.told.refuse.lock().expect("lock") = refuse;
    }
}

/// Copysets of silent chunkservers have no leader that is known.
async fn beat(servers: &mut [FakeChunkserver]) {
    for server in servers {
        server.heartbeat().await;
    }
}

fn id_of(volume: &proto::Volume) -> VolumeId {
    VolumeId::from_wire(&volume.id).expect("id")
}

fn snapshots_of(names: &[(&str, &str)]) -> proto::CreateSnapshotsRequest {
    let new = |(volume, name): &(&str, &str)| proto::NewSnapshot {
        volume: by_name(volume),
        name: (*name).to_owned(),
    };
    let snapshots = names.iter().map(new).collect();
    proto::CreateSnapshotsRequest { snapshots, request_id: request_id() }
}

async fn take(client: &mut MdsVolumeClient<Channel>, volume: &str, name: &str) -> proto::Volume {
    let taken = client.create_snapshots(snapshots_of(&[(volume, name)])).await.expect("snapshot");
    taken.into_inner().snapshots.remove(0)
}

fn clone_of(snapshot: &str, name: &str) -> proto::CreateVolumeRequest {
    proto::CreateVolumeRequest {
        name: name.to_owned(),
        request_id: request_id(),
        source: by_name(snapshot),
        ..Default::default()
    }
}

async fn list(client: &mut MdsVolumeClient<Channel>, of: Option<VolumeRef>) -> Vec<String> {
    let request = proto::ListSnapshotsRequest { volume: of, ..Default::default() };
    let listed = client.list_snapshots(request).await.expect("list").into_inner();
    listed.volumes.into_iter().map(|volume| volume.name).collect()
}

/// Waits for what the leader does by itself.
async fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn snapshots_are_ready_once_every_copyset_was_frozen_and_then_all_thaw() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    let origins = [create(&mut admin, "db").await, create(&mut admin, "wal").await];
    let wanted = || snapshots_of(&[("db", "n"), ("wal", "n")]);
    let taken = admin.create_snapshots(wanted()).await.expect("snapshots").into_inner().snapshots;
    for (snapshot, origin) in taken.iter().zip(&origins) {
        let info = snapshot.snapshot.clone().expect("a snapshot");
        assert_eq!(snapshot.name, format!("{}@n", origin.name));
        assert!(info.ready && info.volume_id == origin.id && info.volume_name == origin.name);
        for step in ["snapshot", "thaw"] {
            let step = (step, id_of(origin), id_of(snapshot));
            assert_eq!(carried_out(&servers, step), 8, "{step:?}");
        }
    }
    assert!(mds.node.view().taking.is_empty());
    // The same again freezes nothing.
    let again = admin.create_snapshots(wanted()).await.expect("again").into_inner().snapshots;
    assert_eq!(again, taken);

    assert_eq!(list(&mut admin, None).await, ["db@n", "wal@n"]);
    assert_eq!(list(&mut admin, by_name("wal")).await, ["wal@n"]);
    let missing = proto::ListSnapshotsRequest { volume: by_name("lag"), ..Default::default() };
    let refused = admin.list_snapshots(missing).await;
    expect_refusal(refused, Code::NotFound, "volume \"lag\" does not exist");
    let all = admin.list(proto::ListVolumesRequest::default()).await.expect("list").into_inner();
    assert_eq!(all.volumes.len(), 2);
    let read_only = proto::AttachRequest { read_only: true, ..attach("db@n", "node1") };
    let session = admin.attach(read_only).await.expect("attach").into_inner();
    assert!(session.read_only);
    let refused = admin.attach(attach("wal@n", "node1")).await;
    expect_refusal(refused, Code::FailedPrecondition, "\"wal@n\" is a snapshot");

    // They stay when their volume goes, and are found under its id and its name.
    let delete = proto::DeleteVolumeRequest { volume: by_name("db"), request_id: request_id() };
    admin.delete(delete).await.expect("delete");
    assert_eq!(list(&mut admin, by_name("db")).await, ["db@n"]);
    let by_id = VolumeRef { by: Some(volume_ref::By::Id(origins[0].id.clone())) };
    assert_eq!(list(&mut admin, Some(by_id)).await, ["db@n"]);
}

#[tokio::test]
async fn a_page_of_snapshots_ends_where_the_next_begins() {
    let mds = TestMds::start(OUT_AFTER).await;
    let _servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    for volume in ["a", "b"] {
        create(&mut admin, volume).await;
        take(&mut admin, volume, "1").await;
        take(&mut admin, volume, "2").await;
    }
    let mut names: Vec<String> = Vec::new();
    loop {
        let after_name = names.last().cloned().unwrap_or_default();
        let request = proto::ListSnapshotsRequest { volume: None, after_name, limit: 3 };
        let page = admin.list_snapshots(request).await.expect("list").into_inner();
        names.extend(page.volumes.into_iter().map(|volume| volume.name));
        if !page.more {
            break;
        }
    }
    assert_eq!(names, ["a@1", "a@2", "b@1", "b@2"]);
}

#[tokio::test]
async fn a_copyset_that_does_not_freeze_in_time_costs_all_snapshots_and_thaws_the_others() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    let db = id_of(&create(&mut admin, "db").await);
    create(&mut admin, "wal").await;
    refuse(
        &servers,
        Some(|copyset, command| {
            let silent = copyset == 3 && matches!(command, Command::Snapshot { .. });
            silent.then_some(ChunkError::Unavailable)
        }),
    );
    let started = Instant::now();
    let refused = admin.create_snapshots(snapshots_of(&[("db", "n"), ("wal", "n")])).await;
    let sentence = "no snapshot was taken: copyset 3 did not answer within 5s";
    expect_refusal(refused, Code::DeadlineExceeded, sentence);
    assert!(started.elapsed() < Duration::from_secs(8));
    let left: Vec<VolumeId> = {
        let state = mds.node.state.read();
        assert_eq!(state.snapshots_after("").count(), 0);
        state.volumes.iter().filter(|(_, v)| v.snapshot.is_some()).map(|(id, _)| *id).collect()
    };
    until("they are dropped", || mds.node.state.read().volumes.len() == 2).await;
    let thawed = servers
        .iter()
        .flat_map(|server| server.told.commands.lock().expect("lock").clone().into_iter());
    let thawed = thawed.filter(|(_, commands)| {
        commands.iter().filter_map(about).any(|(step, of, _)| step == "thaw" && of == db)
    });
    assert_eq!(thawed.count(), 8);
    for id in left {
        assert_eq!(carried_out(&servers, ("delete", id, id)), 8);
    }
    // Nothing is in the way of the next attempt.
    refuse(&servers, None);
    beat(&mut servers).await;
    take(&mut admin, "db", "n").await;
}

#[tokio::test]
async fn a_freeze_that_ended_or_a_snapshot_that_is_gone_fails_the_attempt_at_once() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "db").await;
    let cases: [(crate::testing::Refusing, Code); 3] = [
        (
            |_, command| matches!(command, Command::Snapshot { .. }).then_some(ChunkError::Thawed),
            Code::DeadlineExceeded,
        ),
        (
            |_, command| matches!(command, Command::Snapshot { .. }).then_some(ChunkError::Deleted),
            Code::DeadlineExceeded,
        ),
        (
            |_, command| matches!(command, Command::Snapshot { .. }).then_some(ChunkError::NoSpace),
            Code::ResourceExhausted,
        ),
    ];
    for (refusing, code) in cases {
        refuse(&servers, Some(refusing));
        let started = Instant::now();
        let refused = admin.create_snapshots(snapshots_of(&[("db", "n")])).await;
        expect_refusal(refused, code, "refuses");
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}

#[tokio::test]
async fn snapshots_that_a_leader_leaves_unfinished_are_removed_by_the_next() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "db").await;
    refuse(
        &servers,
        Some(|_, command| {
            matches!(command, Command::Snapshot { .. }).then_some(ChunkError::Unavailable)
        }),
    );
    let mut other = admin.clone();
    let call =
        tokio::spawn(async move { other.create_snapshots(snapshots_of(&[("db", "n")])).await });
    until("it is begun", || mds.node.state.read().volumes.len() == 2).await;
    // While it is under way its own leader leaves it alone.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(mds.node.state.read().snapshots_after("").count(), 1);

    mds.fail_over().await;
    beat(&mut servers).await;
    until("the next leader drops it", || mds.node.state.read().volumes.len() == 1).await;
    refuse(&servers, None);
    let late = call.await.expect("no panic");
    late.expect_err("what was given up does not become ready");
    beat(&mut servers).await;
    take(&mut admin, "db", "n").await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "db").await;
    refuse(
        &servers,
        Some(|_, command| {
            matches!(command, Command::Snapshot { .. }).then_some(ChunkError::Unavailable)
        }),
    );
    let call = admin.create_snapshots(snapshots_of(&[("db", "n")]));
    assert!(tokio::time::timeout(Duration::from_millis(500), call).await.is_err(), "it waits");
    until("it is dropped", || mds.node.state.read().volumes.len() == 1).await;
    assert!(mds.node.view().taking.is_empty());
}

#[tokio::test]
async fn a_clone_is_attached_only_once_every_copyset_has_its_data() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "db").await;
    let snapshot = take(&mut admin, "db", "n").await;
    refuse(
        &servers,
        Some(|copyset, command| {
            let late = copyset == 3 && matches!(command, Command::Restore { .. });
            late.then_some(ChunkError::Unavailable)
        }),
    );
    let request = clone_of("db@n", "copy");
    let call = admin.create(request.clone());
    assert!(tokio::time::timeout(Duration::from_millis(500), call).await.is_err(), "it waits");
    let refused = admin.attach(attach("copy", "node1")).await;
    let sentence = "its data is still being taken over from \"db@n\"";
    expect_refusal(refused, Code::Unavailable, sentence);
    let delete = proto::DeleteVolumeRequest { volume: by_name("db@n"), request_id: request_id() };
    let refused = admin.delete(delete.clone()).await;
    expect_refusal(refused, Code::FailedPrecondition, "\"copy\" is still taking over the data");

    refuse(&servers, None);
    let copy = admin.create(request).await.expect("retry").into_inner();
    assert_eq!((copy.size, &copy.source_id), (64 * MIB, &snapshot.id));
    assert_eq!(carried_out(&servers, ("restore", id_of(&copy), id_of(&snapshot))), 8);
    let session = admin.attach(attach("copy", "node1")).await.expect("attach").into_inner();
    assert_eq!(session.epoch, Epoch::of_attachment(2).0);
    admin.delete(delete).await.expect("the clone needs it no more");
}

#[tokio::test]
async fn a_clone_that_was_interrupted_is_finished_by_the_next_leader() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "db").await;
    take(&mut admin, "db", "n").await;
    refuse(
        &servers,
        Some(|_, command| {
            matches!(command, Command::Restore { .. }).then_some(ChunkError::Unavailable)
        }),
    );
    let call = admin.create(clone_of("db@n", "copy"));
    assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err(), "it waits");
    mds.fail_over().await;
    refuse(&servers, None);
    beat(&mut servers).await;
    until("its data is there", || {
        let state = mds.node.state.read();
        state.volume_by_name("copy").is_some_and(|(_, volume)| volume.restoring.is_none())
    })
    .await;
    admin.attach(attach("copy", "node1")).await.expect("attach");
}

#[tokio::test]
async fn a_clone_of_a_snapshot_that_a_copyset_lost_is_not_taken_for_empty() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "db").await;
    take(&mut admin, "db", "n").await;
    refuse(
        &servers,
        Some(|_, command| {
            matches!(command, Command::Restore { .. }).then_some(ChunkError::Deleted)
        }),
    );
    let refused = admin.create(clone_of("db@n", "copy")).await;
    expect_refusal(refused, Code::Internal, "refuses: the volume");
    // Deleting it is the way out.
    let delete = proto::DeleteVolumeRequest { volume: by_name("copy"), request_id: request_id() };
    admin.delete(delete).await.expect("delete");
    until("it is forgotten", || mds.node.state.read().volumes.len() == 2).await;
}

#[tokio::test]
async fn a_volume_is_rolled_back_while_it_is_not_attached() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    let db = create(&mut admin, "db").await;
    let snapshot = take(&mut admin, "db", "n").await;
    let session = admin.attach(attach("db", "node1")).await.expect("attach").into_inner();
    let rollback = || proto::RollbackRequest {
        volume: by_name("db"),
        snapshot: by_name("db@n"),
        request_id: request_id(),
    };
    let refused = admin.rollback(rollback()).await;
    expect_refusal(refused, Code::FailedPrecondition, "volume \"db\" is attached on node1");
    assert_eq!(carried_out(&servers, ("restore", id_of(&db), id_of(&snapshot))), 0);
    let detach = proto::DetachRequest {
        session: session.id,
        volume_id: session.volume_id,
        request_id: request_id(),
    };
    admin.detach(detach).await.expect("detach");
    let request = rollback();
    let back = admin.rollback(request.clone()).await.expect("roll back").into_inner();
    assert_eq!((&back.id, back.epoch), (&db.id, Epoch::of_attachment(2).0));
    assert_eq!(carried_out(&servers, ("restore", id_of(&db), id_of(&snapshot))), 8);
    // A retry of the same request does not do it again.
    let again = admin.rollback(request).await.expect("retry").into_inner();
    assert_eq!(again.epoch, back.epoch);
    let mut agent = volumes(&mds, Role::Agent, "node1");
    expect_refusal(
        agent.rollback(rollback()).await,
        Code::PermissionDenied,
        "it is for csi, admin",
    );
}

#[tokio::test]
async fn nothing_is_frozen_while_a_copyset_has_no_leader() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "db").await;
    mds.fail_over().await;
    let refused = admin.create_snapshots(snapshots_of(&[("db", "n")])).await;
    expect_refusal(refused, Code::Unavailable, "has no leader at this moment");
    for server in &servers {
        let commands = server.told.commands.lock().expect("lock").clone();
        let froze = |command: &Command| matches!(command, Command::Snapshot { .. });
        assert!(!commands.values().flatten().any(froze));
    }
}
