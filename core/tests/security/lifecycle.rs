//! Servers that stop, stall, break and come back; and what their callers see.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_flight::{FlightData, Ticket};
use bytes::Bytes;
use drsdb_core::{
    ErrorCode, WireError,
    net::{ChannelPool, DRAIN_TIME, name_server},
    security::{Role, ticket},
    v1::{self, storage_client::StorageClient},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tonic::Streaming;
use url::Url;

use crate::fixture::{Fixture, PATIENCE, Server, with_authorization};

/// Opens a result that stays open until the server is told to finish; its first message has arrived.
async fn open_stream(fixture: &Fixture) -> Streaming<FlightData> {
    let ticket = v1::Ticket { user: "ada".into(), expires_unix_ms: u64::MAX, ..Default::default() };
    let bearer = format!("Bearer {}", fixture.token("ada"));
    let request = with_authorization(Ticket::new(ticket::seal(&fixture.key, ticket)), Some(&bearer));
    let mut stream = fixture.flight().do_get(request).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("the first message");
    stream
}

async fn status_of(pool: &ChannelPool, url: &Url) -> Result<v1::StatusResponse, WireError> {
    let answer = StorageClient::new(pool.channel(url).unwrap()).status(v1::StatusRequest::default()).await;
    answer.map(tonic::Response::into_inner).map_err(|status| name_server(status, url).to_wire())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_finishes_what_runs_and_takes_nothing_new() {
    let mut fixture = Fixture::start().await;
    let idle = fixture.server_pool(Role::Index);
    status_of(&idle, &fixture.server.url).await.unwrap();
    let mut stream = open_stream(&fixture).await;

    fixture.server.shutdown.cancel();
    // The listener closes although a request still runs.
    let refused = async { while TcpStream::connect(fixture.server.address).await.is_ok() {} };
    timeout(PATIENCE, refused).await.expect("the server still listens");
    assert_eq!(fixture.server.services.running(), 1);

    fixture.server.services.finish.notify_waiters();
    let last = stream.message().await.unwrap().expect("the last message");
    assert_eq!(last.app_metadata, "last");
    assert!(stream.message().await.unwrap().is_none());
    let served = timeout(PATIENCE, &mut fixture.server.task).await.expect("idle connections hold the server up");
    served.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_end_is_cut_after_the_drain() {
    let mut fixture = Fixture::start().await;
    let mut stream = open_stream(&fixture).await;
    let stopped = Instant::now();
    fixture.server.shutdown.cancel();
    let served = timeout(PATIENCE, &mut fixture.server.task).await.expect("the drain never ends");
    served.unwrap().unwrap();
    assert!(stopped.elapsed() >= DRAIN_TIME, "the request had its time");
    let status = stream.message().await.expect_err("a cut stream ends in an error");
    let error = name_server(status, &fixture.server.url).to_wire();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
    assert_eq!(error.fields["server"], format!("https://{}", fixture.server.address));
    assert_eq!(fixture.server.services.running(), 0, "the handler is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_leaves_no_connection_and_is_named() {
    let fixture = Fixture::start().await;
    let mut stream = open_stream(&fixture).await;
    fixture.server.task.abort();
    let status = timeout(PATIENCE, stream.message()).await.expect("the client hangs").expect_err("a short result");
    let error = name_server(status, &fixture.server.url).to_wire();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
    assert_eq!(error.fields["server"], format!("https://{}", fixture.server.address));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_request() {
    let fixture = Fixture::start().await;
    let stream = open_stream(&fixture).await;
    assert_eq!(fixture.server.services.running(), 1);
    drop(stream);
    let ended = async {
        while fixture.server.services.running() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(1), ended).await.expect("the request outlives its client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_unavailable_and_named() {
    let fixture = Fixture::start().await;
    let pool = fixture.server_pool(Role::Index);
    // A port on which nothing listens any more.
    let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let url = Url::parse(&format!("https://{free}")).unwrap();
    let answer = StorageClient::new(pool.channel(&url).unwrap()).status(v1::StatusRequest::default()).await;
    // Without any help the status has it all.
    let error = WireError::from(answer.unwrap_err());
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(error.fields["server"], format!("https://{free}"));
    assert!(error.hint.contains("check that the server runs"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_unavailable_soon() {
    let fixture = Fixture::start().await;
    let pool = fixture.server_pool(Role::Index);
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = Url::parse(&format!("https://{}", silent.local_addr().unwrap())).unwrap();
    let started = Instant::now();
    let error = timeout(PATIENCE, status_of(&pool, &url)).await.expect("it hangs").unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(error.fields["server"], url.as_str().trim_end_matches('/'));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_finds_its_server_again() {
    let mut fixture = Fixture::start().await;
    let pool = fixture.server_pool(Role::Index);
    let url = fixture.server.url.clone();
    status_of(&pool, &url).await.unwrap();

    fixture.server.shutdown.cancel();
    (&mut fixture.server.task).await.unwrap().unwrap();
    assert_eq!(status_of(&pool, &url).await.unwrap_err().code, ErrorCode::Unavailable);

    let files = fixture.issue(Role::Storage);
    fixture.server = Server::start(&files, fixture.key.verifying_key(), fixture.server.address);
    status_of(&pool, &url).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_named() {
    let fixture = Fixture::start().await;
    let error = drsdb_core::net::bind(fixture.server.address).unwrap_err().to_wire();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(error.fields["address"], fixture.server.address.to_string());
    let error = drsdb_core::net::bind(([192, 0, 2, 1], 0).into()).unwrap_err().to_wire();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
}

/// Forwards connections to `to` until told to freeze; then it neither forwards nor closes, as a server that was stopped
/// or a network that swallows packets.
async fn freezing_proxy(to: SocketAddr) -> (SocketAddr, Arc<Notify>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let freeze = Arc::new(Notify::new());
    let frozen = Arc::clone(&freeze);
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            () = frozen.notified() => {}
        }
        // Both connections stay open, and nobody reads them.
        std::future::pending::<()>().await;
    });
    (address, freeze)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stopped_answering_is_noticed_within_seconds() {
    let fixture = Fixture::start().await;
    let (address, freeze) = freezing_proxy(fixture.server.address).await;
    let url = Url::parse(&format!("https://{address}")).unwrap();
    let pool = fixture.server_pool(Role::Index);
    status_of(&pool, &url).await.unwrap();

    freeze.notify_one();
    let started = Instant::now();
    let error = timeout(PATIENCE, status_of(&pool, &url)).await.expect("the call hangs").unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
    assert_eq!(error.fields["server"], url.as_str().trim_end_matches('/'));
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_do_not_starve_the_others() {
    let fixture = Fixture::start().await;
    let pool = fixture.server_pool(Role::Index);
    // More streams than HTTP/2's usual limit, all open at once on one connection.
    let channel = pool.channel(&fixture.server.url).unwrap();
    let bearer = format!("Bearer {}", fixture.token("ada"));
    let ticket = v1::Ticket {
        user: "ada".into(),
        expires_unix_ms: u64::MAX,
        query_id: Bytes::from(vec![1; 1 << 20]),
        ..Default::default()
    };
    let sealed = ticket::seal(&fixture.key, ticket);
    let mut unread = Vec::new();
    for _ in 0..300 {
        let mut client = arrow_flight::flight_service_client::FlightServiceClient::new(channel.clone());
        let request = with_authorization(Ticket::new(sealed.clone()), Some(&bearer));
        let opened = timeout(PATIENCE, client.do_get(request)).await.expect("a stream waits for its turn");
        unread.push(opened.unwrap());
    }
    timeout(PATIENCE, status_of(&pool, &fixture.server.url)).await.expect("the connection is starved").unwrap();
    assert_eq!(fixture.server.services.running(), 300);
}
