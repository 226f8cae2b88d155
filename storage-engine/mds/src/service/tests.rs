//! The services behind mutual TLS, with chunkservers that only remember what they are told.

use std::time::{Duration, Instant};

use curve_types::{CopysetId, Epoch, SessionId, VolumeId};
use curve_wire::auth::{Principal, session_key};
use curve_wire::chunk::{ChunkError, Command};
use curve_wire::pki::{Authority, Role};
use curve_wire::proto::mds_admin_client::MdsAdminClient;
use curve_wire::proto::mds_device_client::MdsDeviceClient;
use curve_wire::proto::mds_topology_client::MdsTopologyClient;
use curve_wire::proto::mds_volume_client::MdsVolumeClient;
use curve_wire::proto::{self, VolumeRef, volume_ref};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::log::WireId;
use crate::testing::{FakeChunkserver, TestMds, channel, formed_pool, request_id};

mod scrubs;
mod snapshots;

const OUT_AFTER: Duration = Duration::from_secs(600);
const MIB: u64 = 1 << 20;

fn by_name(name: &str) -> Option<VolumeRef> {
    Some(VolumeRef { by: Some(volume_ref::By::Name(name.to_owned())) })
}

fn volumes(mds: &TestMds, role: Role, name: &str) -> MdsVolumeClient<Channel> {
    MdsVolumeClient::new(mds.channel(role, name))
}

async fn create(client: &mut MdsVolumeClient<Channel>, name: &str) -> proto::Volume {
    let request = proto::CreateVolumeRequest {
        name: name.to_owned(),
        pool: String::new(),
        size: 64 * MIB,
        request_id: request_id(),
        ..Default::default()
    };
    client.create(request).await.expect("create").into_inner()
}

fn attach(name: &str, node: &str) -> proto::AttachRequest {
    proto::AttachRequest {
        volume: by_name(name),
        node: node.to_owned(),
        request_id: request_id(),
        ..Default::default()
    }
}

fn publish(name: &str, node: &str) -> proto::PublishRequest {
    proto::PublishRequest {
        volume: by_name(name),
        node: node.to_owned(),
        request_id: request_id(),
        ..Default::default()
    }
}

/// Epochs that a copyset was told to enforce, in order.
fn fences(servers: &[FakeChunkserver]) -> Vec<(u32, u64)> {
    let mut fences = Vec::new();
    for server in servers {
        for (copyset, commands) in server.told.commands.lock().expect("lock").iter() {
            fences.extend(commands.iter().filter_map(|command| match command {
                Command::Fence { min_epoch, .. } => Some((*copyset, min_epoch.0)),
                _ => None,
            }));
        }
    }
    fences.sort_unstable();
    fences
}

fn expect_refusal<T: std::fmt::Debug>(
    answer: Result<tonic::Response<T>, Status>,
    code: Code,
    sentence: &str,
) {
    let status = answer.expect_err(sentence);
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().contains(sentence), "{:?} should say {sentence:?}", status.message());
}

#[tokio::test]
async fn a_volume_is_attached_only_once_every_copyset_refuses_older_epochs() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    let volume = create(&mut admin, "data").await;
    let first = admin.attach(attach("data", "node1")).await.expect("attach").into_inner();
    assert_eq!(first.epoch, Epoch::of_attachment(1).0);
    let all: Vec<_> = (1..=8).map(|copyset| (copyset, Epoch::of_attachment(1).0)).collect();
    assert_eq!(fences(&servers), all);
    let principal = Principal::Session {
        session: SessionId(first.id),
        volume: VolumeId::from_wire(&volume.id).expect("id"),
        epoch: Epoch(first.epoch),
        read_only: false,
    };
    assert_eq!(first.key[..], session_key(&mds.chunkserver_key, &principal).0);

    let refused = admin.attach(attach("data", "node2")).await;
    let sentence = "volume \"data\" is attached on node1 (session 1, last seen 0.";
    expect_refusal(refused, Code::FailedPrecondition, sentence);
    let force = proto::AttachRequest { force: true, ..attach("data", "node2") };
    let second = admin.attach(force.clone()).await.expect("force").into_inner();
    assert_eq!(second.epoch, Epoch::of_attachment(2).0);
    // A retry of the same request finds the same session and fences nothing again.
    let before = fences(&servers).len();
    let again = admin.attach(force).await.expect("retry").into_inner();
    assert_eq!((again.id, &again.key), (second.id, &second.key));
    assert_eq!(fences(&servers).len(), before);

    let renew = |session: &proto::Session| proto::RenewSessionRequest {
        session: session.id,
        volume_id: volume.id.clone(),
    };
    expect_refusal(admin.renew_session(renew(&first)).await, Code::NotFound, "session 1 is fenced");
    admin.renew_session(renew(&again)).await.expect("renew");
    let detach = proto::DetachRequest {
        session: again.id,
        volume_id: volume.id.clone(),
        request_id: request_id(),
    };
    admin.detach(detach).await.expect("detach");
    admin.attach(attach("data", "node3")).await.expect("nobody is in the way");
}

