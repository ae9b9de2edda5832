//! Who is at the other end, and what they may do: TLS, signed credentials, passwords and the layer that asks for them.
//!
//! - [`tls`]: TLS 1.3 configurations of servers and clients. There is no plaintext mode.
//! - [`dev_ca`]: the certificate authority of a cluster on one machine; real clusters bring theirs.
//! - [`keys`]: the cluster's Ed25519 key, which signs [`token`]s (a login, proven) and [`ticket`]s (the right to pull
//!   one endpoint of one result).
//! - [`password`]: argon2id hashes; [`digest`]: hashes of what is compared.
//! - [`auth_layer`]: the one place where a request gets its [`Identity`] or is refused.
//!
//! ```text
//! connection ── TLS 1.3 ──▶ Peer { address, role of the client certificate }
//! request    ── AuthLayer: Peer + bearer token + path ──▶ Identity, or a gRPC error
//! ticket     ── ticket::open(key, bytes, Identity::user) ──▶ what to run, or ticket_invalid / ticket_expired
//! ```
//!
//! Not here: which user may read which table (the catalog knows), and where keys and hashes are kept.

pub mod auth_layer;
pub mod dev_ca;
pub mod digest;
mod identity;
pub mod keys;
pub mod password;
pub mod ticket;
pub mod tls;
pub mod token;

pub use auth_layer::{AuthLayer, LateKey, TokenVerifier};
pub use dev_ca::DevCa;
pub use identity::{Identity, Login, Peer, Role};
pub use keys::{Purpose, SigningKey, VerifyingKey};
pub use tls::{TlsFiles, TlsIdentity};
