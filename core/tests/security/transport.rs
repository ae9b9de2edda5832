//! Who gets a connection at all: TLS 1.3, of this cluster's authority, and nobody stops the server for others.

use std::{io, sync::Arc, time::Duration};

use drsdb_core::{
    ErrorCode,
    security::{DevCa, Role, TlsFiles, tls},
    v1,
};
use rustls::{AlertDescription, ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::fixture::{Fixture, PATIENCE, code, pool_of};

/// Sends `bytes` in plaintext and returns all that comes back before the server closes.
async fn exchange(fixture: &Fixture, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(fixture.server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is a refusal too, but it must not come before the answer; the callers look at the answer.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server never closed the connection");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_clients_are_refused_with_a_reason() {
    let fixture = Fixture::start().await;

    let answer = exchange(&fixture, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("TLS 1.3"), "{answer}");

    // HTTP/2 with prior knowledge, which is what a plaintext gRPC client speaks.
    let answer = exchange(&fixture, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
    // Not one frame of HTTP/2: with SETTINGS, gRPC clients would think they had connected, and try again for ever.
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer).contains("TLS 1.3"));

    assert!(exchange(&fixture, &[0; 1000]).await.is_empty());
    fixture.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plaintext_grpc_client_gets_an_error_at_once() {
    let fixture = Fixture::start().await;
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{}", fixture.server.address)).unwrap();
    let mut client = v1::storage_client::StorageClient::new(plain.connect_lazy());
    let status = timeout(PATIENCE, client.status(v1::StatusRequest::default())).await.expect("it hangs").unwrap_err();
    assert_ne!(status.code(), tonic::Code::Ok);
    fixture.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_look_like_tls_and_are_not_are_refused() {
    let fixture = Fixture::start().await;
    // A record of a handshake that is none, a record that is too long, an SSLv2 hello, a cut one.
    for bytes in
        [&[22, 3, 1, 0, 4, 1, 2, 3, 4][..], &[22, 3, 1, 0xff, 0xff, 1][..], &[22; 3000][..], &[0x80, 0x2e, 1, 0, 2][..]]
    {
        exchange(&fixture, bytes).await;
        fixture.assert_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_1_2_client_is_refused_with_an_alert() {
    let fixture = Fixture::start().await;
    let roots = tls::trust_roots(fixture.ca.certificate_file()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let error = tls_error(&fixture, config).await;
    assert_eq!(error, rustls::Error::AlertReceived(AlertDescription::ProtocolVersion));
    fixture.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_wants_another_protocol_inside_tls_is_refused() {
    let fixture = Fixture::start().await;
    let roots = tls::trust_roots(fixture.ca.certificate_file()).unwrap();
    let mut config = ClientConfig::clone(&tls::user_client_config(roots).unwrap());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let error = tls_error(&fixture, config).await;
    assert_eq!(error, rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol));
}

async fn tls_error(fixture: &Fixture, config: ClientConfig) -> rustls::Error {
    let stream = TcpStream::connect(fixture.server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let error: io::Error = timeout(PATIENCE, connecting).await.expect("the handshake hangs").unwrap_err();
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).expect("a TLS error").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trusts_another_authority_does_not_connect() {
    let fixture = Fixture::start().await;
    let stranger = DevCa::open_or_create(&fixture.dir.path().join("stranger")).unwrap();
    let roots = tls::trust_roots(stranger.certificate_file()).unwrap();
    let pool = drsdb_core::net::ChannelPool::new(tls::user_client_config(roots).unwrap());
    let error = fixture.storage(&pool).status(v1::StatusRequest::default()).await.unwrap_err();
    let error = drsdb_core::WireError::from(error);
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(error.fields["server"], format!("https://{}", fixture.server.address));
    assert!(error.hint.contains("tls.ca"), "{error}");
    fixture.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_worth_nothing() {
    let fixture = Fixture::start().await;
    let stranger = DevCa::open_or_create(&fixture.dir.path().join("stranger")).unwrap();
    let forged = stranger.issue(&fixture.dir.path().join("forged"), Role::Index, &[]).unwrap();
    // It trusts the right authority and shows the wrong certificate.
    let files = TlsFiles { ca: fixture.ca.certificate_file().to_owned(), ..forged };
    let result =
        timeout(PATIENCE, async { fixture.storage(&pool_of(&files)).status(v1::StatusRequest::default()).await });
    let status = result.await.expect("it hangs").unwrap_err();
    let error = drsdb_core::net::name_server(status, &fixture.server.url).to_wire();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
    assert!(error.fields.contains_key("server"));
    fixture.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_reached_only_by_a_name_in_its_certificate() {
    let fixture = Fixture::start().await;
    let pool = fixture.server_pool(Role::Index);
    for (host, fits) in [("127.0.0.1", true), ("localhost", true), ("127.0.0.2", false)] {
        let url = url::Url::parse(&format!("https://{host}:{}", fixture.server.address.port())).unwrap();
        let mut client = v1::storage_client::StorageClient::new(pool.channel(&url).unwrap());
        match client.status(v1::StatusRequest::default()).await {
            Ok(_) => assert!(fits, "{host}"),
            Err(error) => {
                assert!(!fits, "{host}: {error}");
                assert_eq!(code::<(), _>(Err(error)), ErrorCode::Unavailable);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_clients_block_nobody_and_are_closed_in_the_end() {
    let fixture = Fixture::start().await;
    let started = Instant::now();
    let mut stalled = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(fixture.server.address).await.unwrap();
        // A third says nothing, a third begins a hello, a third a plaintext request.
        match number % 3 {
            0 => {}
            1 => stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap(),
            _ => stream.write_all(b"G").await.unwrap(),
        }
        stalled.push(stream);
    }
    fixture.assert_alive().await;
    for mut stream in stalled {
        let mut scratch = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut scratch)).await.expect("a stalled client is never closed");
    }
    assert!(started.elapsed() < Duration::from_secs(15));
    fixture.assert_alive().await;
}