/// An attach that no copyset answers, so that it waits until the leader is gone; then its retry.
async fn attach_over_a_change_of_leader(
    mds: &TestMds,
    servers: &mut [FakeChunkserver],
    admin: &mut MdsVolumeClient<Channel>,
    request: proto::AttachRequest,
) -> proto::Session {
    for server in servers.iter() {
        *server.told.refuse.lock().expect("lock") = Some(|_, _| Some(ChunkError::Unavailable));
    }
    let call = admin.attach(request.clone());
    assert!(tokio::time::timeout(Duration::from_millis(400), call).await.is_err(), "it waits");
    mds.fail_over().await;
    for server in servers {
        *server.told.refuse.lock().expect("lock") = None;
        server.heartbeat().await;
    }
    admin.attach(request).await.expect("retry").into_inner()
}

#[tokio::test]
async fn a_fence_that_was_interrupted_is_finished_by_the_next_leader() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "data").await;
    let session =
        attach_over_a_change_of_leader(&mds, &mut servers, &mut admin, attach("data", "node1"))
            .await;
    assert_eq!((session.id, session.epoch), (1, Epoch::of_attachment(1).0));
    let told: std::collections::BTreeSet<_> = fences(&servers).into_iter().collect();
    assert_eq!(told.len(), 8);
}

#[tokio::test]
async fn a_revocation_that_was_interrupted_is_finished_by_the_next_leader() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    create(&mut admin, "data").await;
    let shared = |node| proto::AttachRequest { shared: true, ..attach("data", node) };
    let first = admin.attach(shared("node1")).await.expect("attach").into_inner();
    admin.attach(shared("node2")).await.expect("attach");
    let again =
        attach_over_a_change_of_leader(&mds, &mut servers, &mut admin, shared("node1")).await;
    assert_eq!(again.epoch, first.epoch, "the other node's session goes on");
    let mut told = std::collections::BTreeSet::new();
    for server in &servers {
        for (copyset, commands) in server.told.commands.lock().expect("lock").iter() {
            for command in commands {
                if let Command::Revoke { session, min_epoch, .. } = command {
                    assert_eq!(*session, SessionId(first.id));
                    assert_eq!(*min_epoch, Epoch(first.epoch).next_attachment());
                    told.insert(*copyset);
                }
            }
        }
    }
    assert_eq!(told.len(), 8);
}

#[tokio::test]
async fn an_agent_gets_what_was_published_to_its_node_and_nothing_else() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut csi = volumes(&mds, Role::Csi, "controller");
    let mut agent = volumes(&mds, Role::Agent, "node1");
    let mut other = volumes(&mds, Role::Agent, "node2");
    create(&mut csi, "data").await;

    let denied = agent.attach(attach("data", "node1")).await;
    expect_refusal(denied, Code::PermissionDenied, "not published to node1");
    csi.publish(publish("data", "node1")).await.expect("publish");
    let refused = csi.publish(publish("data", "node2")).await;
    expect_refusal(refused, Code::FailedPrecondition, "published exclusively to node1");
    let session = agent.attach(attach("data", "node1")).await.expect("attach").into_inner();
    let imposter = other.attach(attach("data", "node1")).await;
    expect_refusal(imposter, Code::PermissionDenied, "the certificate is of agent \"node2\"");
    let get = VolumeRef { by: Some(volume_ref::By::Name("data".to_owned())) };
    agent.get(get.clone()).await.expect("its own");
    expect_refusal(other.get(get).await, Code::PermissionDenied, "not published to node2");
    let renew = proto::RenewSessionRequest { session: session.id, volume_id: session.volume_id };
    expect_refusal(other.renew_session(renew).await, Code::PermissionDenied, "node of the session");

    let before = fences(&servers).len();
    let unpublish = proto::UnpublishRequest {
        volume: by_name("data"),
        node: "node1".to_owned(),
        request_id: request_id(),
    };
    csi.unpublish(unpublish.clone()).await.expect("unpublish");
    assert_eq!(fences(&servers).len(), before + 8, "what the node still had open is fenced");
    csi.unpublish(unpublish).await.expect("again");
    let gone = proto::UnpublishRequest { volume: by_name("nope"), ..Default::default() };
    csi.unpublish(gone).await.expect("a volume that is gone is published nowhere");
}

