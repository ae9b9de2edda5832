//! Tests of whole clusters: servers as processes, on real ports, with real TLS and real files.

// A failed step of a test ends it.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod clients;
mod compaction;
mod damage;
mod ddl;
mod dml;
mod faults;
#[path = "../golden/mod.rs"]
mod golden;
mod logins;
mod programs;
mod queries;
mod raft;
mod replans;
mod replication;
mod support;
mod transactions;
