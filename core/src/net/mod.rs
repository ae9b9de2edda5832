//! Listeners and channels: every connection of drsdb begins or ends here, and every one is TLS 1.3.
//!
//! - [`bind`] and [`serve()`]: a server's side: handshakes, the [`AuthLayer`](crate::security::auth_layer::AuthLayer),
//!   keepalive, drain.
//! - [`ChannelPool`]: the side that connects: one HTTP/2 connection for each server, made when needed and made again
//!   when it broke. [`name_server`] says which server failed.
//!
//! Not here: what is served, message sizes and deadlines; they are the services' own.

mod accept;
mod channel_pool;
mod connection;
mod refusal;
mod serve;

use std::time::Duration;

pub use channel_pool::{ChannelPool, name_server, was_not_sent};
pub use serve::{DRAIN_TIME, bind, serve};

/// Between servers, a ping goes out after this much silence, and a connection is given up when the answer takes as long
/// again: a server that stopped without closing its connections is noticed after twice this time.
const SERVER_KEEPALIVE: Duration = Duration::from_secs(2);

/// The bytes that a stream may send ahead of its reader: two record batches.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// The bytes that a connection may send ahead of its readers: as many as HTTP/2 can say. Streams share a connection,
/// and one whose reader waits for another stream must never use up what the other one needs; so the streams' windows
/// alone bound the memory.
const CONNECTION_WINDOW_BYTES: u32 = i32::MAX as u32;