#[tokio::test]
async fn an_attachment_learns_of_changed_limits_with_its_renewal() {
    let mds = TestMds::start(OUT_AFTER).await;
    let _servers = formed_pool(&mds).await;
    let mut csi = volumes(&mds, Role::Csi, "controller");
    let mut admin = volumes(&mds, Role::Admin, "me");
    let limits = proto::VolumeLimits { iops: Some(300), ..Default::default() };
    let request = proto::CreateVolumeRequest {
        name: "data".to_owned(),
        pool: String::new(),
        size: 64 * MIB,
        request_id: request_id(),
        limits: Some(limits),
        source: None,
    };
    let volume = csi.create(request).await.expect("create").into_inner();
    assert_eq!(volume.limits.expect("told").iops, Some(300));
    let session = admin.attach(attach("data", "node1")).await.expect("attach").into_inner();
    assert_eq!(session.limits.expect("told").iops, Some(300));

    let set = proto::SetLimitsRequest {
        volume: by_name("data"),
        limits: Some(proto::VolumeLimits { write_iops: Some(50), ..Default::default() }),
        request_id: request_id(),
    };
    let changed = csi.set_limits(set.clone()).await.expect("set").into_inner();
    let told = changed.limits.expect("told");
    assert_eq!((told.iops, told.write_iops), (Some(300), Some(50)));
    let renew = proto::RenewSessionRequest { session: session.id, volume_id: session.volume_id };
    let renewed = admin.renew_session(renew).await.expect("renew").into_inner();
    assert_eq!(renewed.limits, Some(told));

    let mut agent = volumes(&mds, Role::Agent, "node1");
    expect_refusal(agent.set_limits(set).await, Code::PermissionDenied, "it is for csi, admin");
}

#[tokio::test]
async fn a_deleted_volume_disappears_from_its_copysets() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    let mut csi = volumes(&mds, Role::Csi, "controller");
    create(&mut csi, "data").await;
    let delete = proto::DeleteVolumeRequest { volume: by_name("data"), request_id: request_id() };
    csi.delete(delete.clone()).await.expect("delete");
    csi.delete(delete).await.expect("again");
    let missing = VolumeRef { by: Some(volume_ref::By::Name("data".to_owned())) };
    expect_refusal(csi.get(missing).await, Code::NotFound, "volume \"data\" does not exist");
    let started = Instant::now();
    while !mds.node.state.read().volumes.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(5), "it is forgotten");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let deletes: usize = servers
        .iter()
        .flat_map(|server| server.told.commands.lock().expect("lock").clone().into_values())
        .flatten()
        .filter(|command| matches!(command, Command::DeleteVolume { .. }))
        .count();
    assert_eq!(deletes, 8);
}

#[tokio::test]
async fn roles_are_kept_apart() {
    let mds = TestMds::start(OUT_AFTER).await;
    for role in [Role::Agent, Role::Chunkserver, Role::Metrics, Role::Operator, Role::Mds] {
        let create = proto::CreateVolumeRequest { request_id: request_id(), ..Default::default() };
        let refused = volumes(&mds, role, "x").create(create).await;
        expect_refusal(refused, Code::PermissionDenied, "it is for csi, admin");
    }
    for role in [Role::Agent, Role::Csi, Role::Admin, Role::Metrics] {
        let mut client = MdsDeviceClient::new(mds.channel(role, "x"));
        let refused = client.register(proto::RegisterRequest::default()).await;
        expect_refusal(refused, Code::PermissionDenied, "it is for chunkserver");
    }
    let mut metrics = MdsAdminClient::new(mds.channel(Role::Metrics, "prometheus"));
    let refused = metrics.get_status(proto::GetStatusRequest {}).await;
    expect_refusal(refused, Code::PermissionDenied, "role metrics may not do that");
    let mut imposter = MdsDeviceClient::new(mds.channel(Role::Chunkserver, "cs-9"));
    let register = proto::RegisterRequest {
        name: "cs-0".to_owned(),
        address: "h:1".to_owned(),
        request_id: request_id(),
        ..Default::default()
    };
    let refused = imposter.register(register).await;
    expect_refusal(refused, Code::PermissionDenied, "the certificate is of chunkserver \"cs-9\"");
}

