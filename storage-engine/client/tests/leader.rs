//! The MDS client against servers that follow, lead, refuse or are not there.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use curve_client::{CreatePool, MdsClient, MdsErrorKind};
use curve_wire::pki::{Authority, Role};
use curve_wire::proto::mds_admin_server::{MdsAdmin, MdsAdminServer};
use curve_wire::proto::*;
use curve_wire::tls;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Answers each pool creation with the next status, then with success.
#[derive(Clone, Default)]
struct Script {
    statuses: Arc<Mutex<Vec<Status>>>,
    request_ids: Arc<Mutex<Vec<Bytes>>>,
}

#[tonic::async_trait]
impl MdsAdmin for Script {
    async fn create_pool(
        &self,
        request: Request<CreatePoolRequest>,
    ) -> Result<Response<Pool>, Status> {
        let request = request.into_inner();
        self.request_ids.lock().expect("unpoisoned").push(request.request_id);
        match self.statuses.lock().expect("unpoisoned").pop() {
            Some(status) => Err(status),
            None => Ok(Response::new(Pool { name: request.name, ..Pool::default() })),
        }
    }

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        std::future::pending().await
    }

    async fn list_pools(
        &self,
        _: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn pause_schedulers(
        &self,
        _: Request<PauseSchedulersRequest>,
    ) -> Result<Response<PauseSchedulersResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn start_scrub(
        &self,
        _: Request<StartScrubRequest>,
    ) -> Result<Response<StartScrubResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn get_scrubs(&self, _: Request<GetScrubsRequest>) -> Result<Response<Scrubs>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn set_scrub_schedule(
        &self,
        _: Request<SetScrubScheduleRequest>,
    ) -> Result<Response<SetScrubScheduleResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn delete_pool(
        &self,
        _: Request<DeletePoolRequest>,
    ) -> Result<Response<DeletePoolResponse>, Status> {
        Err(Status::not_found("no pool \"x\""))
    }
}

async fn serve(authority: &Authority, script: Script) -> String {
    tls::install_crypto_provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let identity = authority.issue(Role::Mds, "mds").expect("a certificate");
    let served = tonic::transport::Server::builder()
        .tls_config(tls::server_config(&identity))
        .expect("valid certificates")
        .add_service(MdsAdminServer::new(script))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(served);
    address
}

/// An address that refuses connections.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("bound").to_string()
}

fn client(authority: &Authority, endpoints: &[String]) -> MdsClient {
    let identity = authority.issue(Role::Admin, "test").expect("a certificate");
    MdsClient::connect(endpoints, &identity).expect("valid endpoints")
}

fn pool() -> CreatePool {
    CreatePool {
        name: "p".into(),
        replicas: 3,
        failure_domain: FailureDomain::Host,
        device_class: String::new(),
        overcommit_percent: None,
    }
}

#[tokio::test]
async fn the_leader_is_found_and_remembered_and_a_retry_repeats_the_request_id() {
    let authority = Authority::generate("test").expect("an authority");
    let (follower, leader) = (Script::default(), Script::default());
    let not_leader = || Status::unavailable("not the leader");
    *follower.statuses.lock().expect("unpoisoned") = vec![not_leader(), not_leader(), not_leader()];
    *leader.statuses.lock().expect("unpoisoned") = vec![not_leader()];
    let endpoints = [
        nobody().await,
        serve(&authority, follower.clone()).await,
        serve(&authority, leader.clone()).await,
    ];
    let client = client(&authority, &endpoints);
    assert_eq!(client.create_pool(pool()).await.expect("found").name, "p");
    let ids = [follower.request_ids.clone(), leader.request_ids.clone()];
    let ids: Vec<Bytes> =
        ids.iter().flat_map(|ids| ids.lock().expect("unpoisoned").clone()).collect();
    assert_eq!(ids.len(), 4, "two rounds");
    assert!(ids.iter().all(|id| id.len() == 16 && *id == ids[0]), "{ids:?}");

    client.create_pool(pool()).await.expect("remembered");
    assert_eq!(follower.request_ids.lock().expect("unpoisoned").len(), 2);
    assert_ne!(leader.request_ids.lock().expect("unpoisoned")[2], ids[0], "another call");
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let authority = Authority::generate("test").expect("an authority");
    let script = Script::default();
    let status = Status::resource_exhausted("pool \"p\" is full: 3 of 3 GiB");
    *script.statuses.lock().expect("unpoisoned") = vec![status];
    let client = client(&authority, &[serve(&authority, script.clone()).await]);
    let error = client.create_pool(pool()).await.expect_err("full");
    assert_eq!(error.kind, MdsErrorKind::Exhausted);
    assert_eq!(error.to_string(), "create pool: pool \"p\" is full: 3 of 3 GiB");
    let error = client.delete_pool("x").await.expect_err("none");
    assert_eq!(error.kind, MdsErrorKind::NotFound);
}

#[tokio::test]
async fn without_a_leader_a_call_ends_at_its_deadline_and_says_why() {
    let authority = Authority::generate("test").expect("an authority");
    let endpoints = [nobody().await, nobody().await];
    let client = client(&authority, &endpoints).with_deadline(Duration::from_millis(300));
    let error = client.list_pools().await.expect_err("nobody is there");
    assert_eq!(error.kind, MdsErrorKind::Unavailable);
    assert!(error.message.contains("0.3 s") && error.message.contains("refused"), "{error}");
    let silent = [serve(&authority, Script::default()).await];
    let client = self::client(&authority, &silent).with_deadline(Duration::from_millis(300));
    let error = client.status().await.expect_err("no answer");
    assert!(error.message.contains("no answer"), "{error}");
}

#[tokio::test]
async fn a_client_of_another_cluster_is_refused() {
    let authority = Authority::generate("test").expect("an authority");
    let other = Authority::generate("test").expect("an authority");
    let endpoints = [serve(&authority, Script::default()).await];
    let client = client(&other, &endpoints).with_deadline(Duration::from_millis(300));
    let error = client.create_pool(pool()).await.expect_err("a stranger");
    assert_eq!(error.kind, MdsErrorKind::Unavailable);
}
