//! What a connection, a token and a ticket allow, over the wire: each refusal with its code.

use std::time::Duration;

use arrow_flight::{HandshakeRequest, Ticket, flight_service_client::FlightServiceClient};
use bytes::Bytes;
use drsdb_core::{
    ErrorCode, WireError, ids,
    security::{Role, SigningKey, TlsFiles, ticket, token},
    v1::{self, raft_client::RaftClient},
};
use futures::StreamExt;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tonic::transport::Channel;

use crate::fixture::{Fixture, code, login, pool_of, who, with_authorization};

#[tokio::test(flavor = "multi_thread")]
async fn every_request_needs_a_login_except_the_login() {
    let fixture = Fixture::start().await;
    let mut client = fixture.flight();
    let error = who(&mut client, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert!(error.hint.contains("Handshake"), "the details survive the wire: {error:?}");

    let hello = || futures::stream::iter([HandshakeRequest::default()]);
    for header in [None, Some("Basic YWRhOnNlY3JldA==")] {
        let request = with_authorization(hello(), header);
        let mut answers = client.handshake(request).await.unwrap().into_inner();
        let answer = answers.next().await.unwrap().unwrap();
        assert_eq!(answer.payload, header.unwrap_or("none").as_bytes(), "the login reads the header itself");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_the_user_and_any_other_text_nobody() {
    let fixture = Fixture::start().await;
    let mut client = fixture.flight();
    let good = fixture.token("ada");
    assert_eq!(who(&mut client, Some(&format!("Bearer {good}"))).await.unwrap(), "user ada");

    let expired = token::issue(&fixture.key, &login("ada"), Duration::ZERO);
    let (stranger, _) = SigningKey::generate().unwrap();
    let forged = token::issue(&stranger, &login("ada"), Duration::from_secs(60));
    let cut = &good[..good.len() - 1];
    for bad in [&expired, &forged, cut, "", "garbage", "AAAA"] {
        let answer = who(&mut client, Some(&format!("Bearer {bad}"))).await;
        assert_eq!(code(answer), ErrorCode::Unauthenticated, "{bad}");
    }
    for bad in ["Basic YWRhOnNlY3JldA==", &good, "Bearer"] {
        assert_eq!(code(who(&mut client, Some(bad)).await), ErrorCode::Unauthenticated, "{bad}");
    }
    // The connection itself is still good.
    assert_eq!(who(&mut client, Some(&format!("Bearer {good}"))).await.unwrap(), "user ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_the_cluster_need_a_servers_certificate() {
    let fixture = Fixture::start().await;
    let bearer = format!("Bearer {}", fixture.token("ada"));
    for (pool, expected) in [
        (fixture.server_pool(Role::Index), Ok("server index")),
        (fixture.server_pool(Role::Storage), Ok("server storage")),
        (fixture.client_pool(), Err(ErrorCode::PermissionDenied)),
        (pool_of(&without_role(&fixture)), Err(ErrorCode::PermissionDenied)),
    ] {
        for authorization in [None, Some(bearer.as_str())] {
            let request = with_authorization(v1::StatusRequest::default(), authorization);
            let answer = fixture.storage(&pool).status(request).await;
            let answer =
                answer.map(|status| status.into_inner().server_id).map_err(|error| WireError::from(error).code);
            assert_eq!(answer.as_deref(), expected.as_ref().map(|name| *name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consensus_is_for_index_servers_alone() {
    let fixture = Fixture::start().await;
    let message = || v1::RaftMessage { payload: Bytes::from_static(b"x"), to: None };
    for (pool, allowed) in [
        (fixture.server_pool(Role::Index), true),
        (fixture.server_pool(Role::Storage), false),
        (fixture.client_pool(), false),
    ] {
        let answer = RaftClient::new(pool.channel(&fixture.server.url).unwrap()).append(message()).await;
        match answer {
            Ok(_) => assert!(allowed),
            Err(error) => {
                assert!(!allowed);
                assert_eq!(WireError::from(error).code, ErrorCode::PermissionDenied);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_speaks_for_itself_or_for_a_user() {
    let fixture = Fixture::start().await;
    let channel = fixture.server_pool(Role::Index).channel(&fixture.server.url).unwrap();
    let mut client = FlightServiceClient::new(channel);
    assert_eq!(who(&mut client, None).await.unwrap(), "server index");
    assert_eq!(who(&mut client, Some(&format!("Bearer {}", fixture.token("ada")))).await.unwrap(), "user ada");
    assert_eq!(code(who(&mut client, Some("Bearer x")).await), ErrorCode::Unauthenticated);
}

/// A certificate of the cluster's authority that is no server's: a user's, say.
fn without_role(fixture: &Fixture) -> TlsFiles {
    let ca = fixture.dir.path().join("ca");
    let read = |name: &str| std::fs::read_to_string(ca.join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let path = |name: &str| fixture.dir.path().join(name);
    std::fs::write(path("user.pem"), certificate.pem()).unwrap();
    std::fs::write(path("user.key"), key.serialize_pem()).unwrap();
    TlsFiles { ca: ca.join("ca.pem"), certificate: path("user.pem"), key: path("user.key") }
}

fn ticket_of(user: &str, expires_unix_ms: u64) -> v1::Ticket {
    v1::Ticket {
        query_id: Bytes::from_static(&[7; 16]),
        user: user.to_owned(),
        expires_unix_ms,
        snapshot: 1,
        fragment: Some(v1::ticket::Fragment::HeadPlan(Bytes::from_static(b"plan"))),
        ..Default::default()
    }
}

/// The query id of the first message, or why there is none.
async fn redeem(
    fixture: &Fixture,
    client: &mut FlightServiceClient<Channel>,
    bytes: impl Into<Bytes>,
    user: &str,
) -> Result<Bytes, ErrorCode> {
    let bearer = format!("Bearer {}", fixture.token(user));
    let answer = client.do_get(with_authorization(Ticket::new(bytes), Some(&bearer))).await;
    let mut stream = answer.map_err(|error| WireError::from(error).code)?.into_inner();
    Ok(stream.next().await.unwrap().unwrap().app_metadata)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_its_user_its_time_and_its_bytes() {
    let fixture = Fixture::start().await;
    let mut client = fixture.flight();
    let soon = ids::unix_ms() + 60_000;
    let sealed = ticket::seal(&fixture.key, ticket_of("ada", soon));

    // The same ticket can be pulled again.
    for _ in 0..2 {
        assert_eq!(redeem(&fixture, &mut client, sealed.clone(), "ada").await.unwrap(), &[7; 16][..]);
    }
    assert_eq!(redeem(&fixture, &mut client, sealed.clone(), "eve").await, Err(ErrorCode::TicketInvalid));

    let expired = ticket::seal(&fixture.key, ticket_of("ada", ids::unix_ms()));
    assert_eq!(redeem(&fixture, &mut client, expired, "ada").await, Err(ErrorCode::TicketExpired));

    let (stranger, _) = SigningKey::generate().unwrap();
    let forged = ticket::seal(&stranger, ticket_of("ada", soon));
    assert_eq!(redeem(&fixture, &mut client, forged, "ada").await, Err(ErrorCode::TicketInvalid));

    for garbage in [Bytes::new(), Bytes::from_static(b"garbage"), Bytes::from(vec![0xff; 100_000])] {
        assert_eq!(redeem(&fixture, &mut client, garbage, "ada").await, Err(ErrorCode::TicketInvalid));
    }
    for position in 0..sealed.len() {
        let mut altered = sealed.to_vec();
        altered[position] ^= 1 << (position % 8);
        assert_eq!(redeem(&fixture, &mut client, altered, "ada").await, Err(ErrorCode::TicketInvalid), "{position}");
    }
    fixture.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_its_own_name_redeems_no_ticket() {
    let fixture = Fixture::start().await;
    let channel = fixture.server_pool(Role::Index).channel(&fixture.server.url).unwrap();
    let sealed = ticket::seal(&fixture.key, ticket_of("ada", u64::MAX));
    let answer = FlightServiceClient::new(channel).do_get(Ticket::new(sealed)).await;
    assert_eq!(code(answer.map(drop)), ErrorCode::PermissionDenied);
}
