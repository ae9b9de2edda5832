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

/// Answers a plaintext client and closes: with an HTTP/1 error when it speaks HTTP, else with nothing.
///
/// HTTP/2 clients get it too. A GOAWAY would be their own protocol's way to say it, but needs a SETTINGS frame first, and
/// with that gRPC clients take the connection for a success that ended: they connect again at once, and for ever. An
/// answer in another protocol is a failure to connect, which they report.
pub(super) async fn refuse_plaintext(mut stream: TcpStream) {
    let mut first = [0; 1];
    let length = stream.peek(&mut first).await.unwrap_or(0);
    if length == 1 && first[0].is_ascii_uppercase() {
        // A client that is gone needs no answer.
        let _ = stream.write_all(&bad_request()).await;
    }
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

fn bad_request() -> Vec<u8> {
    let length = REASON.len() + 1;
    format!("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{REASON}\n")
        .into_bytes()
}
