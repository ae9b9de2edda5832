//! Limits that clients keep as well as servers.

/// The longest name of a user, schema, table or column, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// The longest password, in bytes: far above what anyone types, far below what costs anything. Clients refuse what is
/// longer by themselves: a login is a header of HTTP/2, and one beyond 16 KiB never reaches what could answer it.
pub const MAX_PASSWORD_BYTES: usize = 1024;
