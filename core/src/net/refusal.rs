//! How a connection that does not speak TLS 1.3 is turned away: with a reason where the protocol has room for one, and
//! without a reset that would destroy the reason on its way.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const REASON: &str = "drsdb speaks TLS 1.3 and nothing else: connect with TLS (an https:// or grpc+tls:// address)";

/// The first byte of a TLS connection: a handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// With a TLS handshake, of whatever version.
    Tls,
    /// With anything else.
    Plaintext,
    /// It was closed at once, as port checks do.
    Nothing,
}

/// Looks at a connection's first bytes and leaves them there.
pub(super) async fn look(stream: &TcpStream) -> io::Result<Opening> {
    let mut first = [0; 1];
    Ok(match stream.peek(&mut first).await? {
        0 => Opening::Nothing,
        _ if first[0] == TLS_HANDSHAKE => Opening::Tls,
        _ => Opening::Plaintext,
    })
}

/// Answers a plaintext client: HTTP/2 clients get a GOAWAY, HTTP/1 clients a 400, others nothing; then closes.
pub(super) async fn refuse_plaintext(mut stream: TcpStream) {
    let mut first = [0; 3];
    let length = stream.peek(&mut first).await.unwrap_or(0);
    let answer = match &first[..length] {
        b"PRI" => goaway(),
        [b'A'..=b'Z', ..] => bad_request(),
        _ => Vec::new(),
    };
    // A client that is gone needs no answer.
    let _ = stream.write_all(&answer).await;
    close_gently(stream).await;
}

/// Closes a connection so that what was written arrives. Closing with unread bytes would reset it, and a reset discards
/// what the client has not read yet: so the client's bytes are read away until it closes too, for a short while.
pub(super) async fn close_gently(mut stream: TcpStream) {
    const PATIENCE: Duration = Duration::from_millis(500);
    const MOST_BYTES: usize = 256 << 10;
    let drain = async {
        stream.shutdown().await?;
        let mut scratch = [0; 4096];
        let mut bytes = 0;
        while bytes < MOST_BYTES {
            match stream.read(&mut scratch).await? {
                0 => break,
                read => bytes += read,
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(PATIENCE, drain).await;
}

/// An empty SETTINGS frame, which HTTP/2 wants first, and a GOAWAY with INADEQUATE_SECURITY (RFC 9113, 6.8 and 7).
fn goaway() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: u8 = 7;
    const INADEQUATE_SECURITY: u32 = 0xc;
    let length = 8 + REASON.len() as u32;
    let mut frames = SETTINGS.to_vec();
    frames.extend(&length.to_be_bytes()[1..]);
    frames.extend([GOAWAY, 0, 0, 0, 0, 0]);
    frames.extend(0u32.to_be_bytes());
    frames.extend(INADEQUATE_SECURITY.to_be_bytes());
    frames.extend(REASON.as_bytes());
    frames
}

fn bad_request() -> Vec<u8> {
    let length = REASON.len() + 1;
    format!("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{REASON}\n")
        .into_bytes()
}
