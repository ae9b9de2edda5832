//! Tests of whole clusters: servers as processes, on real ports, with real TLS and real files.

mod bad_input;
mod faults;
mod queries;
mod support;
