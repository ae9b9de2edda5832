//! Faults: which ones, when, for how long. [`schedule()`] decides that from a seed alone; [`Nemesis`] makes them happen.

mod run;
mod schedule;

pub use run::{Fired, Nemesis};
pub use schedule::{Fault, Step, Target, schedule};
