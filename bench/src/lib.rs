//! What each I/O path costs, measured so that the numbers can be trusted: variants interleaved in rounds, in an order
//! that a printed seed repeats, medians with their spread, and the environment beside them.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod environment;
pub mod exits;
pub mod guest;
pub mod host;
pub mod plan;
pub mod program;
pub mod results;
pub mod rounds;
pub mod run;
pub mod stats;
