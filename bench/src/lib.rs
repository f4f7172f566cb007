//! What each I/O path costs, measured so that the numbers can be trusted: variants interleaved in rounds, in an order
//! that a printed seed repeats, medians with their spread, and the environment beside them.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod analysis;
pub mod compare;
pub mod environment;
pub mod exits;
pub mod format;
pub mod guest;
pub mod host;
pub mod plan;
pub mod program;
pub mod report;
pub mod results;
pub mod rounds;
pub mod run;
pub mod stats;
pub mod text;

#[cfg(test)]
extern crate self as bench;
#[cfg(test)]
#[path = "../tests/synthetic/mod.rs"]
mod synthetic;
