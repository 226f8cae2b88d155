//! Frames that nobody should have sent.

use bytes::Bytes;
use curve_types::{CopysetId, DeviceId, Epoch, SessionId, VolumeId};
use curve_wire::auth::{Credentials, Principal, session_key};
use curve_wire::rpc::Connection;

use super::cluster::{Cluster, GROUP};
use crate::codec::message::{self, Refusal, encode_append, encode_vote, read_reply};
use crate::types::{AppendRequest, NodeId, Vote, VoteRequest};

const KINDS: [u16; 9] = [
    message::APPEND,
    message::VOTE,
    message::PRE_VOTE,
    message::TRANSFER,
    message::PROBE,
    message::SNAPSHOT_BEGIN,
    message::SNAPSHOT_PART,
    message::SNAPSHOT_FINISH,
    0x01ff,
];

async fn open(cluster: &Cluster, credentials: Credentials) -> Connection {
    let device = cluster.nodes[0].device;
    let address = cluster.addresses.0.lock().expect("lock")[&device].clone();
    Connection::open(&address, &credentials, device).await.expect("open")
}

async fn refusal(connection: &Connection, kind: u16, group: CopysetId, body: Bytes) -> Refusal {
    let reply = connection.call(kind, group.0, body, Bytes::new()).await.expect("answer");
    read_reply(reply.body).expect("reply").err().expect("refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_peers_may_send_raft_frames() {
    let cluster = Cluster::start(1).await;
    cluster.form(1).await;
    let session = Principal::Session {
        session: SessionId(1),
        volume: VolumeId::random(),
        epoch: Epoch(1),
        read_only: false,
    };
    let mds = Principal::Mds { device: DeviceId::random() };
    let strangers = [
        Credentials::session(session, session_key(&cluster.key, &session)),
        Credentials::peer(mds, &cluster.key),
    ];
    for credentials in strangers {
        let connection = open(&cluster, credentials).await;
        for kind in KINDS {
            assert_eq!(refusal(&connection, kind, GROUP, Bytes::new()).await, Refusal::Stranger);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_disturbs_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.form(1).await;
    cluster.put("key", "value").await;
    let principal = Principal::Peer { device: DeviceId::random() };
    let connection = open(&cluster, Credentials::peer(principal, &cluster.key)).await;
    for kind in KINDS {
        for body in [Bytes::new(), Bytes::from(vec![0xa5; 300]), Bytes::from(vec![0; 3 << 20])] {
            let refused = refusal(&connection, kind, GROUP, body).await;
            assert!(
                matches!(refused, Refusal::Malformed | Refusal::Snapshot),
                "{kind:#x}: {refused:?}"
            );
        }
        let refused = refusal(&connection, kind, CopysetId(999), Bytes::new()).await;
        assert_eq!(refused, Refusal::NoGroup);
    }
    cluster.put("key", "another").await;
    assert!(!connection.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_cannot_speak_for_another() {
    let cluster = Cluster::start(1).await;
    cluster.form(1).await;
    let principal = Principal::Peer { device: DeviceId::random() };
    let connection = open(&cluster, Credentials::peer(principal, &cluster.key)).await;
    let other = NodeId(DeviceId::random());
    let vote = encode_vote(&VoteRequest::new(Vote::new(9, other), None));
    assert_eq!(refusal(&connection, message::VOTE, GROUP, vote).await, Refusal::Stranger);
    let (append, _) = encode_append(AppendRequest {
        vote: Vote::new_committed(9, other),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    });
    assert_eq!(refusal(&connection, message::APPEND, GROUP, append).await, Refusal::Stranger);
}