#[tokio::test]
async fn a_stranger_gets_no_connection() {
    let mds = TestMds::start(OUT_AFTER).await;
    let stranger = Authority::generate("demo").expect("another authority of that name");
    let forged = stranger.issue(Role::Admin, "me").expect("identity");
    let mut client = MdsAdminClient::new(channel(mds.address, &forged));
    let answer = client.get_status(proto::GetStatusRequest {}).await;
    answer.expect_err("it does not trust the server");
    // It trusts the server, but has no certificate that the server trusts.
    let trusted = mds.authority.issue(Role::Admin, "me").expect("identity");
    let mixed = curve_wire::pki::Identity { ca_pem: trusted.ca_pem, ..forged };
    let mut client = MdsAdminClient::new(channel(mds.address, &mixed));
    let refused = client.get_status(proto::GetStatusRequest {}).await.expect_err("refused");
    assert_ne!(refused.code(), Code::PermissionDenied, "refused before any request is read");
    // Without TLS there is nobody to talk to.
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{}", mds.address));
    let mut client = MdsAdminClient::new(plain.expect("endpoint").connect_lazy());
    client.get_status(proto::GetStatusRequest {}).await.expect_err("refused");
}

#[tokio::test]
async fn malformed_requests_are_refused_by_field() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut admin = volumes(&mds, Role::Admin, "me");
    let create = proto::CreateVolumeRequest { name: "x".to_owned(), ..Default::default() };
    let refused = admin.create(create).await;
    expect_refusal(refused, Code::InvalidArgument, "request_id has 0 bytes: expected 16");
    let by_id = VolumeRef { by: Some(volume_ref::By::Id(vec![1; 5].into())) };
    expect_refusal(admin.get(by_id).await, Code::InvalidArgument, "volume id has 5 bytes");
    let nothing = VolumeRef { by: None };
    expect_refusal(admin.get(nothing).await, Code::InvalidArgument, "volume is missing");

    let mut server = MdsDeviceClient::new(mds.channel(Role::Chunkserver, "*"));
    let register = |address: &str, host: &str, device_id: Vec<u8>| proto::RegisterRequest {
        name: "cs-0".to_owned(),
        host: host.to_owned(),
        address: address.to_owned(),
        device_id: device_id.into(),
        request_id: request_id(),
        ..Default::default()
    };
    let cases = [
        (register("nowhere", "h", vec![]), "address is \"nowhere\": expected HOST:PORT"),
        (register("h:0", "h", vec![]), "address is \"h:0\""),
        (register("h:1", "", vec![]), "host is \"\""),
        (register("h:1", "h", vec![1, 2]), "device_id has 2 bytes"),
    ];
    for (request, sentence) in cases {
        expect_refusal(server.register(request).await, Code::InvalidArgument, sentence);
    }
    let unknown = proto::HeartbeatRequest { device_id: vec![3; 16].into(), ..Default::default() };
    expect_refusal(server.heartbeat(unknown).await, Code::NotFound, "device 03030303");
}

#[tokio::test]
async fn a_watcher_hears_of_every_change_until_the_leader_is_another() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut client = MdsTopologyClient::new(mds.channel(Role::Agent, "node1"));
    let mut stream = client.watch(proto::WatchRequest {}).await.expect("watch").into_inner();
    let first = stream.message().await.expect("at once").expect("a map");
    assert!(first.copysets.is_empty());
    let servers = formed_pool(&mds).await;
    let mut last = first;
    while last.copysets.len() < 8 || last.copysets.iter().any(|c| c.leader.is_empty()) {
        let next = stream.message().await.expect("pushed").expect("a map");
        assert!(next.version > last.version);
        last = next;
    }
    assert_eq!(last.devices.expect("devices").devices.len(), servers.len());
    mds.fail_over().await;
    let ended = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    assert_eq!(ended.expect("told so").code(), Code::Unavailable);
}

