//! Scrubs as an administrator sees them: asked for, carried out by heartbeats, and what they found.

use super::*;

async fn scrubs(
    admin: &mut MdsAdminClient<Channel>,
    volume: Option<VolumeRef>,
) -> Result<proto::Scrubs, Status> {
    admin.get_scrubs(proto::GetScrubsRequest { volume }).await.map(tonic::Response::into_inner)
}

fn start(volume: Option<VolumeRef>) -> proto::StartScrubRequest {
    proto::StartScrubRequest { volume, request_id: request_id() }
}

fn schedule(cron: &str, window_secs: u64) -> proto::SetScrubScheduleRequest {
    let (schedule, request_id) = (cron.to_owned(), request_id());
    proto::SetScrubScheduleRequest { schedule, window_secs, request_id }
}

/// Heartbeats until every copyset has a scrub that began no earlier than `began_unix_ms`.
async fn scrubbed(
    admin: &mut MdsAdminClient<Channel>,
    servers: &mut [FakeChunkserver],
    began_unix_ms: u64,
) -> proto::Scrubs {
    for _ in 0..400 {
        for server in servers.iter_mut() {
            server.heartbeat().await;
        }
        let found = scrubs(admin, None).await.expect("scrubs");
        let ended = |scrub: &proto::CopysetScrub| {
            let last = scrub.last.as_ref();
            last.is_some_and(|last| last.began_unix_ms >= began_unix_ms) && scrub.running.is_none()
        };
        if found.copysets.iter().all(ended) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not scrubbed: {:?}", scrubs(admin, None).await);
}

#[tokio::test]
async fn a_scrub_says_what_it_repaired_and_which_replica_differs() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    let mut admin = MdsAdminClient::new(mds.channel(Role::Admin, "admin"));
    // Nobody asks: each copyset has never been scrubbed, and is due.
    let first = scrubbed(&mut admin, &mut servers, 0).await;
    assert!(first.open && !first.paused && first.schedule.is_empty());
    let ended = |scrubs: &proto::Scrubs| -> Vec<proto::EndedScrub> {
        scrubs.copysets.iter().filter_map(|scrub| scrub.last.clone()).collect()
    };
    for last in ended(&first) {
        assert_eq!(last.comparison(), proto::Comparison::Alike);
        assert_eq!(last.replicas.len(), 3);
        assert!(
            last.replicas.iter().all(|replica| replica.report.is_some_and(|r| r.repaired == 1))
        );
    }
    assert!(first.copysets.iter().all(|scrub| !scrub.due), "once a week");
    let status = |admin: &mut MdsAdminClient<Channel>| {
        let mut admin = admin.clone();
        async move { admin.get_status(proto::GetStatusRequest {}).await.expect("status").into_inner() }
    };
    assert_eq!(status(&mut admin).await.messages, Vec::<String>::new());

    servers[1].digest = 8;
    let mut volumes = volumes(&mds, Role::Csi, "controller");
    create(&mut volumes, "data").await;
    let before = ended(&first).iter().map(|last| last.ended_unix_ms).max().expect("some");
    let asked = admin.start_scrub(start(by_name("data"))).await.expect("start").into_inner();
    let of_volume = scrubs(&mut admin, by_name("data")).await.expect("scrubs").copysets;
    assert_eq!(asked.copysets, of_volume.iter().map(|scrub| scrub.copyset).collect::<Vec<_>>());
    let second = scrubbed(&mut admin, &mut servers, before).await;
    for last in ended(&second) {
        assert_eq!(last.comparison(), proto::Comparison::Differ);
        let odd = last
            .replicas
            .iter()
            .filter(|replica| replica.report.and_then(|report| report.digest?.value) == Some(8));
        assert_eq!(odd.map(|replica| &*replica.name).collect::<Vec<_>>(), ["cs-1"]);
    }
    let messages = status(&mut admin).await.messages;
    assert!(messages[0].contains("hold valid copies that differ"), "{messages:?}");
    // Another leader knows it too.
    mds.fail_over().await;
    assert_eq!(ended(&scrubs(&mut admin, None).await.expect("scrubs")), ended(&second));
}

#[tokio::test]
async fn who_may_scrub_when_and_what_is_refused() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    let mut admin = MdsAdminClient::new(mds.channel(Role::Admin, "admin"));
    let mut csi = MdsAdminClient::new(mds.channel(Role::Csi, "controller"));
    expect_refusal(csi.start_scrub(start(None)).await, Code::PermissionDenied, "role");
    expect_refusal(csi.set_scrub_schedule(schedule("", 0)).await, Code::PermissionDenied, "role");
    let unknown = admin.start_scrub(start(by_name("nope"))).await;
    expect_refusal(unknown, Code::NotFound, "volume \"nope\" does not exist");
    let refused = admin.set_scrub_schedule(schedule("0 25 * * *", 3600)).await;
    expect_refusal(refused, Code::InvalidArgument, "schedule is \"0 25 * * *\": expected");
    let refused = admin.set_scrub_schedule(schedule("0 1 * * *", 5)).await;
    expect_refusal(refused, Code::InvalidArgument, "window is 5 s: expected 60 to 604800 s");

    let pause = |paused| proto::PauseSchedulersRequest {
        schedulers: vec!["scrub".to_owned()],
        paused,
        request_id: request_id(),
    };
    admin.pause_schedulers(pause(true)).await.expect("pause");
    let refused = admin.start_scrub(start(None)).await;
    expect_refusal(refused, Code::FailedPrecondition, "curve scheduler resume scrub");
    for server in &mut servers {
        assert!(server.heartbeat().await.scrubs.iter().all(|order| !order.walk));
    }
    admin.pause_schedulers(pause(false)).await.expect("resume");
    admin.set_scrub_schedule(schedule("0 1 * * *", 3600)).await.expect("a schedule");
    let found = scrubs(&mut admin, None).await.expect("scrubs");
    assert_eq!((&*found.schedule, found.window_secs), ("0 1 * * *", 3600));
    admin.set_scrub_schedule(schedule("", 0)).await.expect("none");
    assert!(scrubs(&mut admin, None).await.expect("scrubs").schedule.is_empty());
}
