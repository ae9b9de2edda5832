//! The security of every connection, from outside: real listeners, real TLS, on ports of 127.0.0.1.
//!
//! - `transport`: who gets a connection at all, and that nobody stops the server for others.
//! - `access`: what a connection, a token and a ticket allow.
//! - `lifecycle`: servers that stop, stall, break and come back.

// A failed step of a test ends it.
#![allow(clippy::unwrap_used)]

#[path = "security/access.rs"]
mod access;
#[path = "security/fixture.rs"]
mod fixture;
#[path = "security/lifecycle.rs"]
mod lifecycle;
#[path = "security/transport.rs"]
mod transport;