#[tokio::test]
async fn status_says_what_is_wrong_with_numbers() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut admin = MdsAdminClient::new(mds.channel(Role::Admin, "me"));
    let status = async |admin: &mut MdsAdminClient<Channel>| {
        admin.get_status(proto::GetStatusRequest {}).await.expect("status").into_inner()
    };
    let empty = status(&mut admin).await;
    assert_eq!(empty.health(), proto::Health::Warn);
    assert!(empty.messages[0].contains("3 different hosts, 0 are registered"));
    let mut servers = formed_pool(&mds).await;
    for server in &mut servers {
        server.heartbeat().await;
    }
    let whole = status(&mut admin).await;
    assert_eq!((whole.health(), whole.messages.len()), (proto::Health::Ok, 0));
    assert_eq!((whole.copysets_whole, whole.devices.len(), whole.mds.len()), (8, 3, 1));
    assert_eq!(whole.pools[0].logical_capacity, (10u64 << 30) * 95 / 100);

    // Time passes without a word from the first.
    {
        let mut view = mds.node.view();
        let lost = view.devices.get_mut(&servers[0].device).expect("known");
        lost.at = Duration::ZERO;
        view.since = Duration::ZERO;
    }
    let early = mds.node.now() <= crate::view::DOWN_AFTER;
    if early {
        tokio::time::sleep(crate::view::DOWN_AFTER - mds.node.now()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        for server in &mut servers[1..] {
            server.heartbeat().await;
        }
    }
    let degraded = status(&mut admin).await;
    let sentence = "1 of 3 chunkservers down (cs-0, since 00:00:0";
    assert!(degraded.messages[0].starts_with(sentence), "{:?}", degraded.messages);
    assert!(degraded.messages[0].contains("no other chunkserver can take the replicas of cs-0"));
    // Copysets that the lost one led wait for their replicas' new leaders.
    assert!(degraded.copysets_degraded > 0 && degraded.copysets_whole == 0);
}

#[tokio::test]
async fn pools_are_made_listed_and_deleted() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut admin = MdsAdminClient::new(mds.channel(Role::Operator, "operator"));
    let create = |replicas| proto::CreatePoolRequest {
        name: "fast".to_owned(),
        replicas,
        failure_domain: proto::FailureDomain::Zone.into(),
        device_class: "nvme".to_owned(),
        request_id: request_id(),
        overcommit_percent: 0,
    };
    expect_refusal(admin.create_pool(create(2)).await, Code::InvalidArgument, "replicas is 2");
    let pool = admin.create_pool(create(3)).await.expect("create").into_inner();
    assert_eq!(pool.failure_domain(), proto::FailureDomain::Zone);
    admin.create_pool(create(3)).await.expect("the same again");
    let raise = proto::CreatePoolRequest { overcommit_percent: 200, ..create(3) };
    let raised = admin.create_pool(raise).await.expect("raised").into_inner();
    assert_eq!((pool.overcommit_percent, raised.overcommit_percent), (100, 200));
    assert_eq!(pool.id, raised.id);
    expect_refusal(admin.create_pool(create(5)).await, Code::AlreadyExists, "other properties");
    let pools =
        admin.list_pools(proto::ListPoolsRequest {}).await.expect("list").into_inner().pools;
    assert_eq!(pools.len(), 2);
    let mut volumes = volumes(&mds, Role::Csi, "controller");
    let request = proto::CreateVolumeRequest {
        name: "data".to_owned(),
        pool: "fast".to_owned(),
        size: MIB,
        request_id: request_id(),
        ..Default::default()
    };
    expect_refusal(volumes.create(request).await, Code::Unavailable, "has no copysets yet");
    let delete = || proto::DeletePoolRequest { name: "fast".to_owned(), request_id: request_id() };
    admin.delete_pool(delete()).await.expect("delete");
    admin.delete_pool(delete()).await.expect("already gone");
}

#[tokio::test]
async fn replicas_that_nobody_wants_are_dropped() {
    let mds = TestMds::start(OUT_AFTER).await;
    let mut servers = formed_pool(&mds).await;
    assert!(servers[0].heartbeat().await.drop.is_empty());
    let hosted = servers[0].heartbeat().await.host;
    mds.node
        .command(crate::log::command::Kind::DeletePool("default".to_owned()))
        .await
        .expect("delete");
    let dropped = servers[0].heartbeat().await.drop;
    let ids: Vec<_> = hosted.iter().map(|host| CopysetId(host.copyset).0).collect();
    assert_eq!(dropped, ids);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_takes_no_heartbeat_and_orders_nothing() {
    let mds = TestMds::start(OUT_AFTER).await;
    let servers = formed_pool(&mds).await;
    mds.cut_off();
    let unheard_of = proto::ReplicaReport { copyset: 99, ..Default::default() };
    let beat = proto::HeartbeatRequest {
        device_id: servers[0].device.to_wire(),
        address: servers[0].address.clone(),
        host: "host-of-cs-0".to_owned(),
        capacity: 10 << 30,
        replicas: vec![unheard_of],
        ..Default::default()
    };
    let mut client = MdsDeviceClient::new(mds.channel(Role::Chunkserver, "cs-0"));
    expect_refusal(client.heartbeat(beat).await, Code::Unavailable, "no quorum");
    let view = mds.node.view();
    assert!(!view.devices[&servers[0].device].replicas.contains_key(&CopysetId(99)));
}
