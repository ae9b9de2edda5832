//! The index server as a process serves it.
