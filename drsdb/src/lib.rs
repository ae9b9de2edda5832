//! The `drsdb` program, as a library for its tests: one binary has all of drsdb.
//!
//! - [`node`]: `drsdb index` and `drsdb storage`, one server each.
//! - [`local`]: `drsdb local`, a whole cluster on this machine, in this process or in one process a server.
//! - [`shell`]: `drsdb sql`. [`import`]: `drsdb import`. [`generate`]: `drsdb generate`. [`demo`]: `drsdb demo`.
//! - [`admin`]: `drsdb admin`.

pub mod admin;
pub mod demo;
pub mod generate;
pub mod import;
pub mod local;
pub mod node;
pub mod shell;
